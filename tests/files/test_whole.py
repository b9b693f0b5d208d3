import errno
import os
import shutil
import types

import pytest

from keras_griffin.files import whole
from keras_griffin.files.whole import whole_file
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


def test_a_file_appears_at_the_end(tmp_path):
    target = tmp_path / "a"
    with whole_file(target) as file:
        file.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    (tmp_path / "b").write_text("")  # readable as any file of the user
    assert target.stat().st_mode == (tmp_path / "b").stat().st_mode
    target.chmod(0o600)
    (tmp_path / "link").symlink_to("a")
    with whole_file(tmp_path / "link") as file:
        file.write_text("newer")
    assert target.read_text() == "newer" and target.stat().st_mode % 512 == 384
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b", "link"}


def test_an_error_keeps_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyError):
        with whole_file(tmp_path / "a") as file:
            file.write_text("new")
            raise KeyError
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_device_is_written_to_as_it_is():
    with whole_file("/dev/null") as file:
        file.write_text("x")


def test_places_where_no_file_can_be(tmp_path, monkeypatch):
    with pytest.raises(IsADirectoryError, match="which is a folder"):
        with whole_file(tmp_path):
            pass
    with pytest.raises(FileNotFoundError, match="folder that exists"):
        with whole_file(tmp_path / "no" / "x"):
            pass
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may do all
    with pytest.raises(PermissionError, match="where you may write"):
        with whole_file(tmp_path / "x"):
            pass


def test_a_file_takes_no_folders_place(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(ValueError, match="Files take the place of files"):
        with whole_folder(tmp_path, replace=True) as folder:
            fill(folder, "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_full_disk(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    whole.check_room(tmp_path / "no" / "x", 10)
    with pytest.raises(OSError, match="must have room.*10 of 11 bytes") as e:
        whole.check_room(tmp_path / "no" / "x", 11)
    assert e.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="must have room.*as it was"):
        with whole_file(tmp_path / "x"):
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_replacement_that_cannot_be_ended(tmp_path, monkeypatch):
    fill(tmp_path, "config.json")

    def fail(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(PermissionError, match="must be ended before"):
            with whole_folder(tmp_path, replace=True) as folder:
                fill(folder, "config.json", "x")
        with pytest.raises(PermissionError, match="must be ended before"):
            whole.finish(tmp_path)
    with pytest.raises(ValueError, match="with .'config.json', 'x'"):
        with whole_folder(tmp_path):  # which ends it first
            pass
    whole.finish(tmp_path / "nowhere")
