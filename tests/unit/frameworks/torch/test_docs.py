"""The tutorial runs as it is printed, and the table of operators is that of the models."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
pytest.importorskip("transformers", reason="transformers is not installed: pip install 'trnsim[models]'")


def test_tutorial_runs(tmp_path):
    text = (ROOT / "docs" / "torch.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 6
    program = tmp_path / "tutorial.py"
    program.write_text("\n".join(blocks))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "GiB" in done.stdout
    assert {"mlp.html", "mlp.json"} <= {p.name for p in tmp_path.iterdir()}


def test_coverage_page_names_what_falls_back():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import torch_coverage
    finally:
        sys.path.pop(0)
    page = torch_coverage.PAGE.read_text()
    table = page.partition("## What falls back")[2].partition("## What runs")[0]
    listed = set(re.findall(r"^\| `(.*?)`", table, re.MULTILINE))
    found = {name for one in torch_coverage.collect() for name in one.fallbacks}
    assert listed == found, "run scripts/torch_coverage.py"
