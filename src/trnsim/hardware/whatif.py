"""What if: a chip with facts or timing constants that a user set.

``what_if("trn3", {"hbm.bandwidth": "6 TB/s"})`` is a chip like any other. Its name holds the changes:
``load_chip("trn3[hbm.bandwidth=6TB/s]")`` gives the same chip, in another process too. What is predicted on it has the
support ``what-if``.

A path is the dotted name of a fact in the chip's file (``hbm.bandwidth``, ``core.engines.vector.clock``) or of a timing
constant (``dma.packet``). Its last words, with dots or underscores, do where they fit one path only: ``hbm_bandwidth``,
``vector_clock``.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trnsim.errors import InputError

from .document import ROOT, find, read
from .load import chip_of, load_chip, load_system
from .model import Change, Chip, Fact, Table
from .quantity import DURATION, RATE, SIZE, Dimension
from .rules import CHIP_SCHEMA, Rule
from .timing_constants import (
    SET_BY_USER,
    DmaTiming,
    EngineTiming,
    GpsimdTiming,
    ScalarTiming,
    SequencerTiming,
    SyncTiming,
    TensorTiming,
    VectorTiming,
    constants_file,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .document import Document

_TIMES = {"ps": 1.0, "ns": 1e3, "us": 1e6}
_SECTIONS: dict[str, type[EngineTiming | SequencerTiming | DmaTiming]] = {
    "tensor": TensorTiming, "vector": VectorTiming, "scalar": ScalarTiming, "gpsimd": GpsimdTiming,
    "sync": SyncTiming, "sequencer": SequencerTiming, "dma": DmaTiming,
}  # fmt: skip
_PERIODS = ("tensor.throttle_window",)
# Rates and limits of the timing model, for facts that state the same as the vendor publishes it.
_TIMED_BY = {
    "dma_engines": "core.dma.engines",
    "dma_bandwidth": "dma.sustained_bytes_per_ns",
    "core.dma.bandwidth_per_engine": "dma.sustained_bytes_per_ns",
    "core.dma.peak_bandwidth_per_engine": "dma.bytes_per_ns",
    "core.engines.vector.elements_per_cycle": "vector.float32_sbuf_mode",
    "core.engines.vector.elements_per_cycle_narrow": "vector.narrow_mode",
    "core.engines.scalar.elements_per_cycle_narrow": "scalar.narrow_mode",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One change, understood: ``value`` is a fact's in base units, a timing constant's in the unit of its file."""

    change: Change
    value: Any
    constant: bool


def what_if(chip: str | Path | Chip, changes: Mapping[str, str | float]) -> Chip:
    """``chip`` with facts or timing constants set by the user.

    Args:
        chip: a name, a file, or a chip that was loaded (whose own changes are kept).
        changes: values by path. Text has a unit wherever the fact has one: ``{"hbm.bandwidth": "6 TB/s"}``.

    Raises:
        InputError: a path that the chip does not have (with the nearest that it has), one that is no number, a wrong
            unit, or a value out of range.
    """
    base, before = _parts(reference(chip) if isinstance(chip, Chip) else str(chip))
    document = _document(base)
    merged = {s.change.path: s.change.value for s in _settings(document, before)}
    merged.update((s.change.path, s.change.value) for s in _settings(document, [*_texts(changes)]))
    return _changed(base, [*merged.items()])


def reference(chip: Chip) -> str:
    """What ``load_chip`` gives ``chip`` again for: its name, for that of a user's file the path, and the changes."""
    base = chip.name.partition("[")[0]
    inside = f"[{','.join(f'{c.path}={c.value}' for c in chip.changes)}]" if chip.changes else ""
    return f"{base if ROOT in Path(chip.path).parents else chip.path}{inside}"


