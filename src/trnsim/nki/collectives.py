"""``nki.collectives``: communication between ranks. Not simulated yet: every function says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trnsim.errors import UnsupportedError

_FUNCTIONS = {
    "all_gather", "all_gather_v", "all_reduce", "all_to_all", "all_to_all_v", "collective_permute",
    "collective_permute_implicit", "collective_permute_implicit_current_processing_rank_id",
    "collective_permute_implicit_reduce", "rank_id", "reduce_scatter",
}  # fmt: skip


class ReplicaGroup:
    """Groups of ranks that communicate: a list of lists of ranks."""

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        self.groups = [list(group) for group in groups]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:

        def unsupported(*args: Any, **kwargs: Any) -> Any:
            del args, kwargs
            raise UnsupportedError(f"nki.collectives.{name} is not supported yet", instruction=name)

        return unsupported
    raise AttributeError(f"module 'nki.collectives' has no attribute {name!r}")
