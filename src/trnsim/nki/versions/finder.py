"""Importing ``neuronxcc.nki`` and its modules as trnsim's, when somebody asks for them.

``trnsim.install()`` puts the finder in front of Python's own; nothing is imported until a script says
``import neuronxcc.nki``.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trnsim.nki.versions.stubs import NOT_PUBLIC, StubModule, is_stub

if TYPE_CHECKING:
    from collections.abc import Sequence

_BETA1 = "trnsim.nki.versions.beta1"
MODULES = {
    "neuronxcc": "",
    "neuronxcc.nki": _BETA1,
    "neuronxcc.nki.language": f"{_BETA1}.language",
    "neuronxcc.nki.isa": f"{_BETA1}.isa",
    "neuronxcc.nki.language.constants": f"{_BETA1}.constants",
    "neuronxcc.nki.isa.constants": "trnsim.isa.constants",
    "neuronxcc.nki.isa.neuron_isa": f"{_BETA1}.isa",
    "neuronxcc.nki.typing": f"{_BETA1}.typing",
    "neuronxcc.nki.compiler": f"{_BETA1}.compiler",
    "neuronxcc.starfish": "",
    "neuronxcc.starfish.support": "",
    "neuronxcc.starfish.support.dtype": "trnsim.compat.starfish",
    "neuronxcc.starfish.support.util": "trnsim.compat.starfish",
}


class Loader(importlib.abc.Loader):
    """Hands out a module of trnsim under another name."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.own: Any = None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        if not self.target:
            module = ModuleType(spec.name, "A package of which trnsim provides some modules.")
            module.__path__ = []
            return module
        module = importlib.import_module(self.target)
        self.own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        if self.own is not None:
            module.__spec__ = self.own


class StubLoader(importlib.abc.Loader):
    """Makes modules of names that say why they cannot be used."""

    def __init__(self, why: str = NOT_PUBLIC) -> None:
        self.why = why

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return StubModule(spec.name, self.why)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to execute."""


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        found = MODULES.get(fullname)
        if found is None:
            if is_stub(fullname):
                return importlib.machinery.ModuleSpec(fullname, StubLoader(), is_package=True)
            if fullname.startswith("neuronxcc.nki."):
                raise ModuleNotFoundError(f"trnsim has no module {fullname!r}", name=fullname)
            return None
        return importlib.machinery.ModuleSpec(fullname, Loader(found), is_package=found in ("", _BETA1))


_finder = _Finder()


def provide(*, shadow: bool) -> None:
    """Make ``import neuronxcc.nki`` mean trnsim's, unless a real one is installed and ``shadow`` is False."""
    if _finder in sys.meta_path:
        return
    if not shadow and ("neuronxcc" in sys.modules or importlib.util.find_spec("neuronxcc") is not None):
        return
    sys.meta_path.insert(0, _finder)
