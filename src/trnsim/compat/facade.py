"""The module objects behind the names: ``nki_cpu_simulator.*``, ``neuron_dtypes``, ``neuronxcc.starfish.*``, ``nki.*``.

``nki_cpu_simulator.nki`` is what nki-library's ``setup_simulation_mode`` puts in the place of ``nki``: the view of a
release (``trnsim.nki.versions.views``) with what that package had beside it (``cpu_simulate``, ``nki.dtype``,
``nki.tensor``, ``nl.tensor``).
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from trnsim.compat import compiler, neuron_dtypes, simulator, starfish
from trnsim.machine.tensor import NkiTensor
from trnsim.nki import isa, language, typing
from trnsim.nki.versions import choose, views
from trnsim.releases import DEFAULT, Release

SUITES = Release("0.3", "nki_cpu_simulator")  # what is meant where nobody names a release


_DUNDERS = ("__all__", "__version__")


class _Facade(ModuleType):
    """A module that has the names of ``base`` and, first, some of its own."""

    def __init__(self, name: str, base: ModuleType | None = None, **own: Any) -> None:
        super().__init__(name, base.__doc__ if base else None)
        self._base = base
        if base is not None:
            self.__dict__.update({k: v for k, v in vars(base).items() if not k.startswith("__") or k in _DUNDERS})
        self.__dict__.update(own)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if self._base is not None and not name.startswith("__"):
            return getattr(self._base, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def _language_extras() -> dict[str, Any]:
    """Names of ``nki.language`` that public code uses and no documentation has."""
    return {"tensor": NkiTensor, "dtype": str, "bool": language.bool_, "range": language.static_range}


def modules(nki_version: str | None = None) -> dict[str, ModuleType]:
    """Our modules by the name that suites import. New objects at each call share trnsim's own functions and types.

    Args:
        nki_version: the release of NKI that the suite is written for. Default: ``TRNSIM_NKI_VERSION``, then ``SUITES``.

    Raises:
        InputError: a release that is not known.
    """
    chosen = choose.choose(nki_version)
    release = SUITES if chosen == DEFAULT else chosen
    view = views.modules(release)
    neuron_dtypes.name_packed_types()
    dtypes = _Facade("nki.dtype", None, **neuron_dtypes.formats())
    tensor = _Facade("nki.tensor", view.get("nki.tensor"), Tensor=NkiTensor, NkiTensor=NkiTensor)
    nki_language = _Facade("nki.language", view["nki.language"], dtypes=dtypes, **_language_extras())
    nki_isa = _Facade("nki.isa", view["nki.isa"])
    collectives = view["nki.collectives"]
    nki_compiler = _Facade("nki.compiler", compiler)
    nki_compiler.__dict__.update(
        frontend=_Facade("nki.compiler.frontend", compiler), ncc_driver=_Facade("nki.compiler.ncc_driver", compiler)
    )
    builtin = _Facade("nki.builtin", None, tensor=NkiTensor)
    nki = _Facade(
        "nki",
        view["nki"],
        language=nki_language,
        isa=nki_isa,
        typing=typing,
        collectives=collectives,
        compiler=nki_compiler,
        dtype=dtypes,
        tensor=tensor,
        builtin=builtin,
        cpu_simulate=functools.partial(simulator.cpu_simulate, release=release),
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
        "nki_cpu_simulator": _Facade("nki_cpu_simulator", None, nki=nki, cpu_simulate=nki.cpu_simulate),
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
