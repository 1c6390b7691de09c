"""Why a kernel takes its time, and what would help: its critical path, and the time after each of several changes.

Each change is tried on the trace (its rows, classes or options are rewritten) and timed as any trace is; nothing is
estimated.
"""
