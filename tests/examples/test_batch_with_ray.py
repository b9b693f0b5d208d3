"""The example that runs engines under Ray Data."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.models import model_with_tokenizer

# The example chooses the backend of its workers.
pytestmark = pytest.mark.backend_independent

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "batch_with_ray.py"


def load_example():
    spec = importlib.util.spec_from_file_location("batch_with_ray", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_lines(file, ids, **fields):
    lines = [{"id": id, "prompt": f"word {id}", **fields} for id in ids]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    file.write_text(text, encoding="utf-8")


def test_what_is_finished(tmp_path):
    example = load_example()
    output = tmp_path / "texts.jsonl"
    assert example.finished_ids(output) == set()
    write_lines(output, ["a", 2])
    whole = output.read_bytes()
    assert example.finished_ids(output) == {"a", 2}
    output.write_bytes(whole + b'{"id": "c", "te')  # cut off by a crash
    assert example.finished_ids(output) == {"a", 2}
    assert output.read_bytes() == whole
    output.write_bytes(b'{"id"')
    assert example.finished_ids(output) == set()
    assert output.read_bytes() == b""


def test_a_folder_of_lines(tmp_path):
    for name, ids in (("1.jsonl", ["a", "b"]), ("2.jsonl", [3])):
        write_lines(tmp_path / name, ids, kept=[1, {"x": None}])
    (tmp_path / "notes.txt").write_text("no JSON")
    lines = load_example().read_lines(tmp_path)
    assert list(lines) == ["a", "b", 3]
    assert json.loads(lines[3])["kept"] == [1, {"x": None}]


@pytest.mark.slow
def test_two_workers_go_on_with_what_is_left(tmp_path):
    pytest.importorskip("ray", reason="pip install 'keras-griffin[ray]'")
    model = model_with_tokenizer()
    model.save_to_preset(tmp_path / "model")
    prompts, output = tmp_path / "prompts", tmp_path / "texts.jsonl"
    prompts.mkdir()
    write_lines(prompts / "1.jsonl", range(40), kept="yes")
    write_lines(output, range(30), text="made before")
    before = output.read_bytes()
    # Ray starts workers with niceness 15: nothing moves on a busy machine.
    environment = {"KERAS_BACKEND": "jax", "RAY_worker_niceness": "0"}
    subprocess.run(
        [sys.executable, EXAMPLE, prompts, output, "--max-new-tokens", "3"]
        + ["--preset", tmp_path / "model"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        check=True,
        timeout=300,
    )
    assert output.read_bytes().startswith(before)
    lines = [json.loads(x) for x in output.read_text("utf-8").splitlines()]
    assert sorted(line["id"] for line in lines) == list(range(40))
    new = lines[30:]
    assert all(line["kept"] == "yes" for line in new)
    assert {line["finish_reason"] for line in new} <= {"length", "stop"}
    alone = model.generate(
        [line["prompt"] for line in new],
        max_new_tokens=3,
        temperature=0,
        strip_prompt=True,
    )
    assert [line["text"] for line in new] == alone
