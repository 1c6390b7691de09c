"""Comparison of a run with an earlier JSON report, for continuous integration.

Calls are matched by kernel, argument shapes and order: the second call of a kernel with the same arguments is compared
with the second one of the earlier report. Both must have been timed on the same chip, with the same schedule and clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from trnsim.errors import InputError
from trnsim.report.schema import SCHEMA

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from trnsim.report.call import KernelCall


class _Call(msgspec.Struct):
    """What is compared of a call of a report; the rest of the report may be of any minor version."""

    kernel: str
    chip: str
    cores: int
    arguments: list[str]
    schedule: str
    clock: str
    time_us: float


class _Report(msgspec.Struct):
    schema: str
    calls: list[_Call]


@dataclass(frozen=True)
class Baseline:
    """An earlier report, and by how much a call may be slower than there: ``tolerance`` 0.05 is 5 %."""

    path: str
    calls: Sequence[_Call]
    tolerance: float

    @classmethod
    def read(cls, path: str | os.PathLike[str], tolerance: float) -> Baseline:
        """Read a JSON report.

        Raises:
            InputError: it is not one.
        """
        try:
            report = msgspec.json.decode(Path(path).read_bytes(), type=_Report)
        except OSError as error:
            raise InputError(f"cannot read baseline {path}: {error.strerror}") from error
        except msgspec.DecodeError as error:
            raise InputError(f"baseline {path} is not a JSON report of trnsim: {error}") from error
        if report.schema != SCHEMA:
            raise InputError(f"baseline {path} has another schema", value=report.schema, limit=SCHEMA)
        return cls(str(path), report.calls, tolerance)

    def failures(self, calls: Sequence[KernelCall]) -> list[str]:
        """A sentence for each call that is slower than allowed, is missing on a side, or cannot be compared."""
        times: dict[str, list[_Call]] = {}
        for old in self.calls:
            times.setdefault(_name(old.kernel, old.cores, old.arguments), []).append(old)
        found = []
        seen: dict[str, int] = {}
        for call in calls:
            name = _name(call.kernel, call.cores, call.arguments)
            number = seen[name] = seen.get(name, 0) + 1
            olds = times.get(name, [])
            what = f"{name}, call {number}" if number > 1 or len(olds) > 1 else name
            if number > len(olds):
                found.append(f"{what}: is not in {self.path}")
                continue
            found += self._compared(what, olds[number - 1], call)
        for name, olds in times.items():
            missing = len(olds) - seen.get(name, 0)
            if missing > 0:
                count = f" ({missing} of {len(olds)} calls)" if len(olds) > 1 else ""
                found.append(f"{name}: is in {self.path} but did not run{count}")
        return found

    def _compared(self, what: str, old: _Call, call: KernelCall) -> list[str]:
        for title, before, now in (
            ("chip", old.chip, call.chip),
            ("schedule", old.schedule, call.schedule),
            ("clock", old.clock, call.clock),
        ):
            if before != now:
                return [f"{what}: cannot be compared, its {title} was {before} and is {now}"]
        now_us = int(call.timeline.total_ps) / 1e6
        if now_us <= old.time_us * (1 + self.tolerance):
            return []
        slower = f"{now_us / old.time_us - 1:+.1%}" if old.time_us else "it took no time"
        return [f"{what}: {now_us:,.3f} us, was {old.time_us:,.3f} us ({slower}; at most {self.tolerance:+.1%})"]


def parse_percent(text: str) -> float:
    """``5%`` or ``5 %`` as 0.05.

    Raises:
        InputError: it is not a percentage of 0 or more.
    """
    number, sign, rest = text.partition("%")
    try:
        value = float(number) / 100
    except ValueError:
        value = -1.0
    if not sign or rest.strip() or not 0 <= value < float("inf"):
        raise InputError(f"{text!r} is not a percentage such as 5%", operand="--fail-if-slower", value=text)
    return value


def _name(kernel: str, cores: int, arguments: Sequence[str]) -> str:
    return f"{kernel}{f'[{cores}]' if cores > 1 else ''}({', '.join(arguments)})"
