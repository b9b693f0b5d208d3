"""Whole evaluations, on tasks in local files: from Python and as a command."""

import functools
import json
from pathlib import Path

import lm_eval.tasks
import numpy as np
import pytest

import keras_griffin
from keras_griffin.cli import evaluate
from keras_griffin.cli import loading
from keras_griffin.cli.main import USAGE_ERROR
from keras_griffin.cli.main import main

pytestmark = [pytest.mark.backend_independent, pytest.mark.slow]

PRESET = "griffin_shakespeare_en"
TASKS = {
    "tiny_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "tiny_generation": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{greedy}}",
        "generation_kwargs": {"until": [",", "e"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
        "filter_list": [
            {"name": "stripped", "filter": [{"function": "take_first"}]}
        ],
    },
    "tiny_perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [
            {"metric": "word_perplexity"},
            {"metric": "bits_per_byte"},
        ],
    },
}
DOCS = [
    {
        "question": "To be, or not to",
        "choices": [" be", " xylophone"],
        "answer": 0,
    },
    {
        "question": "My lord, I",
        "choices": [" zzz", " am"],
        "answer": 1,
    },
    {
        "question": "ROMEO:\nO, she doth teach the torches to burn",
        "choices": [" bright", " qq"],
        "answer": 1,
    },
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "docs.jsonl"
    texts = model.generate(
        [doc["question"] for doc in DOCS], max_new_tokens=8, sampler="greedy"
    )
    lines = []
    for i, (doc, text) in enumerate(zip(DOCS, texts, strict=True)):
        text = text.removeprefix(doc["question"])
        text = text.partition(",")[0].partition("e")[0]
        # The third answer is wrong on purpose, as in `answer`.
        text = text if i < 2 else "something else"
        lines.append(json.dumps({**doc, "greedy": text}) + "\n")
    data.write_text("".join(lines))
    for name, task in TASKS.items():
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(data)},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            **task,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))  # YAML, too
    return folder


@pytest.fixture(scope="module")
def model():
    return keras_griffin.GriffinCausalLM.from_preset(PRESET)


@pytest.fixture(autouse=True)
def own_tasks_only(monkeypatch):
    """Reading the names of lm-eval's thousands takes seconds."""
    monkeypatch.setattr(
        lm_eval.tasks,
        "TaskManager",
        functools.partial(lm_eval.tasks.TaskManager, include_defaults=False),
    )


def test_command(folder, model, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load_model", lambda *args: model)
    output = folder / "results.json"
    code = main(
        [
            "evaluate",
            PRESET,
            "--tasks",
            ",".join(TASKS),
            "--include-path",
            str(folder),
            "--output",
            str(output),
            "--batch-size",
            "3",
        ]
    )
    assert code == 0
    table = capsys.readouterr().out
    for name in TASKS:
        assert f"|{name}" in table
    results = json.loads(output.read_text())
    assert results["config"]["model_args"]["preset"] == PRESET
    found = results["results"]
    assert found["tiny_choice"]["acc,none"] == pytest.approx(2 / 3)
    assert found["tiny_generation"]["exact_match,stripped"] == pytest.approx(
        2 / 3
    )
    # The start token after itself, and then the text.
    lm = keras_griffin.evaluation.GriffinLM(model)
    rows = [[lm.prefix_token_id, *lm.tok_encode(d["question"])] for d in DOCS]
    total = model.score(lm._padded(rows, 3)).sum()
    num_bytes = sum(len(doc["question"].encode()) for doc in DOCS)
    assert found["tiny_perplexity"]["bits_per_byte,none"] == pytest.approx(
        -total / num_bytes / np.log(2), rel=1e-4
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([PRESET, "--tasks", "no_such_task"], "knows no task no_such_task"),
        (
            [PRESET, "--output", "no/such/x.json"],
            "folder that exists. Received: 'no",
        ),
        (["griffin_1b"], "without weights"),
        ([PRESET, "--tasks", "tiny_broken"], "tiny_broken: "),
    ],
)
def test_errors(arguments, message, folder, model, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load_model", lambda *args: model)
    task = {
        "task": "tiny_broken",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "none.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "",
        "doc_to_target": "",
    }
    (folder / "tiny_broken.yaml").write_text(json.dumps(task))
    command = ["evaluate", *arguments, "--include-path", str(folder)]
    assert main(command) == USAGE_ERROR
    assert message in capsys.readouterr().err


def test_the_papers_tasks_are_lm_evals():
    folder = Path(lm_eval.tasks.__file__).parent
    names = ("arc", "hellaswag", "mmlu", "piqa", "winogrande")
    folders = [str(folder / name) for name in names]
    manager = lm_eval.tasks.TaskManager(include_path=folders)
    assert set(evaluate.PAPER_TASKS.split(",")) <= set(manager.all_tasks)


def test_without_lm_eval(monkeypatch, capsys):
    is_installed = evaluate.common.is_installed
    monkeypatch.setattr(
        evaluate.common,
        "is_installed",
        lambda name: name != "lm_eval" and is_installed(name),
    )
    assert main(["evaluate", PRESET]) == USAGE_ERROR
    assert "pip install 'keras-griffin[eval]'" in capsys.readouterr().err
