"""A user's task files are read as data: what is refused, and where their data are looked for."""

import json

import pytest
from pipeline.harness_tasks import write_tasks

from quantkit.errors import BadInputError, NotFoundError, UsageError
from quantkit.pipeline.taskfiles import needs_hub, parse_task, read_tasks


def written(folder, text, name="own.yaml"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, "utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("text", "name", "shots", "local"),
    [
        ("mmlu", "mmlu", None, False),
        ("mmlu@5", "mmlu", 5, False),
        (" gsm8k@0 ", "gsm8k", 0, False),
        ("own.yaml@3", "own.yaml", 3, True),
        ("./tasks", "./tasks", None, True),
        ("a@b/own.yml", "a@b/own.yml", None, True),
        ("odd@name", "odd@name", None, False),
    ],
)
def test_names(text, name, shots, local):
    task = parse_task(text)
    assert (task.name, task.shots, task.local) == (name, shots, local)


def test_a_folder_has_a_name_of_its_own(tmp_path):
    assert parse_task(f"{tmp_path}").folder == f"{tmp_path.name}/"
    assert parse_task(f"{tmp_path}/").folder == f"{tmp_path.name}/"
    assert parse_task(f"{tmp_path}/own.yaml").folder is None


def test_data_lie_beside_the_task_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "", "here.jsonl")
    (tmp_path / "tasks").mkdir()
    written(tmp_path / "tasks", "", "beside.jsonl")
    files = {"test": ["beside.jsonl", "here.jsonl"], "dev": "https://example.org/dev.jsonl", "train": "absent.jsonl"}
    task = {"task": "own", "dataset_path": "json", "dataset_kwargs": {"data_files": files}}
    (read,) = read_tasks(written(tmp_path / "tasks", json.dumps(task)))
    assert read["dataset_kwargs"]["data_files"] == {
        "test": [f"{tmp_path}/tasks/beside.jsonl", "here.jsonl"],
        "dev": "https://example.org/dev.jsonl",
        "train": f"{tmp_path}/tasks/absent.jsonl",
    }


def test_included_files_come_first(tmp_path):
    (tmp_path / "base").mkdir()
    base = "task: base\noutput_type: multiple_choice\ndataset_path: json\ndataset_kwargs: {data_files: all.jsonl}\n"
    written(tmp_path / "base", base, "base.yaml")
    (read,) = read_tasks(written(tmp_path, "include: base/base.yaml\ntask: own\n"))
    assert (read["task"], read["output_type"]) == ("own", "multiple_choice")
    assert read["dataset_kwargs"] == {"data_files": f"{tmp_path}/base/all.jsonl"}
    assert not needs_hub(read)
    assert needs_hub({"dataset_path": "cais/mmlu"})


def test_a_folder_holds_tasks_alone(tmp_path):
    folder = write_tasks(tmp_path / "own", "letters", "sums")
    written(folder, "group: both\ntask: [letters, sums]\n", "group.yaml")
    written(folder, "output_type: multiple_choice\n", "_template.yaml")
    assert [task["task"] for task in read_tasks(folder)] == ["letters", "sums"]


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("task: own\nprocess_docs: !function utils.process\n", UsageError, "it runs code: !function utils.process"),
        ("task: own\nclass: !function task.Own\n", UsageError, "it runs code: !function task.Own"),
        ("task: own\nfewshot_config: {samples: !function a.b}\n", UsageError, "it runs code"),
        ("include: other.yaml\ntask: own\n", UsageError, "other.yaml is refused: it runs code"),
        ("include: own.yaml\ntask: own\n", BadInputError, "includes itself"),
        ("include: absent.yaml\ntask: own\n", BadInputError, "cannot be read"),
        ("task: own\nmetric_list: [{metric: ./metric.py, hf_evaluate: true}]\n", UsageError, "'./metric.py' is code"),
        (
            "task: own\ndataset_path: pandas\ndataset_kwargs: {data_files: a.pkl}\n",
            UsageError,
            "reads data files as 'pandas', expected one of arrow, csv, json, parquet, text",
        ),
        ("task: !!python/object/apply:os.system ['true']\n", BadInputError, "cannot be read"),
        ("task: [a, b]\ngroup: both\n", BadInputError, "names no task"),
        ("- a\n- b\n", BadInputError, "holds a list, expected a mapping"),
        ("task: 'open\n", BadInputError, "cannot be read"),
    ],
)
def test_refused(tmp_path, text, error, said):
    written(tmp_path, "process_docs: !function utils.process\n", "other.yaml")
    with pytest.raises(error) as caught:
        read_tasks(written(tmp_path, text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["absent.yaml", "absent", ""])
def test_no_task_there(tmp_path, name):
    with pytest.raises(NotFoundError, match="no task file at"):
        read_tasks(tmp_path / name)
