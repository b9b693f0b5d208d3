"""Pages of the documentation that stand beside what they are about."""

import fnmatch
import os
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
# Where they stand, they lie in the site: links between them stay what they
# are. All Markdown, and what it links to or shows.
FOLDERS = ("benchmarks", "guides", "kernels", "keras_griffin", "presets")
PATTERNS = ("*.md", "*.svg", "*.png", "*.ipynb")
AT_THE_TOP = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE")
# Also linked, as examples of themselves.
SCRIPTS = ("benchmarks/*/*.py", "guides/*.py", "kernels/*/*.py")


def on_config(config):
    """Leaves the guides out where there are none, as in an sdist."""
    if not (ROOT / "guides/README.md").exists():
        config.nav = [page for page in config.nav if "Guides" not in page]
    return config


def on_files(files, config):
    """Adds them. See https://www.mkdocs.org/user-guide/plugins/#on_files."""
    for path in (*AT_THE_TOP, *_found()):
        if (ROOT / path).exists():
            files.append(
                File.generated(config, path, abs_src_path=str(ROOT / path))
            )
    return files


def _found():
    for folder in FOLDERS:
        for parent, folders, names in os.walk(ROOT / folder):
            folders[:] = sorted(f for f in folders if f[0] not in "._")
            for name in sorted(names):
                path = (Path(parent) / name).relative_to(ROOT).as_posix()
                if any(
                    fnmatch.fnmatch(path, pattern)
                    for pattern in (*PATTERNS, *SCRIPTS)
                ):
                    yield path
