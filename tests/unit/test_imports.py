"""Arrows between packages point down only, and starting trnsim stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "trnsim"

# What each package may import, beside itself, errors and units. Below it in this table is what it stands on.
ALLOWED = {
    "errors": set(),
    "units": set(),
    "numerics": set(),
    "releases": set(),
    "hardware": {"numerics"},
    "fabric": {"hardware", "numerics"},
    "machine": {"hardware", "numerics", "releases"},
    "isa": {"machine", "hardware", "numerics", "releases"},
    "timing": {"isa", "machine", "hardware", "numerics"},
    "sanitizer": {"isa", "machine", "hardware", "numerics"},
    "session": {"report", "timing", "isa", "machine", "hardware", "numerics", "releases"},
    "nki": {"fabric", "session", "timing", "isa", "machine", "hardware", "numerics", "releases"},
    "kernels": {"nki", "session", "timing", "isa", "machine", "hardware", "numerics"},
    "workloads": {"numerics"},
    "operators": {"report", "kernels", "session", "timing", "isa", "machine", "hardware", "numerics"},
    "serving": {"hardware", "numerics"},
    "planner": {"serving", "workloads", "operators", "fabric", "hardware", "numerics"},
    "frameworks": {
        "planner",
        "serving",
        "workloads",
        "operators",
        "kernels",
        "nki",
        "session",
        "report",
        "fabric",
        "timing",
        "isa",
        "machine",
        "hardware",
        "numerics",
    },
    "torch": {"frameworks"},
    "installation": {"nki", "compat", "releases"},
    "compat": {"nki", "session", "isa", "machine", "numerics", "releases"},
    "pytest_plugin": {"compat", "installation", "report"},
    "profiles": {"timing", "isa", "machine", "hardware", "numerics"},
    "report": {"timing", "isa", "machine", "hardware", "numerics"},
    "api": {"installation", "nki", "session", "report", "machine", "hardware", "numerics"},
    "script": {"api", "installation", "nki", "session"},
    "validation": {
        "api",
        "compat",
        "fabric",
        "installation",
        "planner",
        "serving",
        "session",
        "timing",
        "machine",
        "hardware",
        "workloads",
    },
    "recording": {"nki", "session", "report", "timing", "isa", "machine", "hardware", "numerics", "releases"},
    "sweep": {"script", "session", "report"},
    "explain": {"report", "timing", "isa", "machine", "hardware", "numerics", "releases"},
    "commands": {
        "explain",
        "fabric",
        "hardware",
        "operators",
        "planner",
        "profiles",
        "recording",
        "releases",
        "report",
        "script",
        "serving",
        "session",
        "sweep",
        "timing",
        "validation",
        "workloads",
    },
    "__main__": {"cli"},
    "cli": {"commands", "api", "installation", "script", "nki", "session", "report", "timing", "hardware"},
    "__init__": {"api", "installation", "session", "hardware"},
}


def _package(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found = set()
    inside = path.relative_to(SOURCE.parent).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(inside[: -node.level]) if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.level else (node.module or "").split(".")
            names = [".".join(p for p in module if p)]
            if names == ["trnsim"]:
                names = [f"trnsim.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("trnsim.")}
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path):
    package = _package(path)
    assert package in ALLOWED, f"say in this test what {package} may import"
    wrong = {name for name in _imports(path) if name in ALLOWED and name != package}
    wrong -= ALLOWED[package] | {"errors", "units", "__init__"}
    assert not wrong, f"{package} must not import {sorted(wrong)}"


def test_starting_trnsim_is_light():
    code = (
        "import sys, trnsim, trnsim.cli, trnsim.nki, trnsim.session\n"
        "heavy = {'torch', 'jax', 'numba', 'networkx', 'scipy', 'perfetto', 'llvmlite'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
