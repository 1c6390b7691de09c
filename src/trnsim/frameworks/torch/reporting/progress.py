"""A line that shows how far a long run is: steps, simulated time, and the time of the last step."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

from trnsim.frameworks.torch.reporting.tables import short_time


class StepProgress:
    """Shown on the error stream while it is open; ``total`` steps, where that is known."""

    def __init__(self, what: str, total: int | None = None, console: Console | None = None) -> None:
        bar = (BarColumn(), MofNCompleteColumn(), Remaining()) if total else (SpinnerColumn(), TimeElapsedColumn())
        self._bar = Progress(TextColumn("{task.description}"), *bar, console=console or Console(stderr=True))
        self._what = what
        self._task = self._bar.add_task(what, total=total)
        self._simulated_ps, self._steps = 0.0, 0

    def start(self) -> None:
        """Show it."""
        self._bar.start()

    def stop(self) -> None:
        """Leave the line as it is."""
        self._bar.stop()

    def step(self, time_ps: float) -> None:
        """A step is over."""
        self._simulated_ps += time_ps
        self._steps += 1
        simulated, last = short_time(self._simulated_ps), short_time(time_ps)
        text = f"{self._what}: {self._steps:,} steps, {simulated} simulated, last {last}"
        self._bar.update(self._task, advance=1, description=text)
