"""``torch.compile(model, backend="trnsim")``: graphs of aot_autograd that run on a simulated chip.

The graphs are aten after autograd and functionalisation, forward and backward. Of the core decompositions only those
are used that hide no operator that has a kernel (attention, norms, embeddings, activations). A graph runs node by node
on the chip that is entered, else on the default one, and yields the same stream as dispatch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from trnsim.errors import InputError
from trnsim.frameworks.torch.capture import kinds
from trnsim.frameworks.torch.device import Chip, current
from trnsim.frameworks.torch.operators import kind
from trnsim.frameworks.torch.settings import default_chip

_OPTIONS = frozenset(
    ("chip", "depth", "format", "lnc", "stochastic_rounding", "seed", "implementation", "whole_device", "over")
)


def trnsim(graph: fx.GraphModule, example_inputs: list[Any], *, options: Any = None, **given: Any) -> Any:
    """The backend. ``options``: those of ``trnsim.torch.device``, for the default chip; ``chip`` is its name.

    Raises:
        InputError: an unknown option.
    """
    from torch._dynamo.backends.common import aot_autograd

    chosen = {**(options or {}), **given}
    unknown = sorted(set(chosen) - _OPTIONS)
    if unknown:
        raise InputError(f"no option {unknown[0]!r}", operand="options", limit=sorted(_OPTIONS))
    if chosen and current() is None:
        default_chip(**chosen)
    shared: dict[int, tuple[int, int, str]] = {}

    def compiler(phase: str) -> Callable[..., Any]:
        def compile_(module: fx.GraphModule, _: Any) -> Any:
            from functorch.compile import make_boxed_func

            return make_boxed_func(Runner(module, phase, shared))

        return compile_

    return aot_autograd(
        fw_compiler=compiler("forward"),
        bw_compiler=compiler("backward"),
        inference_compiler=compiler("forward"),
        decompositions=decompositions(),
        keep_inference_input_mutations=True,
    )(graph, example_inputs)


@functools.cache
def decompositions() -> dict[Any, Any]:
    """Core decompositions of operators that are nothing to the chip as they are."""
    from torch._decomp import core_aten_decompositions

    return {op: rule for op, rule in core_aten_decompositions().items() if kind(str(op)) == "other"}


class Runner:
    """One graph on the chip. ``shared``: calls of the forward graph by autograd's numbers, for its backward graph."""

    def __init__(self, graph: fx.GraphModule, phase: str, shared: dict[int, tuple[int, int, str]]) -> None:
        self._graph, self._phase, self._shared = graph, phase, shared

    def __call__(self, *inputs: Any) -> Any:
        chip = current()
        if chip is None:
            chip = default_chip()
            with chip.resumed():
                return self._run(chip, inputs)
        return self._run(chip, inputs)

    def _run(self, chip: Chip, inputs: tuple[Any, ...]) -> Any:
        chip.before_graph(self._phase, id(self))
        if self._phase == "forward":
            self._shared.clear()
        chip.places.parameters(inputs)
        changed = self._changed(inputs)
        updates = any(isinstance(tensor, torch.nn.Parameter) for tensor in changed)
        phase = "optimizer" if updates else self._phase
        if updates:
            # What an update changes beside weights are states of the optimiser.
            states = [t for t in changed if not isinstance(t, torch.nn.Parameter)]
            for tensor in states:
                chip.capture.storage(tensor, "optimizer")
            kinds(states, chip.capture, "optimizer")
            kinds([t for t in inputs if _gradient(t, changed)], chip.capture, "gradient")
        try:
            return _Interpreter(self._graph, chip, phase, self._shared).run(*inputs)
        finally:
            chip.places.override = None

    def _changed(self, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
        """The inputs that the graph changes in place."""
        nodes = [node for node in self._graph.graph.nodes if node.op == "placeholder"]
        into = {
            node.args[0]
            for node in self._graph.graph.nodes
            if node.op == "call_function" and str(node.target) == "aten.copy_.default"
        }
        pairs = zip(nodes, inputs, strict=False)
        return [value for node, value in pairs if node in into and isinstance(value, torch.Tensor)]


class _Interpreter(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, chip: Chip, phase: str, shared: dict[int, tuple[int, int, str]]) -> None:
        super().__init__(graph)
        self._chip, self._phase, self._shared = chip, phase, shared

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        capture = self._chip.capture
        number = n.meta.get("seq_nr", -1)
        path = module_path(n.meta)
        origin = -1
        if self._phase == "backward":
            graph, found, there = self._shared.get(number, (-1, -1, ""))
            origin = found if graph == capture.number else -1
            path = path or there
        self._chip.places.override = (path, self._phase, origin)
        result = super().run_node(n)
        if self._phase == "forward" and number >= 0:
            produced = capture.last
            if produced >= 0:
                self._shared.setdefault(number, (capture.number, produced, path))
        return result


def _gradient(tensor: Any, changed: list[torch.Tensor]) -> bool:
    """Whether an input of an update is neither a weight nor a state nor a number."""
    if not isinstance(tensor, torch.Tensor) or isinstance(tensor, torch.nn.Parameter) or not tensor.dim():
        return False
    return tensor.is_floating_point() and all(tensor is not other for other in changed)


_MEMBER = re.compile(r"\[['\"]?([A-Za-z0-9_]+)['\"]?\]")


def module_path(meta: dict[str, Any]) -> str:
    """The module that a node comes from, such as ``model.layers.3.mlp``."""
    stack = meta.get("nn_module_stack") or meta.get("fwd_nn_module_stack")
    if not stack:
        return ""
    path, kind_ = list(stack.values())[-1]
    text = re.sub(r"^[LG]\[['\"][A-Za-z0-9_]+['\"]\]|^L__self__+", "", str(path))
    text = _MEMBER.sub(r".\1", text).replace("._modules", "").replace("_orig_mod.", "")
    return text.strip(".") or getattr(kind_, "__name__", str(kind_)).rpartition(".")[2]


def step(function: Callable[..., Any], *, compiled: bool = True, **options: Any) -> Callable[..., Any]:
    """A function whose calls are steps on a simulated chip: forward, backward and optimiser, as graphs.

    Args:
        function: such as one that computes a loss, calls ``backward`` and the optimiser's ``step``.
        compiled: capture with ``torch.compile``; else (and in depth ``shape``) by dispatch.
        options: those of ``trnsim.torch.device``, if no chip is entered; ``chip`` is its name.

    Returns:
        The function with ``chip`` and ``report()``.
    """
    own = current() or Chip(**options)
    run = torch.compile(function, backend="trnsim") if compiled and own.depth != "shape" else function

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if own.entered:
            with own.step(function.__name__):
                return run(*args, **kwargs)
        with own, own.step(function.__name__):
            return run(*args, **kwargs)

    wrapped.chip = own  # type: ignore[attr-defined]
    wrapped.report = own.report  # type: ignore[attr-defined]
    return wrapped


def register() -> None:
    """Make the name known to ``torch.compile``, where the package's entry point is not installed."""
    from importlib.metadata import entry_points

    if any(point.name == "trnsim" for point in entry_points(group="torch_dynamo_backends")):
        return
    from torch._dynamo.backends import registry

    if "trnsim" not in registry._COMPILER_FNS:
        registry.register_backend(name="trnsim")(trnsim)
