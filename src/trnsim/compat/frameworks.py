"""Importing ``torch_xla`` and ``torch_neuronx`` as trnsim's stand-ins, when somebody asks for them.

So scripts that call NKI kernels on a device run here unmodified. A real package is not shadowed unless asked. What the
stand-ins do not have imports as names that say so when they are used.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from trnsim.nki.versions.finder import Loader, StubLoader

if TYPE_CHECKING:
    from collections.abc import Sequence

MODULES = {
    "torch_xla": "trnsim.compat.torch_xla",
    "torch_xla.core": "",
    "torch_xla.core.xla_model": "trnsim.compat.xla_model",
    "torch_xla.runtime": "trnsim.compat.xla_runtime",
    "torch_neuronx": "trnsim.compat.torch_neuronx",
    "torch_neuronx.xla_impl": "",
    "torch_neuronx.xla_impl.ops": "trnsim.compat.torch_neuronx",
}
_PACKAGES = {"torch_xla", "torch_xla.core", "torch_neuronx", "torch_neuronx.xla_impl"}


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self) -> None:
        self.roots: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        root = fullname.partition(".")[0]
        if root not in self.roots:
            return None
        found = MODULES.get(fullname)
        if found is None:
            why = f"is not part of trnsim's stand-in for {root}, which is for scripts that call NKI kernels"
            return importlib.machinery.ModuleSpec(fullname, StubLoader(why), is_package=True)
        return importlib.machinery.ModuleSpec(fullname, Loader(found), is_package=fullname in _PACKAGES)


_finder = _Finder()


def provide(*, shadow: bool) -> None:
    """Make ``import torch_xla`` and ``torch_neuronx`` work, unless real ones are there and ``shadow`` is False."""
    for root in ("torch_xla", "torch_neuronx"):
        if root in _finder.roots:
            continue
        if shadow or (root not in sys.modules and importlib.util.find_spec(root) is None):
            _finder.roots.add(root)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
