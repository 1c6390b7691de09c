"""The modules of an older release of NKI, made from those of the latest by the tables of ``trnsim.releases``.

Names that the release did not have raise an error that says which releases do; calls that differ have the release's
signature and, where they do something else, what ``adapters`` says. Everything else is the latest release's own.
"""

from __future__ import annotations

import inspect
from functools import cache
from types import ModuleType
from typing import Any

from trnsim import releases
from trnsim.errors import CompilerError
from trnsim.isa.constants import engine
from trnsim.nki import collectives, isa, language, launchers, typing
from trnsim.nki.kernel import Kernel, simulate
from trnsim.nki.language.tokens import Operator
from trnsim.nki.versions import adapters, trace_time
from trnsim.nki.versions.adapters import ADAPTERS
from trnsim.nki.versions.calls import ENUMS, checked
from trnsim.numerics import DType
from trnsim.releases import LATEST, Release

_LAUNCHERS = ("baremetal", "benchmark", "profile", "simulate_kernel")  # of NKI 0.1; see launchers.py


class View(ModuleType):
    """A module, or another thing with attributes, as a release has it."""

    def __init__(self, name: str, version: str, **own: Any) -> None:
        super().__init__(name, f"{name} of NKI {version}: a view of trnsim's modules.")
        self.__dict__.update(own)
        self._version = version

    def __getattr__(self, name: str) -> Any:
        raise releases.no_attribute(self.__name__, name, self._version)


class _Constants:
    """``nl.tile_size`` with the constants that a release has."""

    def __init__(self, version: str) -> None:
        self._version = version

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__") and not releases.exists(f"nki.language.tile_size.{name}", self._version):
            raise releases.missing_name("nki.language.tile_size", name, self._version)
        return getattr(language.tile_size, name)


class _Token(Operator):
    """An operator of NKI 0.2, where ``nki.language`` computes nothing."""

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """Raise CompilerError: it is no function on tiles."""
        raise CompilerError(
            f"nl.{self.__name__} is not a function in NKI 0.2 (it is in NKI 0.1 and 0.3 and later): pass it as op of "
            "an instruction of nki.isa"
        )


def _api(name: str, value: Any, version: str) -> Any:
    """A public thing of the latest release as ``version`` has it."""
    module = name.rpartition(".")[0]
    if version == "0.2" and module == "nki.language" and hasattr(value, "__trnsim_op__"):
        return _Token(value.__trnsim_op__, "an instruction")
    if not inspect.isfunction(value):
        return value
    target = ADAPTERS.get((name, version))
    if target is not None or releases.find_signature(name, version) is not None:
        return checked(value, name, version, target)
    if version == "0.2" and not ENUMS.keys().isdisjoint(inspect.signature(value).parameters):
        return checked(value, name, version)
    return value if hasattr(value, "instruction") else checked(value, name, version)


def _names(base: ModuleType, module: str, version: str) -> dict[str, Any]:
    found = {
        name: _api(f"{module}.{name}", getattr(base, name), version)
        for name in base.__all__
        if releases.exists(f"{module}.{name}", version)
    }
    return {**found, "__all__": sorted(found)}


def _gone(version: str) -> dict[str, Any]:
    """What only older releases have, by its full name."""
    found: dict[str, Any] = {"nki.isa.NKIObject": language.NKIObject, "nki.collectives.NKIObject": language.NKIObject}
    found["nki.language.par_dim"] = adapters.par_dim
    for name in ("nki.isa.tensor_copy_dynamic_src", "nki.isa.tensor_copy_dynamic_dst"):
        if releases.exists(name, version):
            found[name] = checked(isa.tensor_copy, name, version, ADAPTERS[name, version])
    return {name: value for name, value in found.items() if releases.exists(name, version)}


@cache
def modules(release: Release) -> dict[str, ModuleType]:
    """The modules that ``import nki`` and its like mean for a kernel of ``release``, by name.

    The same objects at each call. ``nki.jit`` marks its kernels with the release.
    """
    version = release.version
    if release == Release():
        from trnsim import nki as package

        latest: dict[str, ModuleType] = {
            "nki": package, "nki.isa": isa, "nki.isa.constants": isa.constants, "nki.language": language,
            "nki.collectives": collectives, "nki.typing": typing,
        }  # fmt: skip
        return latest

    def jit(fn: Any = None, **kwargs: Any) -> Any:
        """Make a kernel of a function."""
        if fn is None:
            return lambda function: jit(function, **kwargs)
        return fn if isinstance(fn, Kernel) else Kernel(fn, release=release, **kwargs)

    def simulated(kernel: Any) -> Any:
        """A callable that runs ``kernel`` with numbers."""
        return simulate(kernel, release)

    if version == LATEST:
        below: dict[str, ModuleType] = {"isa": isa, "language": language, "collectives": collectives, "typing": typing}
    else:
        below = {
            "isa": View("nki.isa", version, **_names(isa, "nki.isa", version)),
            "language": View("nki.language", version, **_names(language, "nki.language", version)),
            "collectives": View("nki.collectives", version, **_names(collectives, "nki.collectives", version)),
        }
        if releases.exists("nki.typing", version):
            below["typing"] = typing
        for name, value in _gone(version).items():
            module, _, short = name.rpartition(".")
            below[module.removeprefix("nki.")].__dict__[short] = value
        if version == "0.2":
            below["isa"].__dict__["dma_engine"] = engine.dma
            below["language"].__dict__["hbm"] = language.shared_hbm  # one memory (leanprover/KLR, FromNKI.lean)
            below["tensor"] = View("nki.tensor", version, **_names(trace_time, "nki.tensor", version))
            below["meta"] = View("nki.meta", version, tensor=below["tensor"], __path__=[])
        below["language"].__dict__["tile_size"] = _Constants(version)
    own: dict[str, Any] = {name: getattr(launchers, name) for name in _LAUNCHERS}
    own |= {**below, "jit": jit, "simulate": simulated, "dtype": DType, "__version__": f"{version}.0", "__path__": []}
    if not releases.exists("nki.simulate", version):
        del own["simulate"]
    found: dict[str, ModuleType] = {"nki": View("nki", version, **own, __all__=[*sorted(below), "jit"])}
    found |= {f"nki.{name}": module for name, module in below.items()}
    if "meta" in below:
        found["nki.meta.tensor"] = below["tensor"]
    return found | {"nki.isa.constants": isa.constants}
