"""Files of a checkpoint that are not what they seem."""

import json
import os

import pytest

from keras_griffin.files import inside

pytestmark = pytest.mark.backend_independent


def test_a_regular_file(tmp_path):
    (tmp_path / "a").write_text("1234")
    assert inside.regular_file(tmp_path / "a", 4) == tmp_path / "a"
    assert inside.file_inside(tmp_path, "a") == tmp_path / "a"
    with pytest.raises(ValueError, match="a must have at most 3 bytes.*of 4"):
        inside.regular_file(tmp_path / "a", 3)
    with pytest.raises(FileNotFoundError, match="must exist.*'.*b'"):
        inside.regular_file(tmp_path / "b")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file(tmp_path, kind):
    path = tmp_path / "config.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = "/dev/zero"
    with pytest.raises(ValueError, match="no folder, pipe or device"):
        inside.regular_file(path)


@pytest.mark.parametrize("name", ["../outside", "{}/outside", "link", "sub/x"])
def test_what_lies_elsewhere(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside").write_text("{}")
    (folder / "link").symlink_to("../outside")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x").write_text("{}")
    (folder / "sub").symlink_to("../elsewhere")
    with pytest.raises(ValueError, match="files must lie in its folder"):
        inside.file_inside(folder, name.format(tmp_path))


def test_hugging_faces_cache(tmp_path):
    """Its snapshots are links into its blobs."""
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "123"
    (snapshot / "assets").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (snapshot / "assets" / "x").symlink_to("../../../blobs/abc")
    assert inside.read_json(snapshot, "config.json") == {}
    inside.file_inside(snapshot, "assets/x")
    inside.file_inside(snapshot / "assets", "x")
    (tmp_path / "secret").write_text("{}")
    (snapshot / "other").symlink_to("../../../secret")
    with pytest.raises(ValueError, match="files must lie in its folder"):
        inside.file_inside(snapshot, "other")


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for name in ("a", "with\0zero"):
        with pytest.raises(ValueError, match="path that can be followed"):
            inside.file_inside(tmp_path, name)
        with pytest.raises(ValueError, match="path that can be followed"):
            inside.regular_file(tmp_path / name)


@pytest.mark.parametrize(
    "content, match",
    [
        (b"{", "must be JSON.*breaks off"),
        (b"\xff", "must be JSON"),
        (b"[" * 100_000, "must be JSON"),
        (b"[1]", "must hold a JSON object.*with a list"),
        (b" " * (inside.JSON_LIMIT + 1), "must have at most"),
    ],
)
def test_json(tmp_path, content, match):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=match):
        inside.read_json(tmp_path, "x.json")


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": None},
        {"weight_map": ["a"]},
        {"weight_map": {}},
        {"weight_map": {"x": 1}},
        {"weight_map": {"x": [None]}},
    ],
)
def test_an_index_that_is_none(tmp_path, index):
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="must map tensor names to files"):
        inside.indexed_files(tmp_path, "index.json")


def test_an_index(tmp_path):
    index = {"weight_map": {"x": "b", "y": ["a", "b"]}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "a").touch()
    with pytest.raises(ValueError, match="shard named.*without b"):
        inside.indexed_files(tmp_path, "index.json")
    (tmp_path / "b").touch()
    found = inside.indexed_files(tmp_path, "index.json")
    assert found == [tmp_path / "a", tmp_path / "b"]
