"""Local checkouts of public kernels: where they are, and importing a kernel from them.

Nothing is written into a checkout. What has to be a file of its own (a code block of documentation, a version out of
the history) goes to a temporary directory.
"""

from __future__ import annotations

import ast
import atexit
import importlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from trnsim.errors import InputError
from trnsim.validation.cases import Source

VARIABLES = {
    "sdk": "TRNSIM_SDK",
    "samples": "TRNSIM_SAMPLES",
    "library": "TRNSIM_LIBRARY",
    "fusion": "TRNSIM_FUSION",
    "course": "TRNSIM_COURSE",
    "course-trn1": "TRNSIM_COURSE_TRN1",
    "accelopt": "TRNSIM_ACCELOPT",
    "autocomp": "TRNSIM_AUTOCOMP",
    "autotune": "TRNSIM_AUTOTUNE",
    "tilebench": "TRNSIM_TILEBENCH",
}
_WHAT = {
    "sdk": "aws-neuron-sdk",
    "samples": "nki-samples",
    "library": "nki-library",
    "fusion": "allenkchau/trainium-kernel-fusion",
    "course": "xaviergonzalez/asst4-trainium2",
    "course-trn1": "robertpare17/asst4-trainium",
    "accelopt": "zhang677/AccelOpt",
    "autocomp": "ucb-bar/autocomp",
    "autotune": "awslabs/nki-autotune",
    "tilebench": "Deep-Learning-Profiling-Tools/Tilebench",
}


def roots(given: Mapping[str, str | Path | None]) -> dict[str, Path]:
    """The checkouts that are there: those given, else those that the environment names.

    Raises:
        InputError: a path that is no folder.
    """
    found = {}
    for name, variable in VARIABLES.items():
        text = given.get(name) or os.environ.get(variable)
        if not text:
            continue
        path = Path(text).expanduser().resolve()
        if not path.is_dir():
            raise InputError(f"the checkout of {_WHAT[name]} is no folder: {path}", operand=f"--{name}", value=text)
        found[name] = path
    return found


def missing(source: Source, there: Mapping[str, Path]) -> str | None:
    """Why the code of ``source`` cannot be had; None if it can."""
    if source.checkout == "file":
        return None
    root = there.get(source.checkout)
    if root is None:
        return f"no checkout of {_WHAT[source.checkout]} (--{source.checkout} or {VARIABLES[source.checkout]})"
    if source.checkout == "tilebench" and importlib.util.find_spec("torch") is None:
        return "the kernels of Tilebench are in modules that import torch, which is not installed"
    if source.checkout != "library" and not source.revision and not (root / source.path).is_file():
        return f"the checkout of {_WHAT[source.checkout]} has no {source.path}"
    if source.revision and not _has(str(root), source.revision):
        if source.checkout == "library" and source.environment == "library" and (root / "src").is_dir():
            return None
        return f"the history of {_WHAT[source.checkout]} in this checkout has no {source.revision}"
    return None


def load(source: Source, kernel: str, there: Mapping[str, Path]) -> Any:
    """The kernel itself, with ``import nki`` meaning trnsim.

    Raises:
        InputError: the file or the kernel is not there.
        TrnsimError: what importing it runs into.
    """
    module = _module(source, str(there[source.checkout]) if source.checkout != "file" else "")
    found = getattr(module, kernel, None)
    if found is None:
        raise InputError(f"{source.path} has no kernel {kernel!r}")
    return found


@lru_cache(maxsize=64)
def _module(source: Source, root: str) -> ModuleType:
    import trnsim

    if source.checkout == "library":
        _library(root, source)
        return importlib.import_module(source.path)
    path = _file(source, root)
    trnsim.install(source=path)
    name = f"trnsim_validated_{len(sys.modules)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    environment = dict(os.environ)
    # What stands beside the file, and the packages of the checkout.
    sys.path[:0] = beside = [str(path.parent), *([root] if source.checkout == "tilebench" else [])]
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.path[: len(beside)]
        os.environ.clear()
        os.environ.update(environment)
    return module


def _file(source: Source, root: str) -> Path:
    path = Path(root) / source.path
    if source.revision:
        copy = _scratch() / f"{source.revision}-{Path(source.path).name}"
        copy.write_bytes(_git(root, "show", f"{source.revision}:{source.path}"))
        return copy
    if not source.block:
        return path
    found = candidate if source.checkout == "autocomp" else code_block
    text = found(path.read_text(encoding="utf-8"), source.block)
    if text is None:
        raise InputError(f"{path} has no code block {source.block} with a kernel")
    copy = _scratch() / f"{path.stem}-{source.block}.py"
    copy.write_text(text, encoding="utf-8")
    return copy


