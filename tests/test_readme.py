"""The examples of README's section on fine-tuning run as they are written."""

import re
from pathlib import Path

import keras
import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.skipif(
    keras.config.backend() != "torch",
    reason="The calls are tested on all backends; compiling takes a minute.",
)
# Keras passes `shuffle=True` on to KerasHub's pipeline of text.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_fine_tuning(tmp_path, monkeypatch, quick_collection):
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    section = text.partition("## Fine-tune\n")[2].partition("\n## ")[0]
    examples = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(examples) == 5
    names = {}
    for example in examples:
        exec(example, names)  # noqa: S102
    assert (tmp_path / "my_hamlet" / "config.json").exists()
    assert (tmp_path / "hamlet.lora.h5").exists()
