"""Sweeps: one kernel in many variants, each timed in a worker process, ranked, and kept in a file as it is done."""
