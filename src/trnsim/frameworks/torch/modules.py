"""Where a call comes from: the module that runs, and in the backward pass the module whose gradient is computed."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

from trnsim.frameworks.torch.capture import Capture, kinds

_NO_NUMBER = 2**64 - 1  # of nodes that stand for no operator of the forward pass (accumulated gradients)


class Places:
    """Paths of modules and phases, by hooks that live as long as the device is entered.

    ``at_root`` is called before a model (a module in no other) runs, ``after_root`` with what it gave, ``after_update``
    after an optimiser's step.
    """

    def __init__(self, capture: Capture, at_root: Any, after_root: Any, after_update: Any) -> None:
        self._capture, self._at_root, self._after_root, self._after_update = capture, at_root, after_root, after_update
        self._stack: list[str] = []
        self._names: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()
        self._nodes: dict[int, tuple[int, int, str]] = {}
        self._parameters: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()
        self._updating = 0
        self._handles: list[Any] = []
        self.override: tuple[str, str, int] | None = None
        """Path, phase and origin of what runs, where a graph says it."""

    def enter(self) -> None:
        self._handles = [
            torch_module.register_module_forward_pre_hook(self._before),
            torch_module.register_module_forward_hook(self._after, always_call=True),
            torch_optimizer.register_optimizer_step_pre_hook(self._before_update),
            torch_optimizer.register_optimizer_step_post_hook(self._updated),
        ]

    def leave(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._stack, self._updating = [], [], 0

    def here(self) -> tuple[str, str, int]:
        """The path and phase of the call that runs now, and the call whose gradient it computes (-1: none)."""
        if self.override is not None:
            return self.override
        node = torch._C._current_autograd_node()
        if node is not None:
            if self._stack:  # a checkpointed module runs again
                return self._stack[-1], "recompute", -1
            graph, origin, path = self._nodes.get(node._sequence_nr(), (-1, -1, ""))
            return path, "backward", origin if graph == self._capture.number else -1
        if self._updating:
            return "optimizer", "optimizer", -1
        return self._stack[-1] if self._stack else "", "forward", -1

    def ran(self, path: str, index: int) -> None:
        """Remember the call of the forward pass that has just run for the gradient that autograd has noted."""
        # Nodes are numbered as they are made, before their operator runs. A call that makes none finds the last one's.
        self._nodes.setdefault(torch._C._autograd._get_sequence_nr() - 1, (self._capture.number, index, path))

    def parameters(self, tensors: Iterable[Any]) -> None:
        """Learn of weights, whose gradients will be known by them."""
        for tensor in tensors:
            if isinstance(tensor, torch.nn.Parameter):
                self._parameters[id(tensor)] = tensor

    def settle(self) -> None:
        """Say which storages are gradients, after a step."""
        kinds([p.grad for p in self._parameters.values() if p.grad is not None], self._capture, "gradient")
        if len(self._nodes) > 1_000_000:
            self._nodes.clear()

    def _before(self, module: torch.nn.Module, _: Any) -> None:
        if torch.compiler.is_compiling():
            return
        name = self._names.get(module)
        if not self._stack and torch._C._current_autograd_node() is None:  # else a part of a model runs again
            new = name is None
            if new:
                self._know(module)
                name = self._names[module]
            self._at_root(new)
        self._stack.append(name if name is not None else (self._stack[-1] if self._stack else type(module).__name__))

    def _after(self, module: torch.nn.Module, args: Any, result: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if self._stack:
            self._stack.pop()
            if not self._stack:
                self._after_root(result)

    def _know(self, root: torch.nn.Module) -> None:
        for name, module in root.named_modules():
            self._names[module] = name.replace("_orig_mod.", "").replace("_orig_mod", "") or type(root).__name__
        for path, tensor in [*root.named_parameters(), *root.named_buffers()]:
            name = path.replace("_orig_mod.", "")
            module, _, _ = name.rpartition(".")
            storage = self._capture.storage(tensor, "weight", module, "", name)
            storage.kind, storage.name, storage.module = "weight", name, module
            if isinstance(tensor, torch.nn.Parameter):
                self._parameters[id(tensor)] = tensor

    def _before_update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self._updating += 1
        for group in optimizer.param_groups:
            kinds([p.grad for p in group["params"] if p.grad is not None], self._capture, "gradient")

    def _updated(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self._updating = max(self._updating - 1, 0)
        for parameter, state in optimizer.state.items():
            module = self._capture.storage(parameter, "weight").module
            for tensor in state.values():
                if isinstance(tensor, torch.Tensor):
                    storage = self._capture.storage(tensor, "optimizer")
                    storage.kind, storage.module = "optimizer", module
        self.settle()
        self._nodes.clear()
        self._after_update()
