"""The documentation builds, and no link in it leads nowhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_independent

ROOT = Path(__file__).resolve().parent.parent


def build(site, config="mkdocs.yml"):
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"]
        + ["--config-file", str(config), "--site-dir", str(site)],
        cwd=ROOT,
        # A notice of its theme about another program.
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_it_builds(tmp_path):
    done = build(tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api/layers/index.html").read_text(encoding="utf-8")
    assert 'id="keras_griffin.layers.rglru.RGLRU"' in page
    # An argument of a constructor, and one of a call.
    for argument in ("num_gate_blocks", "padding_mask"):
        assert f"<b><code>{argument}</code></b>" in page
    assert "<strong>Example:</strong>" in page
    # The link to the repository, of which nothing is asked.
    assert 'class="md-source"' in page
    assert 'data-md-component="source"' not in page
    # What stands beside its subject, and the plot that it shows.
    assert (tmp_path / "kernels/rg_lru/index.html").exists()
    assert (tmp_path / "benchmarks/results/scan_on_a_tpu.svg").exists()
    # A session of the interpreter is code, and a long signature is wrapped.
    kernels = (tmp_path / "api/kernels/index.html").read_text(encoding="utf-8")
    assert "<blockquote>" not in kernels
    assert '<span class="gp">&gt;&gt;&gt; </span>' in kernels
    assert '<span class="nf">rg_lru</span><span class="p">(</span>\n' in kernels
    # Guides have their outputs, and are found.
    guide = (tmp_path / "guides/quickstart/index.html").read_text("utf-8")
    assert "3,318,160 parameters" in guide and "quickstart_0.png" in guide
    assert (tmp_path / "guides/quickstart_0.png").exists()
    index = (tmp_path / "search/search_index.json").read_text("utf-8")
    assert "guides/time_series/" in index
    for name in ("hooks.py", "docstrings.py"):
        assert not (tmp_path / name).exists()


def test_a_broken_link_is_an_error(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("[there](nowhere.md) [and](#nothing)\n")
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    start, _, rest = text.partition("hooks:")
    _, _, rest = rest.partition("nav:")
    _, _, rest = rest.partition("validation:")
    (tmp_path / "mkdocs.yml").write_text(
        f"{start}validation:{rest.partition('plugins:')[0]}"
    )
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode != 0
    assert "'nowhere.md'" in done.stderr and "#nothing" in done.stderr
