"""The KV cache of one replica: how many blocks (or slots) are free, and which blocks of prompts can be used again.

Blocks that only one sequence can use are counted, not named. A full block of a prompt whose content has a key (the hash
of all tokens up to its end) can be shared: it stays after its last user has gone, until its room is needed, least
recently used first; of one sequence the last block goes first. This is what vLLM's prefix caching does, with one
difference: two sequences that compute the same block at the same time end up sharing one copy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from trnsim.errors import InternalError


class BlockKeys:
    """Keys of the cache's blocks of each request, made while the request is in the system.

    Each of the workload's blocks is ``parts`` of the cache's, or every ``stride``-th ends one.
    """

    def __init__(self, keys: Sequence[Sequence[Hashable]], parts: int, stride: int) -> None:
        self._theirs = keys
        self._parts = parts
        self._stride = stride
        self._made: dict[int, list[Hashable]] = {}

    def __getitem__(self, request: int) -> list[Hashable]:
        made = self._made.get(request)
        if made is None:
            theirs = self._theirs[request][self._stride - 1 :: self._stride]
            made = [(key, j) for key in theirs for j in range(self._parts)] if self._parts > 1 else list(theirs)
            self._made[request] = made
        return made

    def forget(self, request: int) -> None:
        """The request has left."""
        self._made.pop(request, None)


class KvCache:
    """``total`` units of ``unit_tokens`` tokens."""

    def __init__(self, total: int, unit_tokens: int) -> None:
        self.total = total
        self.unit_tokens = unit_tokens
        self.free = total
        self._users: dict[Hashable, int] = {}
        self._unused: OrderedDict[Hashable, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Units that can be taken: free ones, and shared ones that nobody uses."""
        return self.free + len(self._unused)

    @property
    def used(self) -> int:
        """Units that sequences hold."""
        return self.total - self.available

    def units(self, tokens: int) -> int:
        """Units that hold ``tokens``."""
        return -(-tokens // self.unit_tokens)

    def take(self, count: int) -> None:
        """Take ``count`` units for one sequence alone."""
        if count < 0:
            raise InternalError("a negative number of units was taken from the KV cache", value=count)
        while self.free < count and self._unused:
            key, _ = self._unused.popitem(last=False)
            del self._users[key]
            self.free += 1
        if self.free < count:
            raise InternalError("the KV cache was asked for more than it has", value=count, limit=self.free)
        self.free -= count

    def give(self, count: int) -> None:
        """Give back ``count`` units that ``take`` gave."""
        self.free += count
        if self.available > self.total:
            raise InternalError("the KV cache was given more than it lent", value=self.available, limit=self.total)

    def matching(self, keys: Sequence[Hashable]) -> tuple[int, int]:
        """How many leading blocks of ``keys`` are here, and how many of these nobody uses."""
        found = unused = 0
        for key in keys:
            if key not in self._users:
                break
            found += 1
            unused += key in self._unused
        return found, unused

    def hold(self, keys: Sequence[Hashable]) -> None:
        """Use blocks that are here."""
        for key in keys:
            self._users[key] += 1
            self._unused.pop(key, None)

    def publish(self, keys: Sequence[Hashable]) -> None:
        """Make blocks that a sequence took and has filled shared; it holds them still."""
        for key in keys:
            if key in self._users:
                self.hold([key])
                self.give(1)
            else:
                self._users[key] = 1

    def release(self, keys: Sequence[Hashable]) -> None:
        """Stop using shared blocks. They stay until their room is needed."""
        for key in reversed(keys):
            self._users[key] -= 1
            if self._users[key] == 0:
                self._unused[key] = None
