import pytest

from keras_griffin.files.whole import whole_folder

pytestmark = pytest.mark.backend_independent


def fill(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("new")


def test_a_folder_appears_at_the_end(tmp_path):
    target = tmp_path / "a" / "b"
    with whole_folder(target) as folder:
        fill(folder, "x", "sub/y")
        assert not target.exists()
    assert (target / "sub" / "y").read_text() == "new"
    assert [p.name for p in target.parent.iterdir()] == ["b"]
    # Readable as any folder that the user makes.
    (tmp_path / "c").mkdir()
    assert target.stat().st_mode == (tmp_path / "c").stat().st_mode


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyError):
        with whole_folder(tmp_path / "a") as folder:
            fill(folder, "x")
            raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_an_error_keeps_what_was_there(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("old")
    with pytest.raises(KeyError):
        with whole_folder(tmp_path / "a", replace=True) as folder:
            fill(folder, "x")
            raise KeyError
    assert (tmp_path / "a" / "x").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_empty_folder_is_filled(tmp_path):
    with whole_folder(tmp_path) as folder:
        fill(folder, "x")
    assert (tmp_path / "x").read_text() == "new"


def test_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with whole_folder(".") as folder:
        fill(folder, "x")
    assert (tmp_path / "here" / "x").read_text() == "new"


def test_files_are_not_mixed(tmp_path):
    (tmp_path / "old").write_text("")
    with pytest.raises(ValueError, match=r"new or empty.*with \['old'\]"):
        with whole_folder(tmp_path):
            pass
    with whole_folder(tmp_path, replace=True) as folder:
        fill(folder, "x", "sub/y")
    assert {p.name for p in tmp_path.iterdir()} == {"old", "x", "sub"}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="which is a file"):
        with whole_folder(tmp_path / "file", replace=True):
            pass
