"""The table of what is supported says what the code does."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_table_is_up_to_date():
    command = [sys.executable, str(ROOT / "scripts" / "coverage_table.py"), "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("section", ["nki.isa", "nki.language", "nki.collectives"])
def test_it_has_every_module(section):
    assert f"## {section}\n" in (ROOT / "docs" / "reference" / "coverage.md").read_text()