def code_block(text: str, number: int) -> str | None:
    """The ``number``-th Python block of reStructuredText (from 1) that defines an ``nki.jit`` kernel."""
    found = 0
    lines = text.split("\n")
    for start, line in enumerate(lines):
        head = re.match(r"( *)\.\. code-block:: python\s*$", line)
        if head is None:
            continue
        indent = len(head[1])
        body: list[str] = []
        for below in lines[start + 1 :]:
            if below.strip() and len(below) - len(below.lstrip()) <= indent:
                break
            body.append(below)
        margin = min((len(b) - len(b.lstrip()) for b in body if b.strip()), default=0)
        block = "\n".join(b[margin:] for b in body)
        found += "@nki.jit" in block
        if found == number and "@nki.jit" in block:
            return block
    return None


# What the harness of a search stands above each of its candidates.
_HARNESS = """import math
import neuronxcc.nki as nki
import neuronxcc.nki.isa as nisa
import neuronxcc.nki.language as nl
import neuronxcc.nki.typing as nt
import numpy as np
from neuronxcc.nki.language import par_dim
"""


def candidate(text: str, number: int) -> str | None:
    """The ``number``-th kernel (from 1) of a search's record, in which each stands as ``code='''...'''``."""
    found = re.findall(r"\bcode=('''.*?'''),\n", text, re.DOTALL)
    return f"{_HARNESS}\n{ast.literal_eval(found[number - 1])}" if len(found) >= number else None


def _library(root: str, source: Source) -> None:
    """Put nki-library on the path, and in place what its own suite puts in place before it imports kernels."""
    import trnsim

    path = str(_library_tree(root, source.revision) / "src")
    if path in sys.path:
        return
    if source.environment == "library":
        from trnsim.compat import modules

        trnsim.install()
        sys.modules.update({n: m for n, m in modules().items() if n.partition(".")[0] in ("nki", "neuron_dtypes")})
    else:
        trnsim.install(nki_version=source.environment)
    sys.path.insert(0, path)


def _library_tree(root: str, revision: str) -> Path:
    """The sources of a commit, or the checkout as it is when it has no history (a repaired copy)."""
    if not revision or not _has(root, revision):
        return Path(root)
    tree = _scratch() / f"library-{revision}"
    with tarfile.open(fileobj=io.BytesIO(_git(root, "archive", revision, "src"))) as archive:
        if hasattr(tarfile, "data_filter"):  # not in every 3.10
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(tree)  # noqa: S202 - made by git from a local checkout
    for path in sorted(tree.rglob("*.py")):
        _repair(path)
    return tree


_TWICE = re.compile(r'(^ +"""\n)\n((?:(?!""").*\n)*? +"""\n)', re.MULTILINE)


def _repair(path: Path) -> None:
    """Make a file importable whose only defect is that the end of a docstring stands in it twice.

    ``core/mlp/mlp.py`` of commit d2ad3a5 was published so. The second copy goes; no code changes.
    """
    text = path.read_text(encoding="utf-8")
    try:
        ast.parse(text)
    except SyntaxError:
        for found in _TWICE.finditer(text):
            shorter = text[: found.start(2) - 1] + text[found.end(2) :]
            try:
                ast.parse(shorter)
            except SyntaxError:
                continue
            path.write_text(shorter, encoding="utf-8")
            return


@lru_cache(maxsize=1)
def _scratch() -> Path:
    path = Path(tempfile.mkdtemp(prefix="trnsim-validate-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@lru_cache(maxsize=32)
def _has(root: str, revision: str) -> bool:
    """Whether ``root`` is itself the top of a clone that has ``revision``."""
    if not (Path(root) / ".git").exists():
        return False
    try:
        _git(root, "cat-file", "-e", f"{revision}^{{commit}}")
    except InputError:
        return False
    return True


def _git(root: str, *arguments: str) -> bytes:
    git = shutil.which("git")
    if git is None:
        raise InputError("git is needed to read an older version out of a checkout, and is not installed")
    done = subprocess.run([git, "-C", root, *arguments], capture_output=True, check=False)  # noqa: S603 - no shell
    if done.returncode:
        raise InputError(f"git {' '.join(arguments)} in {root}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
