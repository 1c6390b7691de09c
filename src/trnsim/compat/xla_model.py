"""``torch_xla.core.xla_model``: one process whose device is the CPU; see ``torch_xla.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def xla_device(n: int | None = None, devkind: str | None = None) -> Any:
    """``torch.device("cpu")``: kernels run on simulated cores, everything else on PyTorch's CPU."""
    import torch

    del n, devkind
    return torch.device("cpu")


def mark_step(wait: bool = False, reset_scope: bool = True) -> None:
    """Nothing: every operation has run when it returns."""


def wait_device_ops(devices: Sequence[Any] = ()) -> None:
    """Nothing, as ``mark_step``."""


def get_ordinal(defval: int = 0) -> int:
    """0: there is one process."""
    del defval
    return 0


get_local_ordinal = get_ordinal


def xrt_world_size(defval: int = 1) -> int:
    """1: there is one process."""
    del defval
    return 1


def is_master_ordinal(local: bool = True) -> bool:
    """True: there is one process."""
    del local
    return True


def master_print(*args: Any, **kwargs: Any) -> None:
    """``print``."""
    kwargs.pop("fd", None)
    kwargs.pop("local", None)
    kwargs.pop("flush", None)
    print(*args, **kwargs, flush=True)


def rendezvous(tag: str, payload: bytes = b"", replicas: Sequence[int] = ()) -> list[bytes]:
    """What all processes brought: this one's payload."""
    del tag, replicas
    return [payload]


def mesh_reduce(tag: str, data: Any, reduce_fn: Callable[[list[Any]], Any]) -> Any:
    """``reduce_fn`` of what all processes brought."""
    del tag
    return reduce_fn([data])


def optimizer_step(
    optimizer: Any, barrier: bool = False, optimizer_args: dict[str, Any] | None = None, **_: Any
) -> Any:
    """``optimizer.step()``; there are no other processes whose gradients would be added."""
    del barrier
    return optimizer.step(**(optimizer_args or {}))


def add_step_closure(closure: Callable[..., Any], args: tuple[Any, ...] = (), run_async: bool = False) -> None:
    """Call it: the step has run."""
    del run_async
    closure(*args)


def save(data: Any, file_or_path: Any, master_only: bool = True, global_master: bool = False) -> None:
    """``torch.save``."""
    import torch

    del master_only, global_master
    torch.save(data, file_or_path)


def get_rng_state(device: Any = None) -> int:
    """The seed of PyTorch's generator."""
    import torch

    del device
    return int(torch.initial_seed())


def set_rng_state(seed: int, device: Any = None) -> None:
    """``torch.manual_seed``."""
    import torch

    del device
    torch.manual_seed(seed)
