"""JAX keeps what it compiles for the command, where that can be written."""

import pytest

from keras_griffin.cli import common

pytestmark = pytest.mark.backend_independent


def test_a_folder_for_the_programs(tmp_path, capsys):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    common.keep_programs(environment)
    folder = tmp_path / "keras_griffin" / "jax"
    assert folder.is_dir()
    assert environment[common.CACHE] == str(folder)
    assert environment["JAX_COMPILATION_CACHE_MAX_SIZE"] == str(2**30)
    assert capsys.readouterr().err == ""


def test_what_the_user_says_holds(tmp_path):
    environment = {common.CACHE: "mine", "XDG_CACHE_HOME": str(tmp_path)}
    common.keep_programs(environment)
    assert environment == {
        common.CACHE: "mine",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    common.keep_programs(environment)
    assert common.CACHE not in environment
    (line,) = capsys.readouterr().err.splitlines()
    assert "compiled programs are not kept" in line
    assert f"Set {common.CACHE}" in line
