"""Small tasks as a user would write them for lm-evaluation-harness: YAML beside JSONL."""

import json
from pathlib import Path

import tiny

LETTERS = "\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"
MEAN = {"aggregation": "mean", "higher_is_better": True}
TASKS = {
    # In the shape of MMLU: four letters behind one context, examples from a second split.
    "letters": {
        "output_type": "multiple_choice",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": 2,
        "doc_to_text": "{{question.strip()}}" + LETTERS,
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"} | MEAN, {"metric": "acc_norm"} | MEAN],
    },
    # The choices themselves, of several tokens each; examples drawn at random.
    "phrases": {
        "output_type": "multiple_choice",
        "fewshot_split": "dev",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"} | MEAN, {"metric": "acc_norm"} | MEAN],
    },
    # In the shape of GSM8K: an answer is written, a filter finds the figure in it.
    "sums": {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{written}}",
        "generation_kwargs": {"until": ["Question:", "ing"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"} | MEAN],
        "filter_list": [
            {
                "name": "letters",
                "filter": [{"function": "regex", "regex_pattern": "([a-z]+)"}, {"function": "take_first"}],
            },
            {"name": "whole", "filter": [{"function": "take_first"}]},
        ],
    },
    "text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "question",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
}


def questions() -> list[dict]:
    words = tiny.TEXT.split()
    rows = []
    for number in range(10):
        a, b = 3 + number, 7 * number % 11
        choices = [" ".join(words[start : start + 3]) for start in range(4 * number, 4 * number + 4)]
        rows.append({"question": f"What is {a} plus {b}? {words[number]}", "choices": choices, "answer": a * b % 4})
    return rows


def write_tasks(folder: Path, *names: str, written: list[str] | None = None, **changes: object) -> Path:
    """Task files of these names in a folder, each with the same questions; `changes` go into every one of them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = questions()
    for number, row in enumerate(rows):
        row["written"] = written[number] if written else "nothing"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "dev.jsonl").write_text("".join(lines[:3]), "utf-8")
    (folder / "test.jsonl").write_text("".join(lines[3:]), "utf-8")
    data = {"test": "test.jsonl", "dev": "dev.jsonl"}
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": data}, "test_split": "test"}
    for name in names:
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name} | common | TASKS[name] | changes), "utf-8")
    return folder
