"""What is known of each request while it is served: one row a request, shared by the replicas."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .cost import Integers


class Records:
    """Columns by request. Times in picoseconds; -1: not yet."""

    def __init__(self, input_tokens: Integers, output_tokens: Integers) -> None:
        count = len(input_tokens)
        self.input = input_tokens
        self.output: Integers = output_tokens.copy()
        # Tokens that the pool which serves it now is to have put out: 1 where another pool decodes.
        self.target: Integers = output_tokens.copy()
        self.arrival = np.full(count, -1, np.int64)
        self.scheduled = np.full(count, -1, np.int64)
        self.first_token = np.full(count, -1, np.int64)
        self.finish = np.full(count, -1, np.int64)
        self.replica = np.full(count, -1, np.int64)
        self.emitted: Integers = np.zeros(count, np.int64)
        self.decoded: Integers = np.zeros(count, np.int64)  # decode steps done before it was preempted
        self.kept: Integers = np.zeros(count, np.int64)  # tokens of its cache that exist while it waits
        self.swapped: npt.NDArray[np.bool_] = np.zeros(count, np.bool_)  # they are in host memory
        self.cached: Integers = np.zeros(count, np.int64)  # prompt tokens found in the cache
        self.preemptions: Integers = np.zeros(count, np.int64)
