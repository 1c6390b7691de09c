"""Which rows are no run of one given kernel, by rule. A row is left out for the first reason that holds."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from trnsim.validation.clocks import clock_of
from trnsim.validation.rows import Row

CONFIDENCES = ("high", "medium")


@dataclass(frozen=True)
class Rule:
    """A reason to leave a row out. ``reason`` is what reports count."""

    reason: str
    holds: Callable[[Row], bool]


def _says(*patterns: str) -> Callable[[Row], bool]:
    pattern = re.compile("|".join(patterns), re.IGNORECASE)
    return lambda row: bool(pattern.search(f"{row.kernel} {row.metric}"))


RULES: tuple[Rule, ...] = (
    Rule("the vendor's own compiled kernel", _says(r"neuronx-cc torch", r"torch\.matmul\(", r"compiled by neuronx-cc")),
    Rule("a median over a grid of kernels", _says(r"grid median")),
    Rule("a target, not a measurement", _says(r"\btarget\b")),
    Rule("a bound that a test asserts", _says(r"\bbound\b")),
    Rule("no single number", lambda row: row.value is None),
    Rule("no time of a whole kernel", lambda row: row.microseconds is None or clock_of(row.metric) is None),
    # All ten references of layernorm_tkg's tests at this commit are those of rmsnorm_tkg's, (2, 2, 5, 16384) even that
    # of another shape (nki-library@181b205, test/integration/nkilib/core/subkernels).
    Rule(
        "a reference copied from another kernel's test",
        lambda row: "nki-library@181b205" in row.source and row.kernel == "nkilib layernorm_tkg",
    ),
    Rule("confidence below medium", lambda row: row.confidence not in CONFIDENCES),
)
NO_SOURCE = "no public repository names the kernel's source"


def excluded(row: Row) -> str | None:
    """Why ``row`` is left out; None if it is used."""
    return next((rule.reason for rule in RULES if rule.holds(row)), None)
