"""Making ``import nki`` mean trnsim's implementation, in scripts that were written for the vendor's package."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from trnsim.errors import InputError

_installed = False


def install(*, shadow: bool = False) -> None:
    """Put trnsim's modules in place as ``nki``, ``nki.isa``, ``nki.language`` and so on, and as ``neuronxcc.nki``.

    ``torch_xla`` and ``torch_neuronx`` become stand-ins for device scripts. A real installation is never shadowed
    unless ``shadow`` asks for it.

    Raises:
        InputError: the vendor's package is installed and ``shadow`` is False.
    """
    global _installed
    if _installed:
        return
    existing = sys.modules.get("nki")
    if not shadow and (existing is not None or importlib.util.find_spec("nki") is not None):
        raise InputError("a real nki package is installed; trnsim.install(shadow=True) puts trnsim's in its place")
    import trnsim.nki as package
    from trnsim.nki import collectives, isa, language, typing

    modules: dict[str, ModuleType] = {
        "nki": package,
        "nki.isa": isa,
        "nki.isa.constants": isa.constants,
        "nki.language": language,
        "nki.collectives": collectives,
        "nki.typing": typing,
    }
    sys.modules.update(modules)
    from trnsim.compat import frameworks
    from trnsim.nki.versions import finder

    finder.provide(shadow=shadow)
    frameworks.provide(shadow=shadow)
    _installed = True