def choose(chip: str | None, settings: Sequence[str], default: str | None = None) -> str | None:
    """The name of the chip that ``--chip`` and ``--set`` options ask for; ``chip`` itself without settings.

    ``settings`` are ``PATH=VALUE`` or ``CHIP.PATH=VALUE``; a chip that is named there is chosen where ``chip`` is None.

    Raises:
        InputError: as ``what_if``; settings of several chips, or of another than ``chip``; or none is named.
    """
    if not settings:
        return chip if chip is not None else default
    changes: dict[str, str] = {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        path, value = path.strip(), value.strip()
        if not (equals and path and value):
            raise InputError(f"--set {setting!r}: write PATH=VALUE, such as trn3.hbm.bandwidth=6TB/s", operand="--set")
        named, _, rest = path.partition(".")
        if rest and _is_chip(named):
            path = rest
            if chip is not None and load_chip(chip).name.partition("[")[0] != load_chip(named).name:
                raise InputError(f"--set {setting}: the chip is {chip}", operand="--set", value=named, limit=chip)
            chip = chip if chip is not None else named
        if path in changes:
            raise InputError(f"--set: {path} is set twice", operand="--set", value=path)
        changes[path] = value
    chip = chip if chip is not None else default
    if chip is None:
        raise InputError("--set: say of which chip, as trn3.hbm.bandwidth=6TB/s or with --chip", operand="--set")
    return reference(what_if(chip, changes))


def chip_named_in(setting: str) -> str | None:
    """The chip that ``CHIP.PATH=VALUE`` begins with; None where it begins with the path."""
    named, _, rest = setting.partition("=")[0].strip().partition(".")
    return named if rest and _is_chip(named) else None


def changes_of(name: str) -> tuple[str, dict[str, str]]:
    """A name without its changes, and these by path. Raises ``InputError`` where they are not well written."""
    base, changes = _parts(name)
    return base, dict(changes)


def systems_with(systems: Sequence[str], settings: Sequence[str] | None) -> list[str]:
    """Names of systems with what ``--set`` options change of their chips: ``CHIP.PATH=VALUE`` of those with that chip,
    ``PATH=VALUE`` of all.

    Raises:
        InputError: as ``what_if``; settings of a chip that none of the systems has.
    """
    found = []
    used: set[str] = set()
    for name in systems:
        chip = load_system(name).chip
        mine = []
        for setting in settings or ():
            named = chip_named_in(setting)
            if named is None or load_chip(named).name == chip.name.partition("[")[0]:
                mine.append(setting)
                used.add(setting)
        if not mine:
            found.append(name)
            continue
        chosen = choose(chip.name, mine)
        assert chosen is not None
        inside = chosen.partition("[")[2]
        found.append(f"{name.partition('[')[0]}[{inside}")
    for setting in settings or ():
        if setting not in used:
            raise InputError(
                f"--set {setting}: none of the systems has this chip", operand="--set", limit=list(systems)
            )
    return found


def load_changed(name: str) -> Chip:
    """The chip of a name with changes: ``trn3[hbm.bandwidth=6TB/s]``. Raises as ``what_if``.

    One of a built-in chip is made once; a user's file is read each time.
    """
    base, changes = _parts(name)
    return (_changed_built_in if ROOT in find(base, CHIP_SCHEMA).parents else _changed)(base, tuple(changes))


def without_effect(chip: Chip) -> tuple[str, ...]:
    """Of the changes, those that no kernel's time depends on, each with the constant that it does, if there is one."""
    found = []
    for change in chip.changes:
        key = change.path
        decides = key in chip.constants or key == "hbm.bandwidth" or key.startswith(("core.sbuf.", "core.psum."))
        if not (decides or key == "core.dma.engines" or re.fullmatch(r"core\.engines\.\w+\.clock", key)):
            instead = _TIMED_BY.get(key)
            found.append(f"{key}; {instead} does" if instead else key)
    return tuple(found)


def _parts(name: str) -> tuple[str, list[tuple[str, str]]]:
    if not name.endswith("]"):
        return name, []
    base, _, inside = name[:-1].partition("[")
    items = [item.partition("=") for item in inside.split(",") if item.strip()]
    if not base or not items or not all(equals and path.strip() and value.strip() for path, equals, value in items):
        raise InputError(f"{name!r} is no chip: changes are written as NAME[PATH=VALUE,PATH=VALUE]", value=name)
    return base, [(path.strip(), value.strip()) for path, _, value in items]


def _changed(base: str, changes: Sequence[tuple[str, str]]) -> Chip:
    document = _document(base)
    settings = _settings(document, changes)
    facts = {s.change.path: s for s in settings if not s.constant}
    names = {**document.names, "name": _spelled(document.names["name"], settings)}
    changed = replace(
        document,
        names={**names, "title": f"{document.names['title']}, changed", "aliases": []},
        values={**document.values, **{path: s.value for path, s in facts.items()}},
        facts={
            **document.facts,
            **{
                path: Fact(
                    value=s.change.value, source=SET_BY_USER, date="", why=f"instead of {s.change.before}",
                    confidence="what-if",
                )
                for path, s in facts.items()
            },
        },
    )  # fmt: skip
    chip = chip_of(changed)
    return replace(
        chip,
        changes=tuple(s.change for s in settings),
        constants=Table({s.change.path: s.value for s in settings if s.constant}),
    )


_changed_built_in = cache(_changed)


def _document(base: str) -> Document:
    return read(find(base, CHIP_SCHEMA), CHIP_SCHEMA)


def _spelled(base: str, settings: Sequence[Setting]) -> str:
    return f"{base}[{','.join(f'{s.change.path}={s.change.value}' for s in settings)}]"


def _settings(document: Document, changes: Sequence[tuple[str, str]]) -> list[Setting]:
    """The changes with their paths in full, in the order of these."""
    version = document.names.get("core.version")
    facts = {k: rule for k, rule in CHIP_SCHEMA.rules.items() if _has(k, version)}
    constants = _constants(version) if version else {}
    found: dict[str, Setting] = {}
    for given, text in changes:
        path = _resolved(document, given, [*facts, *constants])
        if path in found and found[path].change.value != _squeezed(text):
            raise InputError(f"{document.names['name']}: {path} is set twice", value=(found[path].change.value, text))
        if path in facts:
            old = document.facts.get(path)
            before = old.value if old is not None else "not known"
            value = _fact(document, path, facts[path], text)
        else:
            entry = constants[path]
            before = f"{entry['value']:g} {entry['unit']}"
            value = _constant(document, path, entry, text)
        found[path] = Setting(
            change=Change(path=path, value=_squeezed(text), before=before), value=value, constant=path in constants
        )
    return [found[path] for path in sorted(found)]


def _has(key: str, version: str | None) -> bool:
    """Whether a chip with a NeuronCore of ``version`` (None: another kind) has this fact, be it known or not."""
    return key not in ("clock", "cache") if version else not key.startswith("core.")


def _texts(changes: Mapping[str, str | float]) -> Iterator[tuple[str, str]]:
    for path, value in changes.items():
        yield path, value if isinstance(value, str) else f"{value:.17g}" if isinstance(value, float) else str(value)


@cache
def _constants(version: str) -> dict[str, dict[str, Any]]:
    """Timing constants that may be set, by path: all but errors and clocks, which time nothing on the chip."""
    return {
        f"{section}.{name}": entry
        for section, table in constants_file(version).items()
        if section != "clocks"
        for name, entry in table.items()
        if entry["unit"] not in ("percent", "mode")
    }


def _resolved(document: Document, given: str, known: Sequence[str]) -> str:
    name = document.names["name"]
    words = _words(given)
    if given in known:
        return given
    whole = [path for path in known if _words(path) == words]
    fits = whole or [path for path in known if any(_words(end) == words for end in _ends(path))]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise InputError(f"{name}: {given!r} may be {', '.join(fits)}: say which", operand="--set", value=given)
    near = difflib.get_close_matches(".".join(words), known, n=3, cutoff=0.5)
    last = difflib.get_close_matches(words[-1] if words else "", [_words(path)[-1] for path in known], n=1)
    near += [path for path in known if last and _words(path)[-1] == last[0] and path not in near][: 4 - len(near)]
    nearest = f"; the nearest are {', '.join(near)}" if near else ""
    raise InputError(f"{name} has no {given!r}{nearest}", operand="--set", value=given)


def _ends(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[i:]) for i in range(1, len(parts))]


