"""What a sweep varies: keyword arguments of the kernel, and constants of its file.

A constant is a name that the module, or the kernel's own body, assigns exactly once with a plain assignment (in the
body not from a call, which makes a tensor). Its expression is replaced before the file is run, so what is computed from
it follows. A name that is several of these is what the kernel's body means by it: its argument, its own constant, the
module's.
"""

from __future__ import annotations

import ast
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trnsim.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import CodeType

KEYWORD, MODULE, BODY = "keyword argument", "module constant", "constant in the kernel"
_OPENING, _CLOSING, _QUOTES = "([{", ")]}", "'\""


@dataclass(frozen=True)
class Parameter:
    """A name that is varied: what it is in the kernel's file, and its values as they were written."""

    name: str
    kind: str
    values: tuple[str, ...]


class KernelFile:
    """The syntax tree of the file that holds a kernel.

    Raises:
        InputError: the file is not there, or not Python.
    """

    def __init__(self, path: str, kernel: str) -> None:
        from trnsim.script import read_source

        self.path, self.kernel = path, kernel
        self.source = read_source(path)
        tree = self._tree()
        found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == kernel]
        self.keywords: list[str] = []
        body: dict[str, int] = {}
        if found:
            a = found[-1].args
            self.keywords = [x.arg for x in (*a.args, *a.kwonlyargs)]
            made = {_target(n) for n in _assignments(found[-1].body) if isinstance(n.value, ast.Call)}
            body = {n: count for n, count in _assigned(found[-1].body).items() if n not in made}
        self.module = [n for n, count in _assigned(tree.body).items() if count == 1]
        self.body = [n for n, count in body.items() if count == 1]

    def _tree(self) -> ast.Module:
        return ast.parse(self.source, self.path)

    def kind(self, name: str) -> str:
        """What ``name`` is.

        Raises:
            InputError: nothing that can be varied; the candidates are listed.
        """
        for kind, names in ((KEYWORD, self.keywords), (BODY, self.body), (MODULE, self.module)):
            if name in names:
                return kind
        known = "; ".join(
            f"{title} {', '.join(names)}"
            for title, names in (
                ("keyword arguments", self.keywords),
                ("constants in the kernel", self.body),
                ("module constants", self.module),
            )
            if names
        )
        raise InputError(f"--param {name}: {self.path} has no such name for {self.kernel}; it has {known or 'none'}")

    def compile(self, constants: Mapping[str, str]) -> CodeType:
        """The file's code with the expressions of ``constants``, names and their new expressions, replaced."""
        tree = self._tree()
        bodies = {MODULE: tree.body}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == self.kernel:
                bodies[BODY] = node.body
        for name, text in constants.items():
            for node in _assignments(bodies[self.kind(name)]):
                if _target(node) == name:
                    new = ast.parse(text.strip(), mode="eval").body
                    for part in ast.walk(new):
                        ast.copy_location(part, node)
                    node.value = new
        return compile(tree, self.path, "exec")


def parse_parameters(texts: Sequence[str], file: KernelFile) -> list[Parameter]:
    """``NAME=1,2,4`` for each parameter.

    Raises:
        InputError: one is not written so, is given twice, or names nothing that can be varied.
    """
    found: list[Parameter] = []
    for text in texts:
        name, equals, rest = (part.strip() for part in text.partition("="))
        values = tuple(dict.fromkeys(split_values(rest)))
        if not equals or not name.isidentifier() or not values or not all(values):
            raise InputError(f"--param {text!r}: write NAME=VALUE,VALUE,...")
        if any(p.name == name for p in found):
            raise InputError(f"--param {name} is given twice")
        kind = file.kind(name)
        if kind != KEYWORD:
            for value in values:
                try:
                    ast.parse(value, mode="eval")
                except SyntaxError:
                    raise InputError(f"--param {name}: {value!r} is not a Python expression") from None
        found.append(Parameter(name, kind, values))
    return found


def split_values(text: str) -> list[str]:
    """``text`` at its commas, but those within brackets or quotes."""
    values, depth, quote, current = [], 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in _QUOTES:
            quote = letter
        else:
            depth += (letter in _OPENING) - (letter in _CLOSING)
        if letter == "," and not depth and not quote:
            values.append(current.strip())
            current = ""
        else:
            current += letter
    return [*values, current.strip()]


def variants(parameters: Sequence[Parameter]) -> Iterator[dict[str, str]]:
    """The Cartesian product of all values, the last parameter fastest."""
    names = [p.name for p in parameters]
    for values in itertools.product(*(p.values for p in parameters)):
        yield dict(zip(names, values, strict=True))


def _assignments(body: Sequence[ast.stmt]) -> Iterator[ast.Assign | ast.AnnAssign]:
    for node in body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and _target(node):
            yield node


def _target(node: ast.Assign | ast.AnnAssign) -> str:
    """The one plain name that a statement assigns a value to, else an empty string."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    if len(targets) == 1 and isinstance(targets[0], ast.Name) and node.value is not None:
        return targets[0].id
    return ""


def _assigned(body: Sequence[ast.stmt]) -> dict[str, int]:
    """How often each name is bound in ``body``, nested blocks included, if a plain assignment of it binds it once."""
    plain = {_target(n) for n in _assignments(body)}
    counts: dict[str, int] = {}
    for statement in body:
        nodes = [statement] if not isinstance(statement, (ast.FunctionDef, ast.ClassDef)) else []
        for node in itertools.chain.from_iterable(ast.walk(n) for n in nodes):
            if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
                counts[node.id] = counts.get(node.id, 0) + 1
    return {name: count for name, count in counts.items() if name in plain}
