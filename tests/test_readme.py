"""The examples of README and of the pages beside the code run as written."""

import re
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "keras_griffin/generation/README.md",
    "keras_griffin/layers/README.md",
    "keras_griffin/training/README.md",
)


@pytest.mark.skipif(
    keras.config.backend() != "torch",
    reason="The calls are tested on all backends; compiling takes a minute.",
)
# Keras passes `shuffle=True` on to KerasHub's pipeline of text.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
@pytest.mark.parametrize("page", PAGES)
def test_examples(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert examples
    names = {}
    for example in examples:
        exec(example, names)  # noqa: S102


@pytest.mark.backend_independent
def test_the_front_page_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
