"""What is built is what is here: the sdist, the wheel, and their contents."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.backend_independent, pytest.mark.slow]

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]

# Folders at the root and what they are installed as.
INSTALLED_AS = {
    "keras_griffin": "keras_griffin",
    "kernels": "keras_griffin/kernels",
    "presets": "keras_griffin/presets",
}
NOT_PART_OF_A_PACKAGE = ("__pycache__", ".pyc", ".pyo", ".DS_Store")


def source_files():
    """Yields `(file, its path in a wheel)` of everything to be installed."""
    for folder, installed in INSTALLED_AS.items():
        for file in sorted((ROOT / folder).rglob("*")):
            if file.is_dir() or any(
                part.endswith(NOT_PART_OF_A_PACKAGE) for part in file.parts
            ):
                continue
            inside = file.relative_to(ROOT / folder).as_posix()
            yield file, f"{installed}/{inside}"


def run(*command, cwd, **environment):
    """Runs a command; its output is part of the failure, if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("packaging")
    copy = folder / "copy"  # building leaves files beside the sources
    shutil.copytree(
        ROOT,
        copy,
        ignore=shutil.ignore_patterns(
            ".git", ".venv*", ".*_cache", "__pycache__", "build", "*.egg-info"
        ),
    )
    # A build elsewhere has no Keras: it must not be imported for the version.
    poison = folder / "poison"
    poison.mkdir()
    (poison / "keras.py").write_text("raise ImportError('needs Keras')\n")
    # Without --wheel or --sdist, the wheel is built from the sdist. Without
    # isolation, setuptools comes from this environment, not from a network.
    done = run(
        *(sys.executable, "-m", "build", "--no-isolation"),
        *("--outdir", folder / "dist"),
        cwd=copy,
        PYTHONPATH=str(poison),
    )
    # What setuptools says of a folder that holds files but is not listed.
    assert "would be ignored" not in done.stdout + done.stderr
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel installed, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("installed")
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
        *("--no-index", "--target", folder, wheel),
        cwd=folder,
    )
    return folder


def test_package_list_names_every_folder():
    folders = {
        Path(path).parent.as_posix().replace("/", ".")
        for file, path in source_files()
        if file.suffix == ".py"
    }
    folders.add("keras_griffin.presets")  # data only
    assert sorted(SETUPTOOLS["packages"]) == sorted(folders)


def test_root_folders_stay_namespaces():
    # With a file here, `import kernels` in a checkout would find our folder
    # instead of the package of that name on PyPI, which transformers uses.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "presets" / "__init__.py").exists()


def test_other_folders_are_packages():
    for name in SETUPTOOLS["packages"]:
        parts = name.split(".")
        at_the_root = parts[1:2] in (["kernels"], ["presets"])
        folder = ROOT.joinpath(*parts[1 if at_the_root else 0 :])
        if folder not in (ROOT / "kernels", ROOT / "presets"):
            assert (folder / "__init__.py").exists(), name


def test_wheel_is_pure_python(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")


def test_wheel_holds_every_file_and_no_other(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
    assert sorted(names) == sorted(path for _, path in source_files())


def test_wheel_carries_licence_and_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = [n for n in names if n.endswith("entry_points.txt")]
        text = archive.read(entry_points).decode()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "keras-griffin = keras_griffin.cli.main:main" in text


def test_sdist_is_enough_to_work_on(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for file in (
        "CONTRIBUTING.md",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        ".ci/run",
        "tests/conftest.py",
        "tests/constraints.txt",
        "tests/run_all.py",
    ):
        assert file in names, file
    for file, _ in source_files():
        assert file.relative_to(ROOT).as_posix() in names


@pytest.mark.parametrize("elsewhere", [True, False])
def test_installed_wheel_imports(installed, tmp_path, elsewhere):
    """Also in a checkout, whose folder then comes first on the path."""
    code = (
        "import keras_griffin\n"
        "from keras_griffin.kernels.linear_scan import linear_scan\n"
        "from keras_griffin.checkpoints.preset_index import preset_names\n"
        "assert 'recurrent_gemma_2b_en' in preset_names()\n"
        "print(keras_griffin.__file__)\n"
    )
    cwd = tmp_path if elsewhere else ROOT
    done = run(sys.executable, "-c", code, cwd=cwd, PYTHONPATH=str(installed))
    source = installed if elsewhere else ROOT
    assert Path(done.stdout.strip()).is_relative_to(source)


def test_installed_command_runs(installed, tmp_path):
    folder = "Scripts" if os.name == "nt" else "bin"
    output = run(
        installed / folder / "keras-griffin",
        "presets",
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    ).stdout
    assert "recurrent_gemma_2b_en" in output


def test_version_is_the_installed_one(wheel):
    from keras_griffin.version import __version__

    assert wheel.name.startswith(f"keras_griffin-{__version__}-")