def _words(path: str) -> list[str]:
    """``hbm.bandwidth`` and ``hbm_bandwidth`` are the same words."""
    return [word for word in re.split(r"[._\s-]+", path.lower()) if word]


def _fact(document: Document, path: str, rule: Rule, text: str) -> Any:
    if isinstance(rule.kind, Dimension):
        try:
            value: float = rule.kind.parse(text)
        except ValueError as error:
            _fail(document, path, str(error), text)
    elif rule.kind in ("count", "ratio"):
        value = _number(document, path, text, whole=rule.kind == "count")
    else:
        _fail(document, path, "is not a single number, and only those can be set", text)
    if not rule.low <= value <= rule.high:
        unit = f" {rule.kind.base_unit}" if isinstance(rule.kind, Dimension) else ""
        _fail(document, path, f"is out of range ({rule.low:g} to {rule.high:g}{unit})", text)
    return value


def _constant(document: Document, path: str, entry: Mapping[str, Any], text: str) -> float:
    unit, before = entry["unit"], entry["value"]
    try:
        if unit in _TIMES:
            value = DURATION.parse(text) / _TIMES[unit]
        elif unit == "B/ns":
            value = RATE.parse(text) / 1e9
        elif unit == "bytes":
            value = SIZE.parse(text)
        else:
            bare = text.removesuffix(unit).strip() if text.endswith(unit) else text
            value = _number(document, path, bare, whole=_whole(path))
    except ValueError as error:
        _fail(document, path, str(error), text)
    most = 1.0 if unit in ("fraction", "flag") else math.inf
    may_be_0 = before == 0 or (unit in (*_TIMES, "cycles", "flag", "ns/descriptor") and path not in _PERIODS)
    if not 0 <= value <= most or (value == 0 and not may_be_0):
        _fail(document, path, f"is out of range ({'0' if may_be_0 else 'more than 0'} to {most:g} {unit})", text)
    return value


def _whole(path: str) -> bool:
    section, _, name = path.partition(".")
    if section not in _SECTIONS:
        return True
    return any(f.name == name and f.type == "int" for f in fields(_SECTIONS[section]))


def _number(document: Document, path: str, text: str, *, whole: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        _fail(document, path, "is not a number", text)
    if not math.isfinite(value) or (whole and value != int(value)):
        _fail(document, path, "must be a whole number" if whole else "must be a finite number", text)
    return int(value) if whole else value


def _fail(document: Document, path: str, problem: str, text: str) -> NoReturn:
    raise InputError(f"{document.names['name']}: {path}: {text!r} {problem}", operand=path, value=text)


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _is_chip(name: str) -> bool:
    try:
        find(name, CHIP_SCHEMA)
    except InputError:
        return False
    return True
