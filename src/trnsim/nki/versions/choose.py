"""Which release of NKI a program is written for: what is given, the environment, or what its source can only mean.

The source decides when nothing is given. Every name, keyword and idiom of the program that not all releases have
leaves fewer of them; the newest that has all of them is taken. A program that uses only what every release has, or
things that no single release has, is one for the latest; the calls themselves then say what is wrong.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trnsim import releases
from trnsim.releases import LATEST, VERSIONS, Release, as_version, spell, versions

VARIABLE = "TRNSIM_NKI_VERSION"
_ENUMS = ("engine", "oob_mode", "reduce_cmd")  # numbers for dge_mode run in every release
_BUFFERS = ("sbuf", "psum", "hbm", "private_hbm", "shared_hbm")
_KEYWORDS = ("sbuf", "psum", "hbm")  # in kernels of NKI 0.2: sbuf.view(dtype, shape)
_MODULES = ("nki", "nki.isa", "nki.language", "nki.collectives")


@dataclass(frozen=True)
class Evidence:
    """Something in a source that only some releases have."""

    line: int
    what: str
    versions: str


def choose(nki_version: str | None = None, source: str | Path | None = None) -> Release:
    """The release that is given, that of the environment variable, that of the source, or the latest.

    Args:
        nki_version: such as ``0.3``.
        source: the program's file; Python files beside it that it imports count too.

    Raises:
        InputError: a release that is not known.
    """
    if nki_version is not None:
        return Release(as_version(nki_version), "given")
    text = os.environ.get(VARIABLE)
    if text:
        return Release(as_version(text), VARIABLE)
    return _found(Path(source)) if source is not None else Release()


def _found(path: Path) -> Release:
    left: tuple[str, ...] = VERSIONS[1:]
    reason = ""
    for file in _files(path):
        for item in evidence(file):
            fewer = tuple(v for v in left if v in versions(item.versions))
            if not fewer:
                return Release()
            if LATEST in left and LATEST not in fewer:
                reason = f"{file.name}:{item.line} uses {item.what}, of {spell(item.versions)}"
            left = fewer
    return Release(left[-1], reason) if reason else Release()


def _files(path: Path) -> list[Path]:
    """``path`` and, once each, the Python files that it imports from its own folder."""
    found, waiting = [], [path]
    while waiting:
        file = waiting.pop(0)
        if file in found:
            continue
        found.append(file)
        for name in _imported(file):
            near = path.parent.joinpath(*name.split("."))
            waiting += [p for p in (near.with_suffix(".py"), near / "__init__.py") if p.is_file()]
    return found


def _tree(file: Path) -> ast.Module | None:
    try:
        return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None  # running it will say


def _imported(file: Path) -> Iterator[str]:
    tree = _tree(file)
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def evidence(file: Path) -> list[Evidence]:
    """What in a file not every release of NKI has, by line. Only names reached through ``import nki`` count."""
    tree = _tree(file)
    if tree is None:
        return []
    finder = _Finder()
    for node in ast.walk(tree):
        finder.imports(node)
        finder.names(node)
    for node in ast.walk(tree):
        finder.uses(node)
    return sorted(finder.found, key=lambda item: item.line)


class _Finder:
    """Collects evidence from the nodes of a file; ``bound`` maps its names to those of the API."""

    def __init__(self) -> None:
        self.bound: dict[str, str] = {}
        self.own: set[str] = set()
        self.found: list[Evidence] = []

    def imports(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "nki":
                    self.bound[alias.asname or "nki"] = alias.name if alias.asname else "nki"
        elif isinstance(node, ast.ImportFrom) and node.module in _MODULES and not node.level:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                self.bound[alias.asname or alias.name] = name
                self._name(node, name)

    def names(self, node: ast.AST) -> None:
        """What the file itself gives a meaning: assigned, imported, or a parameter."""
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            self.own.add(node.id)
        elif isinstance(node, ast.arg):
            self.own.add(node.arg)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            self.own.update(alias.asname or alias.name for alias in node.names)

    def uses(self, node: ast.AST) -> None:
        if isinstance(node, ast.Attribute):
            self._name(node, self._resolve(node))
            memory = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr == "view" and memory in _KEYWORDS and memory not in self.own and self.bound:
                self._add(node, f"the keyword {memory}", "0.2")
        elif isinstance(node, ast.Call):
            function = self._resolve(node.func)
            if function:
                self._call(node, function)

    def _resolve(self, node: ast.AST) -> str:
        if isinstance(node, ast.Name):
            return self.bound.get(node.id, "")
        if isinstance(node, ast.Attribute):
            inner = self._resolve(node.value)
            return f"{inner}.{node.attr}" if inner else ""
        return ""

    def _add(self, node: ast.expr | ast.ImportFrom, what: str, found: str) -> None:
        if any(v != "0.1" for v in versions(found)):  # what only NKI 0.1 has is an error in every view
            self.found.append(Evidence(node.lineno, what, found))

    def _name(self, node: ast.expr | ast.ImportFrom, name: str) -> None:
        row = releases.find_name(name) if name else None
        if row is not None:
            self._add(node, name, row.versions)

    def _call(self, node: ast.Call, function: str) -> None:
        for given in node.keywords:
            if given.arg is None:
                continue
            row = releases.find_keyword(function, given.arg)
            if row is not None and row.evidence:
                self._add(node, f"{function}({given.arg}=)", row.versions)
            value = given.value.value if isinstance(given.value, ast.Constant) else None
            if given.arg in _ENUMS and type(value) is int and function.startswith("nki.isa."):
                self._add(node, f"{given.arg}={value}", "0.2")
            if given.arg == "buffer" and value in _BUFFERS and function.startswith("nki.language."):
                self._add(node, f"buffer={value!r}", "0.2")
        if any(isinstance(a, ast.Starred) for a in node.args):
            return
        keywords = {k.arg for k in node.keywords}
        third = node.args[2] if len(node.args) > 2 else None
        if function == "nki.isa.affine_select":
            if (len(node.args) > 5 and "offset" not in keywords) or (
                third is not None and "channel_multiplier" in keywords
            ):
                old = len(node.args) > 5 and self._is_operator(node.args[5]) is False
                if old or "channel_multiplier" in keywords:
                    self._add(node, "affine_select(dst, pattern, offset, ...)", "0.2")
        elif function == "nki.isa.dma_compute" and third is not None:
            fourth = node.args[3] if len(node.args) > 3 else None
            if isinstance(third, (ast.List, ast.Tuple)) or (fourth is not None and self._is_operator(fourth)):
                self._add(node, "dma_compute(dst, srcs, scales, reduce_op)", "0.2")

    def _is_operator(self, node: ast.expr) -> bool:
        return self._resolve(node).startswith("nki.language.")
