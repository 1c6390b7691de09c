"""What each release of NKI has: names, keywords and the order of arguments, as data, and what to say of a wrong call.

One table (``names.py``, ``signatures.py``) serves the views of older releases (``trnsim.nki.versions``), the search for
a kernel's release in its source, and the messages about calls that belong to another release. Sources: the API stubs
of the public documentation at the tags of SDK 2.27 to 2.32, its migration and update guides, and its release notes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trnsim.errors import CompilerError, InputError
from trnsim.releases.names import NAMES, Name
from trnsim.releases.signatures import KEYWORDS, SIGNATURES, Keyword, Signature
from trnsim.releases.span import LATEST, VERSIONS, spell, versions


@dataclass(frozen=True)
class Release:
    """The release of NKI that a kernel is written for, and how that was decided (``default`` if nobody did)."""

    version: str = LATEST
    how: str = "default"

    def before(self, version: str) -> bool:
        """Whether this release is older than ``version``."""
        return VERSIONS.index(self.version) < VERSIONS.index(version)


DEFAULT = Release()


class MissingNameError(CompilerError, AttributeError):
    """A name that this release of NKI does not have."""


class CallError(CompilerError, TypeError):
    """Arguments that a call does not take in this release of NKI."""


class _Missing:
    def __repr__(self) -> str:
        return "<missing>"


MISSING: Any = _Missing()  # the default of arguments that have none


def as_version(text: str) -> str:
    """``0.3``, ``0.3.0`` or ``nki 0.3`` as ``0.3``.

    Raises:
        InputError: no view of that release exists. NKI 0.1 needs none: it is imported as ``neuronxcc.nki``.
    """
    short = ".".join(str(text).strip().lower().removeprefix("nki").strip().split(".")[:2])
    if short == "0.1":
        raise InputError("NKI 0.1 is not chosen but imported: import neuronxcc.nki", value=text, limit=VERSIONS[1:])
    if short not in VERSIONS:
        raise InputError(f"no release {text!r} of NKI is known", operand="nki_version", value=text, limit=VERSIONS[1:])
    return short


_BY_NAME: dict[str, Name] = {row.name: row for row in NAMES}
_BY_FUNCTION: dict[str, list[Signature]] = {}
for _row in SIGNATURES:
    _BY_FUNCTION.setdefault(_row.function, []).append(_row)
_BY_KEYWORD: dict[tuple[str, str], Keyword] = {(row.function, row.keyword): row for row in KEYWORDS}


def find_name(name: str) -> Name | None:
    """The row of a name (``nki.isa.topk``) that not every release has."""
    return _BY_NAME.get(name)


def find_signature(function: str, version: str) -> Signature | None:
    """How ``function`` was called in a release, if otherwise than in the latest."""
    return next((row for row in _BY_FUNCTION.get(function, ()) if version in versions(row.versions)), None)


def find_keyword(function: str, keyword: str) -> Keyword | None:
    """The row of a keyword, that of the function before that of its whole module."""
    module = function.rpartition(".")[0]
    return _BY_KEYWORD.get((function, keyword)) or _BY_KEYWORD.get((f"{module}.*", keyword))


def exists(name: str, version: str) -> bool:
    """Whether a release has a name that trnsim has."""
    row = _BY_NAME.get(name)
    return row is None or version in versions(row.versions)


def missing_name(module: str, name: str, version: str = LATEST) -> MissingNameError:
    """The error for ``module.name``."""
    row = _BY_NAME.get(f"{module}.{name}")
    if row is None:
        return MissingNameError(f"{module} has no {name!r} in any release of NKI that is known", operand=name)
    where = " (neuronxcc.nki)" if versions(row.versions) == ("0.1",) else ""
    text = f"{module}.{name} is not in NKI {version}: it belongs to {spell(row.versions)}{where}"
    if version in versions(row.versions):
        text = f"{module}.{name} of NKI {version} is not part of trnsim"
    return MissingNameError(f"{text}; {row.instead}" if row.instead else text, operand=name)


def no_attribute(module: str, name: str, version: str = LATEST) -> AttributeError:
    """What a module's ``__getattr__`` raises."""
    if name.startswith("__"):
        return AttributeError(f"module {module!r} has no attribute {name!r}")
    return missing_name(module, name, version)


