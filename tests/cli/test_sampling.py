"""Settings that are options, beyond those of tests/cli/test_generate.py."""

import pytest

from keras_griffin.cli.main import USAGE_ERROR
from keras_griffin.cli.main import main


@pytest.mark.backend_independent
def test_bias_and_draft_reach_the_model(fake):
    arguments = ["generate", "a", "--preset", "hf://a/b"]
    arguments += ["--logit-bias", "5=-1.5", "--logit-bias", "6=2"]
    assert main([*arguments, "--draft", "prompt_lookup"]) == 0
    assert fake.settings["logit_bias"] == {5: -1.5, 6: 2.0}
    assert fake.settings["draft"] == "prompt_lookup"
    assert main([*arguments, "--draft", "hf://a/small"]) == 0
    assert fake.preset == "hf://a/small" and fake.settings["draft"] is fake
    with pytest.raises(SystemExit):
        main([*arguments, "--logit-bias", "x"])


@pytest.mark.backend_independent
def test_a_draft_changes_no_greedy_text(folder, capsys):
    arguments = ["generate", "To be", "--preset", str(folder)]
    arguments += ["--temperature", "0", "--max-new-tokens", "8"]
    texts = set()
    for options in ([], ["--draft", "prompt_lookup"], ["--draft", str(folder)]):
        assert main([*arguments, *options]) == 0
        texts.add(capsys.readouterr().out)
    assert len(texts) == 1


@pytest.mark.backend_independent
def test_a_bias_of_no_token(folder, capsys):
    arguments = ["generate", "a", "--preset", str(folder)]
    assert main([*arguments, "--logit-bias", "99999=1"]) == USAGE_ERROR
    assert "`logit_bias` must be of token ids" in capsys.readouterr().err
