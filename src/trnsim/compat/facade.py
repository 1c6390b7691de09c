"""The module objects behind the names: ``nki_cpu_simulator.*``, ``neuron_dtypes``, ``neuronxcc.starfish.*``, ``nki.*``.

``nki_cpu_simulator.nki`` is what nki-library's ``setup_simulation_mode`` puts in the place of ``nki``: trnsim's own
modules with what NKI 0.3 had beside them (``cpu_simulate``, ``nki.dtype``, ``nki.tensor``, ``nl.tensor``).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import trnsim.nki as package
from trnsim.compat import compiler, neuron_dtypes, simulator, starfish
from trnsim.isa.vector_search import quantize_mx_ocp
from trnsim.machine.tensor import NkiTensor
from trnsim.nki import collectives, isa, language, typing


class _Facade(ModuleType):
    """A module that has the names of ``base`` and, first, some of its own."""

    def __init__(self, name: str, base: ModuleType | None = None, **own: Any) -> None:
        super().__init__(name, base.__doc__ if base else None)
        self._base = base
        if base is not None:
            self.__dict__.update({k: v for k, v in vars(base).items() if not (k.startswith("__") and k != "__all__")})
        self.__dict__.update(own)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if self._base is not None and not name.startswith("__"):
            return getattr(self._base, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def _language_extras() -> dict[str, Any]:
    """Names of ``nki.language`` that public code uses and no documentation has."""
    return {"tensor": NkiTensor, "dtype": str, "bool": language.bool_, "range": language.static_range}


def modules() -> dict[str, ModuleType]:
    """Our modules by the name that suites import. New objects at each call share trnsim's own functions and types."""
    neuron_dtypes.name_packed_types()
    dtypes = _Facade("nki.dtype", None, **neuron_dtypes.formats())
    tensor = _Facade("nki.tensor", None, Tensor=NkiTensor, NkiTensor=NkiTensor)
    nki_language = _Facade("nki.language", language, dtypes=dtypes, **_language_extras())
    # Scales of MX data as in NKI 0.3, which is what the suites that use these modules were written for.
    nki_isa = _Facade("nki.isa", isa, quantize_mx=quantize_mx_ocp)
    nki_compiler = _Facade("nki.compiler", compiler)
    nki_compiler.__dict__.update(
        frontend=_Facade("nki.compiler.frontend", compiler), ncc_driver=_Facade("nki.compiler.ncc_driver", compiler)
    )
    builtin = _Facade("nki.builtin", None, tensor=NkiTensor)
    nki = _Facade(
        "nki",
        package,
        language=nki_language,
        isa=nki_isa,
        typing=typing,
        collectives=collectives,
        compiler=nki_compiler,
        dtype=dtypes,
        tensor=tensor,
        builtin=builtin,
        cpu_simulate=simulator.cpu_simulate,
    )
    support = _Facade("neuronxcc.starfish.support", None, dtype=starfish, util=starfish)
    below = {
        "": nki,
        ".builtin": builtin,
        ".compiler": nki_compiler,
        ".compiler.frontend": nki_compiler.frontend,
        ".compiler.ncc_driver": nki_compiler.ncc_driver,
        ".dtype": dtypes,
        ".isa": nki_isa,
        ".isa.constants": isa.constants,
        ".language": nki_language,
        ".language.dtypes": dtypes,
        ".tensor": tensor,
        ".typing": typing,
    }
    found: dict[str, ModuleType] = {
        "nki_cpu_simulator": _Facade("nki_cpu_simulator", None, nki=nki, cpu_simulate=simulator.cpu_simulate),
        **{f"nki_cpu_simulator.nki{name}": module for name, module in below.items()},
        **{f"nki{name}": module for name, module in below.items()},
        "nki.collectives": collectives,
        "neuron_dtypes": neuron_dtypes,
        "neuronxcc": _Facade("neuronxcc", None),
        "neuronxcc.nki": nki,
        "neuronxcc.nki.typing": typing,
        "neuronxcc.nki_standalone": _Facade("neuronxcc.nki_standalone", compiler),
        "neuronxcc.starfish": _Facade("neuronxcc.starfish", None, support=support),
        "neuronxcc.starfish.support": support,
        "neuronxcc.starfish.support.dtype": starfish,
        "neuronxcc.starfish.support.util": starfish,
    }
    return found
