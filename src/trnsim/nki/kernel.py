"""Kernels: what ``nki.jit`` makes of a function, and how it is launched."""

from __future__ import annotations

import builtins
import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from trnsim.errors import CompilerError
from trnsim.machine import core as machine
from trnsim.releases import DEFAULT, Release
from trnsim.session import SimulationOptions, current_session, run_kernel

if TYPE_CHECKING:
    from trnsim.machine.ranks import World
    from trnsim.machine.tensor import NkiTensor

# Options of ``nki.jit`` that public kernels pass. ``mode`` is ignored since NKI 0.3; ``platform_target`` names the
# chip, ``grid`` is the number of cores of a kernel that is launched without.
OPTIONS = {
    "mode", "platform_target", "grid", "kernel_return", "show_compiler_tb", "experimental_flags", "debug_kernel",
    "enable_out_of_bound_check", "additional_compile_opt",
}  # fmt: skip


class _Memory:
    """The keywords ``sbuf``, ``psum`` and ``hbm`` of NKI 0.2 (quickstart of Neuron 2.27 and 2.28)."""

    def __init__(self, name: str) -> None:
        self.name = name

    def view(self, dtype: Any, shape: Sequence[int]) -> NkiTensor:
        """An uninitialised tensor there; errors as of ``nl.ndarray``."""
        return machine.current().ndarray(shape, dtype, self.name)

    def __repr__(self) -> str:
        return self.name


_GLOBAL = {"math": math, **{name: _Memory(name) for name in ("sbuf", "psum", "hbm")}}
_running: Counter[str] = Counter()


@contextlib.contextmanager
def global_names(release: Release) -> Iterator[None]:
    """What a kernel of ``release`` may name without importing it, while it runs: in NKI 0.2 its memories, and ``math``.

    Its front end evaluated kernels in an environment of its own, which had that module (leanprover/KLR,
    ``KLR/Trace/NKI.lean``); ``core/mlp/mlp_parameters.py`` of nki-library at 0759719 relies on it. Python's builtins
    are the one place that every file of a kernel sees.

    Raises:
        CompilerError: a kernel of another release names a memory so.
    """
    if release.version != "0.2":
        try:
            yield
        except NameError as error:
            memory = _GLOBAL.get(str(error.name))
            if not isinstance(memory, _Memory):
                raise
            raise CompilerError(
                f"{memory} without import is a keyword of NKI 0.2 (--nki-version 0.2); since 0.3 it is "
                f"nl.ndarray(shape, dtype, buffer=nl.{memory})",
                operand=memory.name,
            ) from error
        return
    names = [name for name in _GLOBAL if _running[name] or not hasattr(builtins, name)]  # others are somebody else's
    _running.update(names)  # ranks of a collective program run within each other
    vars(builtins).update({name: _GLOBAL[name] for name in names})
    try:
        yield
    finally:
        _running.subtract(names)
        for name in names:
            if not _running[name]:
                del vars(builtins)[name]


class Kernel:
    """A function that runs on NeuronCores.

    Attributes:
        func: the function as written.
        lnc: cores it runs on (set by ``kernel[lnc]``), or None.
        schedule: edges given by ``with_schedule``.
        release: of NKI, that it is written for.
    """

    def __init__(self, func: Callable[..., Any], *, release: Release = DEFAULT, **options: Any) -> None:
        unknown = set(options) - OPTIONS
        if unknown:
            raise CompilerError(
                f"nki.jit has no option {', '.join(sorted(unknown))}", instruction="nki.jit", limit=sorted(OPTIONS)
            )
        self.func = func
        self.release = release
        self.options = options
        self.lnc = None if options.get("grid") is None else _cores(options["grid"])
        self.schedule: tuple[tuple[str, Any], ...] = ()
        functools.update_wrapper(self, func)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if machine.running():
            return self.func(*args, **kwargs)
        return self.launch(args, kwargs)

    def launch(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: SimulationOptions | None = None,
        *,
        rank: int = 0,
        world: World | None = None,
    ) -> Any:
        """Run it under ``options`` (default: the active session's), as ``rank`` of ``world`` if that is given."""
        with global_names(self.release):
            return run_kernel(
                self.func,
                args,
                kwargs,
                name=getattr(self.func, "__name__", "kernel"),
                grid=self.lnc,
                schedule_edges=self.schedule,
                platform_target=self.options.get("platform_target"),
                options=options,
                rank=rank,
                world=world,
                release=self.release,
            )

    def _copy(self) -> Kernel:
        copy = Kernel(self.func, release=self.release, **self.options)
        copy.lnc, copy.schedule = self.lnc, self.schedule
        return copy

    def __getitem__(self, lnc: Any) -> Kernel:
        copy = self._copy()
        copy.lnc = _cores(lnc)
        return copy

    def with_schedule(self, edges: Sequence[tuple[str, str | Sequence[str]]]) -> Kernel:
        """The kernel with dependency edges ``(consumer, producer or producers)`` between named instructions."""
        copy = self._copy()
        copy.schedule = (*self.schedule, *((str(c), p) for c, p in edges))
        return copy

    def __repr__(self) -> str:
        return f"<nki kernel {getattr(self.func, '__name__', '?')}{'' if self.lnc is None else f'[{self.lnc}]'}>"


def _cores(grid: Any) -> int:
    """The cores of a grid: a number or a sequence of one."""
    if isinstance(grid, (tuple, list)):
        if len(grid) != 1:
            raise CompilerError(
                "grids of several dimensions belong to NKI 0.1 (neuronxcc.nki); since 0.2 it is kernel[lnc]",
                operand="grid",
                value=tuple(grid),
            )
        grid = grid[0]
    if not isinstance(grid, int) or grid not in (1, 2):
        raise CompilerError("kernel[lnc] takes 1 or 2 cores", operand="lnc", value=grid, limit=(1, 2))
    return grid


def as_kernel(kernel: Any, release: Release = DEFAULT) -> Any:
    """``kernel`` itself if it is one, of any release; a plain function as one of ``release``."""
    return kernel if callable(getattr(kernel, "launch", None)) else Kernel(kernel, release=release)


def simulate(kernel: Any, release: Release = DEFAULT) -> Callable[..., Any]:
    """``nki.simulate``: a callable that runs ``kernel`` (or ``kernel[lnc]``, or a plain function) with numbers.

    ``release``: of NKI, that a plain function is written for.
    """
    wrapped = as_kernel(kernel, release)

    @functools.wraps(wrapped.func)
    def run(*args: Any, **kwargs: Any) -> Any:
        if machine.running():
            raise CompilerError("nki.simulate cannot be called inside a kernel")
        session = current_session()
        if session is not None:
            return wrapped.launch(args, kwargs)
        return wrapped.launch(args, kwargs, SimulationOptions(timed=False))

    return run
