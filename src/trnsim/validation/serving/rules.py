"""Which published serving runs count: the rules of ``subset.toml`` with the tests that expressions cannot say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trnsim.errors import InternalError
from trnsim.hardware import load_system
from trnsim.validation.subset import first, subset

if TYPE_CHECKING:
    from trnsim.validation.serving.rows import Row

SYSTEMS: dict[str, str] = subset("serving")["systems"]
FILL: dict[str, Any] = subset("serving")["fill"]


def stack_of(row: Row) -> tuple[str, str]:
    """(what a row was served with, the stack of the catalogue that describes it); ("", ""): none that is known."""
    rules = subset("serving")
    found = first(rules["stacks"], row, rules, _no_test)
    return ("", "") if found is None else (found["name"], found.get("like", found["name"]))


GRAPHS: frozenset[str] = frozenset(rule["name"] for rule in subset("serving")["stacks"] if rule.get("graphs"))


def _no_test(name: str, _limit: float) -> bool:
    raise InternalError(f"a rule for stacks asks for the test {name!r}")


class Rules:
    """The rules, for rows among ``rows``."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = list(rows)

    def excluded(self, row: Row) -> str | None:
        """The reason why a row is left out, or None."""
        rules = subset("serving")
        found = first(rules["exclude"], row, rules, lambda name, _limit: self._test(name)(row))
        return None if found is None else str(found["reason"])

    def _test(self, name: str) -> Callable[[Row], bool]:
        tests: dict[str, Callable[[Row], bool]] = {
            "no stack": lambda row: not stack_of(row)[0],
            "no time": lambda row: not row.number("tpot_ms") and row.counters is None,
            "contradicts": _contradicts,
            "beyond": _beyond,
            "repeated": self._repeated,
        }
        if name not in tests:
            raise InternalError(f"no test {name!r} of serving rows")
        return tests[name]

    def _repeated(self, row: Row) -> bool:
        shortest = self._shortest.get(_run(row))
        return shortest is not None and (row.number("input_len") or 0.0) > shortest

    @cached_property
    def _shortest(self) -> dict[tuple[str, ...], float]:
        """The shortest prompt of each run that has one TPOT, marked as a range, for several."""
        found: dict[tuple[str, ...], list[float]] = {}
        for row in self._rows:
            length = row.number("input_len")
            if length is not None and "range" in row["tpot_stat"]:
                found.setdefault(_run(row), []).append(length)
        return {run: min(lengths) for run, lengths in found.items()}


def _run(row: Row) -> tuple[str, ...]:
    return tuple(row[c] for c in ("model", "chip", "framework", "tp", "batch_or_concurrency", "tpot_ms", "source"))


def _contradicts(row: Row) -> bool:
    """Of Nvidia systems: degrees that do not multiply to the chips, or those of experts to other ranks, or other chips
    in the name.
    """
    if load_system(SYSTEMS[row["chip"]]).chip.family != "nvidia":
        return False
    ranks = row.count("tp") * row.count("dp") * row.count("pp")
    named = re.search(r"_tp(\d+)_", row["id"])
    if named is not None and int(named[1]) != row.count("n_chips"):
        return True
    moe = row.moe
    return ranks != row.count("n_chips") or (moe is not None and moe != (1, 1) and moe[0] * moe[1] != ranks)


def _beyond(row: Row) -> bool:
    """A replica of more chips than a system has: servers of eight are not joined so, and the columns are mistaken."""
    return row.count("n_chips") > load_system(SYSTEMS[row["chip"]]).chip_count
