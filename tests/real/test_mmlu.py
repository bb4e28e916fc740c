"""MMLU and GSM8K from their authors' own files, on a trained model: figures as of the harness on the whole model."""

import importlib.util
import json

import pytest
import torch
import transformers

from quantkit.pipeline.tasks import open_tasks, run_tasks
from quantkit.pipeline.weightset import open_baseline
from quantkit.progress import Silent
from quantkit.skeleton import Skeleton
from quantkit.vocab.load import load_tokenizer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None or importlib.util.find_spec("accelerate") is None,
    reason="lm-evaluation-harness is not installed: make tasks",
)
LETTERS = ["A", "B", "C", "D"]
MEAN = {"aggregation": "mean", "higher_is_better": True}
SUBJECTS = ("anatomy", "world_religions")
LIMIT = 12


def mmlu(data, subject):
    """The questions as their authors ask them."""
    files = {split: str(data / "eval/mmlu/data" / split / f"{subject}_{split}.csv") for split in ("test", "dev")}
    topic = subject.replace("_", " ")
    return {
        "task": subject,
        "dataset_path": "csv",
        "dataset_kwargs": {"data_files": files, "column_names": ["question", *LETTERS, "answer"]},
        "test_split": "test",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": 2,
        "output_type": "multiple_choice",
        "description": f"The following are multiple choice questions (with answers) about {topic}.\n\n",
        "doc_to_text": "{{question.strip()}}\nA. {{A}}\nB. {{B}}\nC. {{C}}\nD. {{D}}\nAnswer:",
        "doc_to_choice": LETTERS,
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"} | MEAN],
    }


def gsm8k(data):
    """Sums without examples, the first number written is the answer: a small model gets some of them right."""
    return {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data / "eval/gsm8k/test.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["Question:"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "regexes_to_ignore": [",", r"(?s).*#### "]} | MEAN],
        "filter_list": [
            {
                "name": "number",
                "filter": [{"function": "regex", "regex_pattern": "(-?[0-9.,]+)"}, {"function": "take_first"}],
            }
        ],
    }


def test_figures_are_those_of_the_harness(data, tmp_path, monkeypatch):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "own"
    folder.mkdir()
    tasks = [*(mmlu(data, subject) for subject in SUBJECTS), gsm8k(data)]
    for task in tasks:
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task), "utf-8")
    source = data / "models" / "wikilm"
    weights, family, config = open_baseline(str(source))
    tokenizer = load_tokenizer(source, config)
    opened = open_tasks([f"{folder}/{task['task']}.yaml" for task in tasks], LIMIT)
    (found,) = run_tasks(opened, Skeleton(family, config), config, tokenizer, [weights], Silent())

    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    whole = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    expected = lm_eval.simple_evaluate(
        whole, tasks=[task["task"] for task in tasks], limit=LIMIT, task_manager=manager
    )["results"]
    assert found["sums"]["metric"] == "exact_match,number"
    assert found["sums"]["value"] == pytest.approx(expected["sums"]["exact_match,number"])
    for subject in SUBJECTS:
        row = found[subject]
        assert (row["metric"], row["samples"], row["shots"]) == ("acc", LIMIT, 2)
        assert row["value"] == pytest.approx(expected[subject]["acc,none"])
        assert row["error"] == pytest.approx(expected[subject]["acc_stderr,none"])
