"""Trace to timeline: what every engine of the cores did when, and what it waited for.

Two stages: the compiler stage orders the recorded program into queues, places tiles and finds dependences; the
machine stage executes the queues strictly in order. See ``docs/dev/ARCHITECTURE.md``.
"""

from trnsim.timing.options import CLOCKS, PASSES, SCHEDULES, TimingOptions
from trnsim.timing.simulate import simulate
from trnsim.timing.timeline import WAIT_REASONS, EngineSummary, Events, MemoryUse, Timeline, Totals, Track, Waits

__all__ = [
    "CLOCKS",
    "PASSES",
    "SCHEDULES",
    "WAIT_REASONS",
    "EngineSummary",
    "Events",
    "MemoryUse",
    "Timeline",
    "TimingOptions",
    "Totals",
    "Track",
    "Waits",
    "simulate",
]