def wrong_keywords(function: str, given: Iterable[str], version: str, known: Iterable[str]) -> CallError:
    """The error for keywords that ``function`` does not have in a release."""
    keyword = min(given)
    row = find_keyword(function, keyword)
    text = f"{function} of NKI {version} has no keyword {keyword!r}"
    if row is not None:
        where = " (neuronxcc.nki)" if versions(row.versions) == ("0.1",) else ""
        text += f"; {spell(row.versions)} {'has' if '-' not in row.versions and ' ' not in row.versions else 'have'} it"
        text += where + (f"; {row.instead}" if row.instead else "")
    short = function.rpartition(".")[2]
    return CallError(text, instruction=short, operand=keyword, limit=", ".join(known))


def missing_arguments(function: str, names: Iterable[str], version: str, known: Iterable[str]) -> CallError:
    """The error for a call that lacks arguments: often one in the style of another release."""
    short = function.rpartition(".")[2]
    text = f"{function} of NKI {version} needs {', '.join(names)}"
    return CallError(text + order_hint(function, version), instruction=short, limit=f"({', '.join(known)})")


def too_many_arguments(function: str, version: str, known: Iterable[str]) -> CallError:
    """The error for more positional arguments than there are."""
    short = function.rpartition(".")[2]
    text = f"{function} of NKI {version} takes fewer positional arguments"
    return CallError(text + order_hint(function, version), instruction=short, limit=f"({', '.join(known)})")


def given_twice(function: str, name: str, version: str) -> CallError:
    """The error for an argument given by position and by name."""
    short = function.rpartition(".")[2]
    text = f"{function} of NKI {version} got {name!r} by position and by name"
    return CallError(text + reordered_hint(function), instruction=short, operand=name)


def reordered_hint(function: str) -> str:
    """How releases order the arguments of ``function`` where they differ, as the end of a message."""
    return "".join(
        f"; in {spell(row.versions)} it is {function.rpartition('.')[2]}{row.text}"
        for row in _BY_FUNCTION.get(function, ())
        if row.reordered
    )


def order_hint(function: str, version: str = LATEST) -> str:
    """The same, and that NKI 0.1 had no ``dst``."""
    old = function.startswith("nki.isa.") and version != "0.1" and exists(function, "0.1")
    if function.startswith("nki.isa.") and version == "0.1":
        return "; a dst before the other arguments is of NKI 0.2 and later (import nki)"
    hint = "; calls without dst that return a tile are NKI 0.1's (neuronxcc.nki)" if old else ""
    return reordered_hint(function) + hint


def foreign_tensor(value: Any) -> str:
    """What a value that is no tensor of the running kernel is, if it comes from another release of NKI."""
    kind = type(value)
    if ".versions.beta1" in kind.__module__:
        return "; it is of NKI 0.1 (neuronxcc.nki), and a kernel uses one release of NKI"
    if kind.__name__ == "NkiInstruction":
        return "; since NKI 0.2 a call of nki.isa writes its dst and returns no tile"
    return ""


__all__ = [
    "DEFAULT",
    "LATEST",
    "MISSING",
    "VERSIONS",
    "CallError",
    "Keyword",
    "MissingNameError",
    "Name",
    "Release",
    "Signature",
    "as_version",
    "exists",
    "find_keyword",
    "find_name",
    "find_signature",
    "foreign_tensor",
    "given_twice",
    "missing_arguments",
    "missing_name",
    "no_attribute",
    "order_hint",
    "reordered_hint",
    "spell",
    "too_many_arguments",
    "versions",
    "wrong_keywords",
]  # fmt: skip
