"""A simulated chip as a place where PyTorch runs: ``with device("trn2") as chip:``.

A ``TorchDispatchMode`` over ordinary CPU tensors: autograd, modules and optimisers work as ever; every aten operator is
computed by the executor of the depth, and recorded. Time comes afterwards, from the same fusion that graphs get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from trnsim.errors import InputError, TrnsimError
from trnsim.frameworks.torch import formats
from trnsim.frameworks.torch.accounts import SETUP, Accounts
from trnsim.frameworks.torch.capacity import OVER, step_fits, weights_fit
from trnsim.frameworks.torch.capture import Capture, Schema, kinds
from trnsim.frameworks.torch.executor import Executor, make_executor
from trnsim.frameworks.torch.formats import Policy
from trnsim.frameworks.torch.generate import AROUND, OTHER, Caches, cache_of, tensors_of
from trnsim.frameworks.torch.modules import Places
from trnsim.frameworks.torch.patterns import AHEAD
from trnsim.frameworks.torch.pricing import Pricer
from trnsim.frameworks.torch.report import Report
from trnsim.frameworks.torch.reporting.progress import StepProgress
from trnsim.hardware import load_chip
from trnsim.operators.cost import OperatorCost

FORMATS = tuple(formats.POLICIES)
OUTSIDE = "outside of modules"
_active: list[Chip] = []


class OperatorError(TrnsimError, RuntimeError):
    """An operator failed; the message names module and operator."""

    kind = "operator"


class Chip(TorchDispatchMode):
    """One logical core of a chip that runs PyTorch. See ``device``."""

    def __init__(
        self,
        chip: str = "trn2",
        *,
        depth: str = "fast",
        format: str = "bf16",
        lnc: int | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
        implementation: str = "kernel",
        whole_device: bool = False,
        over: str = "",
        progress: bool | int = False,
    ) -> None:
        super().__init__()
        loaded = load_chip(chip)
        if loaded.core is None:
            raise InputError(f"{chip} has no NeuronCore", operand="chip", value=chip)
        settings = loaded.logical_core
        self.chip, self.loaded = chip, loaded
        self.lnc = settings.default if lnc is None else lnc
        if self.lnc not in settings.settings:
            raise InputError(
                f"{chip} has no logical cores of {self.lnc}", operand="lnc", value=self.lnc, limit=settings.settings
            )
        self.depth, self.implementation, self.whole_device = depth, implementation, whole_device
        self.format = checked_format(format)
        self.stochastic_rounding, self.seed = stochastic_rounding, seed
        self.executor: Executor = make_executor(
            depth, chip, self.lnc, format, stochastic_rounding=stochastic_rounding, seed=seed
        )
        self.over = over or ("report" if depth == "shape" else "raise")
        if self.over not in OVER:
            raise InputError(f"no {over!r}", operand="over", value=over, limit=OVER)
        self.capture = Capture()
        self.places = Places(self.capture, self._before_model, self._after_model, self._after_update)
        self.accounts = Accounts(self.capture.stream, Pricer(chip, self.lnc, implementation))
        share = loaded.core_count if whole_device else self.lnc
        self.capacity_bytes = loaded.hbm.capacity_bytes * share // loaded.core_count
        self.scope = chip if whole_device else f"{share} of {loaded.core_count} cores of {chip}"
        self._schemas: dict[Any, Schema] = {}
        self._marking = 0
        self._pending = False
        self._fitted = 0
        self._graphs_ran: tuple[set[int], str] = (set(), "")
        self._caches, self._name, self._ran = Caches(), OTHER, False
        self._fake: Any = None
        self._entered = ExitStack()
        self._progress, self._shown = progress, 0
        self._bar: StepProgress | None = None

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __enter__(self) -> Chip:  # noqa: PYI034
        if self.depth == "shape":
            if self._fake is None:
                self._fake = FakeTensorMode(allow_non_fake_inputs=True)
            fake = self._entered.enter_context(self._fake)

            def canonical(tensor: torch.Tensor) -> torch.Tensor:
                return tensor if isinstance(tensor, FakeTensor) else fake.from_tensor(tensor)

            self.capture.canonical = canonical
        self.executor.forget()
        if self._progress:
            steps = None if self._progress is True else int(self._progress)
            self._bar = StepProgress(f"{self.chip} {self.format}", steps)
            self._bar.start()
            self._entered.callback(self._bar.stop)
        self.places.enter()
        _active.append(self)
        super().__enter__()
        return self

    @property
    def entered(self) -> bool:
        """Whether the chip is entered now."""
        return self in _active

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """The chip computes what runs inside, without hooks: for graphs that say themselves where they come from."""
        _active.append(self)
        super().__enter__()
        try:
            yield
        finally:
            super().__exit__(None, None, None)
            _active.remove(self)

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        super().__exit__(kind, value, trace)
        _active.remove(self)
        self.places.leave()
        self.places.settle()
        try:
            self._mark(check=kind is None)
        finally:
            self._entered.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = self._schemas.get(func)
        if schema is None:
            schema = self._schemas[func] = Schema.of(func)
        if schema.name.startswith(("profiler.", "prim.")):
            return func(*args, **kwargs)
        module, phase, origin = self.places.here()
        try:
            result = self.executor.run(func, args, kwargs)
        except TrnsimError as error:
            error.message = f"{module or OUTSIDE}: {error.message}"
            error.args = (error.message,)
            raise
        except Exception as error:
            raise _failed(error, schema.name, module) from error
        index = self.capture.call(schema, args, kwargs, result, module, phase, self.format, origin)
        if phase in AHEAD and self.places.override is None:
            self.places.ran(module, index)
        return result

    def before_graph(self, phase: str, graph: int) -> None:
        """A compiled graph is about to run: outside of ``step``, one that runs again after others begins a step."""
        again = self._graphs_ran[1] == "backward" or graph in self._graphs_ran[0]
        if not self._marking and phase == "forward" and again:
            self.places.settle()
            self._ran = True
            self._mark()
            self._graphs_ran[0].clear()
        self._graphs_ran, self._ran = (self._graphs_ran[0] | {graph}, phase), True

    def record_kernel(self, name: str, inputs: list[Any], outputs: list[Any], cost: OperatorCost) -> None:
        """A kernel of the user that has run on tensors, as one call ``nki.NAME`` with a known cost."""
        module, phase, origin = self.places.here()
        schema = Schema(f"nki.{name}", ())
        index = self.capture.call(schema, tuple(inputs), {}, outputs, module, phase, self.format, origin, cost)
        if phase in AHEAD:
            self.places.ran(module, index)

    @contextmanager
    def step(self, name: str = "step") -> Iterator[None]:
        """What runs inside is one step. Outside of such blocks, a step ends with an optimiser's, or where a model
        without gradients is called the next time.
        """
        if not self._marking:
            self.capture.mark(AROUND)
        self._marking += 1
        try:
            yield
        finally:
            self._marking -= 1
            if not self._marking:
                self.places.settle()
                self.capture.mark(name)
                self._name, self._ran = OTHER, False
                self._show()
        self._check_memory()

    def report(self) -> Report:
        """Times, memory and fallbacks of all that has run so far. A step that runs outside of ``step`` ends here."""
        if not self._marking:
            self.places.settle()
            self._mark()
        accounts = self.accounts
        regions, runs = accounts.regions(), accounts.runs()
        every = [(region, count) for some, count in zip(regions, runs, strict=True) for region in some]
        steps = accounts.steps()
        return Report(
            chip=self.chip,
            lnc=self.lnc,
            depth=self.depth,
            format=self.format,
            implementation=self.implementation,
            total_ps=sum(step.time_ps for step in steps),
            unfused_ps=sum(region.unfused_ps * count for region, count in every),
            steps=steps,
            regions=regions,
            fallbacks=accounts.fallbacks(),
            memory=accounts.memory(self.capacity_bytes, self.scope),
            notes=self.executor.notes(),
            runs=runs,
        )

    @property
    def elapsed_ps(self) -> float:
        """Simulated time of all steps that have ended."""
        return sum(self.accounts.step_ps(number) for number in range(len(self.capture.stream.steps)))

    def _mark(self, *, check: bool = True) -> None:
        self.capture.mark(self._name if self._ran else AROUND)
        self._name, self._ran = OTHER, False
        self._show()
        if check:
            self._check_memory()

    def _check_memory(self) -> None:
        """Whether the step that has just ended fits, if what PyTorch held is so much that it might not."""
        stream, capture = self.capture.stream, self.capture
        if self.over == "report" or not stream.steps or capture.peak_bytes <= self.capacity_bytes:
            return
        if len(stream.graphs) == self._fitted:
            return
        self._fitted = len(stream.graphs)
        memory = self.accounts.memory(self.capacity_bytes, self.scope)
        graph = stream.steps[-1].graph
        step_fits(memory, stream, self.accounts.of(graph).ends_ps, self.accounts.starts_ps()[-1], graph)

    def _show(self) -> None:
        """Tell the bar of the steps that have ended."""
        steps = self.capture.stream.steps
        if self._bar is not None:
            for number in range(self._shown, len(steps)):
                if steps[number].name not in {SETUP, AROUND}:
                    self._bar.step(self.accounts.step_ps(number))
        self._shown = len(steps)

    def _before_model(self, new: bool) -> None:
        if new and not self._marking and not any(call.module for call in self.capture.calls):
            self.capture.mark(SETUP)
        if new and self.over == "raise":
            weights_fit(self.capture.storages(), self.capacity_bytes, self.scope)
        if not self._marking and not torch.is_grad_enabled() and self._pending:
            self._mark()
        self._pending, self._ran = not torch.is_grad_enabled(), True

    def _after_model(self, result: Any) -> None:
        cache = cache_of(result)
        if cache is not None:
            self._name = self._caches.name_of(result)
            kinds(tensors_of(cache), self.capture, "cache")

    def _after_update(self) -> None:
        if not self._marking:
            self._name, self._ran = OTHER, True
            self._mark()
            self._pending = False


def _failed(error: Exception, operator: str, module: str) -> OperatorError:
    where = module or OUTSIDE
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return OperatorError(f"{where}: {operator} depends on data, which depth 'shape' has none of; use 'fast'")
    return OperatorError(f"{where}: {operator} failed: {error}")


def checked_format(format: str) -> str:
    """A name of a policy.

    Raises:
        InputError: there is none of that name.
    """
    if format not in FORMATS:
        raise InputError(f"no format {format!r}", operand="format", value=format, limit=FORMATS)
    return format


def device(chip: str = "trn2", **options: Any) -> Chip:
    """A simulated chip, entered with ``with``; ordinary CPU tensors compute on it inside.

    Args:
        chip: as ``load_chip`` takes it.
        depth: ``fast`` (float32 arithmetic on values rounded to the format), ``exact`` (every instruction of the
            kernels) or ``shape`` (no data).
        format: of operands of products: ``float32``, ``bf16``, ``fp16``, ``fp8``, ``mxfp8``. Tensors keep their own.
        lnc: NeuronCores of the logical core; None: the chip's default.
        stochastic_rounding: of weights and updates; ``seed`` of it.
        implementation: ``kernel`` or ``compiler``, whose costs are asked.
        whole_device: memory is the chip's; else the share of the logical core.
        over: what happens where memory does not suffice: ``raise``, or only ``report`` (the default of ``shape``).
        progress: show a line with the steps that have ended; a number is how many there will be.

    Raises:
        InputError: no such chip, depth, format or logical core.
    """
    return Chip(chip, **options)


def current() -> Chip | None:
    """The chip that is entered, the innermost of several."""
    return _active[-1] if _active else None


@contextmanager
def autocast(format: str) -> Iterator[None]:
    """Another format of operands of products, inside ``device``.

    Raises:
        InputError: no such format, or no chip is entered.
        HardwareError: the chip lacks the format.
    """
    chip = current()
    if chip is None:
        raise InputError("autocast outside of trnsim.torch.device")
    assert chip.loaded.core is not None
    Policy.of(format).check(chip.loaded.core.version)
    before, chip.format = chip.format, checked_format(format)
    try:
        with formats.autocast(format):
            yield
    finally:
        chip.format = before


Marked = Callable[..., Any]
