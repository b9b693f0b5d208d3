"""Pages of the documentation that stand beside what they are about."""

import base64
import fnmatch
import json
import os
import re
import tomllib
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
# Where they stand, they lie in the site: links between them stay what they
# are. All Markdown, and what it links to or shows.
FOLDERS = (
    *("benchmarks", "examples", "guides"),
    *("kernels", "keras_griffin", "presets"),
)
PATTERNS = ("*.md", "*.svg", "*.png", "*.ipynb")
AT_THE_TOP = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE")
# Also linked, as examples of themselves.
SCRIPTS = (
    *("benchmarks/*/*.py", "examples/*.py"),
    *("guides/*.py", "kernels/*/*.py"),
)

BADGE = re.compile(r"\[!\[(Open in Colab)\]\(\S+\)\]\((\S+)\)")
NOTEBOOK = re.compile(r"\]\(((?!https?:)[^)\s]+)\.ipynb\)")


def on_config(config):
    """Tells the repository's address, and leaves out what an sdist lacks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    config.repo_url = project["project"]["urls"]["Repository"]
    config.repo_name = "Repository"
    if not (ROOT / "guides/README.md").exists():
        config.nav = [page for page in config.nav if "Guides" not in page]
    return config


def on_files(files, config):
    """Adds them. See https://www.mkdocs.org/user-guide/plugins/#on_files."""
    # The site's own front page has the place of a README.
    files.append(
        File.generated(
            config, "overview.md", abs_src_path=str(ROOT / "README.md")
        )
    )
    for path in (*AT_THE_TOP, *_found()):
        if not (ROOT / path).exists():
            continue
        files.append(
            File.generated(config, path, abs_src_path=str(ROOT / path))
        )
        if path.endswith(".ipynb"):
            for name, content in guide_files(ROOT / path).items():
                files.append(
                    File.generated(config, f"guides/{name}", content=content)
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


def guide_files(notebook):
    """The page of a notebook, and its plots, as names with their contents."""
    files, parts = {}, []
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        language = "python"
        if source.startswith("%%bash\n"):
            language, source = "bash", source.removeprefix("%%bash\n")
        parts.append(f"````{language}\n{source}\n````")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                text = "".join(output["text"]).rstrip("\n")
                parts.append(f"````{{ .text .output }}\n{text}\n````")
            else:
                name = f"{notebook.stem}_{len(files)}.png"
                files[name] = base64.b64decode(output["data"]["image/png"])
                parts.append(f"![The plot that this code makes]({name})")
    return {f"{notebook.stem}.md": "\n\n".join(parts) + "\n", **files}


def on_page_markdown(markdown, **kwargs):
    """Links to `docs/`, in the site its own top, to guides and to Colab."""
    markdown = BADGE.sub(r"[\1](\2)", markdown)
    markdown = NOTEBOOK.sub(r"](\1.md)", markdown)
    return re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)


def on_post_page(output, **kwargs):
    """Keeps the theme from asking GitHub for stars and releases."""
    return output.replace(' data-md-component="source"', "")
