"""What can go wrong, and whose fault it is.

One small hierarchy that separates the kernel's mistakes (what hardware forbids, what the NKI compiler rejects, what is
undefined behaviour) from ours (what trnsim does not support yet, and bugs) and from bad input to a command.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Location:
    """A line of the kernel's source."""

    file: str
    line: int
    function: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f" in {self.function}" if self.function else "")


class TrnsimError(Exception):
    """Base of all errors raised by trnsim.

    Keyword arguments name the instruction, operand, value, limit and NeuronCore generation where they are known; the
    message shows each of them.
    """

    kind = "error"

    def __init__(
        self,
        message: str,
        *,
        instruction: str = "",
        operand: str = "",
        value: Any = None,
        limit: Any = None,
        generation: str = "",
        location: Location | None = None,
    ) -> None:
        self.message = message
        self.instruction = instruction
        self.operand = operand
        self.value = value
        self.limit = limit
        self.generation = generation
        self.location = location
        super().__init__(message)

    def __str__(self) -> str:
        details = []
        if self.instruction or self.operand:
            details.append(" ".join(x for x in (self.instruction, self.operand) if x))
        if self.value is not None:
            details.append(f"value {self.value}")
        if self.limit is not None:
            details.append(f"limit {self.limit}")
        if self.generation:
            details.append(f"NeuronCore-{self.generation}")
        text = self.message + (f" ({', '.join(details)})" if details else "")
        return text + (f"\n  at {self.location}" if self.location else "")


class HardwareError(TrnsimError):
    """The NeuronCore of this generation cannot do it."""

    kind = "hardware"


class CompilerError(TrnsimError):
    """The NKI compiler of this version would reject it."""

    kind = "compiler"


class IndexRangeError(CompilerError, IndexError):
    """An index or slice outside a tensor. NKI does not clip slices as Python does."""


class UndefinedBehaviorError(TrnsimError):
    """The documentation calls the result undefined."""

    kind = "undefined"


class UnsupportedError(TrnsimError):
    """Documented, but trnsim does not do it (yet)."""

    kind = "unsupported"


class DeadlockError(TrnsimError):
    """Every core or rank waits for another one."""

    kind = "deadlock"


class NeedsDataError(TrnsimError):
    """A time-only run without data met a value that decides its control flow or an address."""

    kind = "needs-data"


class InputError(TrnsimError):
    """A command or function was given something that it cannot use."""

    kind = "input"


class InternalError(TrnsimError):
    """A bug in trnsim."""

    kind = "internal"


@dataclass
class Finding:
    """Something a kernel does that is legal to execute here but wrong or unsafe on hardware.

    ``kind`` is a stable identifier (``uninitialized-read``, ``capacity``, ...); ``count`` is how often it occurred.
    """

    kind: str
    message: str
    severity: str = "warning"
    location: Location | None = None
    count: int = 1
    details: dict[str, Any] = field(default_factory=dict)
