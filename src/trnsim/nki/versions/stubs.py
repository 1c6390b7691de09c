"""Modules of the vendor's package whose source is not public: every name imports, using one is an error that says so.

Public model code imports kernels from ``neuronxcc.nki._private_kernels`` and the like beside code that runs here. A
stub can be imported, named in annotations and defaults, compared, and asked for attributes (``NormType.NO_NORM``), and
``stub[grid]`` is a stub; calling, iterating, deriving and converting raise ``UnsupportedError``.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NoReturn

from trnsim.errors import UnsupportedError

# Packages, with what is below them.
PACKAGES = (
    "neuronxcc.nki._private",
    "neuronxcc.nki._private_kernels",
    "neuronxcc.nki._pre_prod_kernels",
    "neuronxcc.nki.kernels",
    "neuronxcc.nki.nccl",
    "neuronxcc.nki.compiler.backends",
    "neuronxcc.nki.language.iterators",
    "neuronxcc.starfish.penguin",
    "nki._private",
    "nki._private_kernels",
    "nki._pre_prod_kernels",
    "nki.kernels",
)
# What launchers ask of any object to learn whether it is a kernel.
_ASKED_OF_KERNELS = {"func", "launch"}


def is_stub(module: str) -> bool:
    """Whether ``module`` is one of the vendor's that only stands for its names."""
    return module.startswith(PACKAGES) and any(module == p or module.startswith(f"{p}.") for p in PACKAGES)


class _Derived:
    """What a class derived from a stub derives from."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        raise UnsupportedError(f"{type(self).__name__} derives from a class of the vendor's that trnsim does not have")


NOT_PUBLIC = (
    "belongs to the vendor's package and its source is not public, so trnsim cannot run it; some of these kernels have "
    "reference code in aws-neuron/nki-samples and aws-neuron/nki-library"
)


class Stub:
    """A name that can be imported but not used; ``why`` ends the sentence that the name begins."""

    def __init__(self, name: str, why: str = NOT_PUBLIC) -> None:
        self.__dict__["_trnsim_name"], self.__dict__["_trnsim_why"] = name, why

    def __getattr__(self, name: str) -> Stub:
        if name in _ASKED_OF_KERNELS or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{self!r} has no attribute {name!r}")
        found = self.__dict__[name] = Stub(f"{self.__dict__['_trnsim_name']}.{name}", str(self.__dict__["_trnsim_why"]))
        return found

    def __getitem__(self, key: Any) -> Stub:
        return self

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        del args, kwargs
        name, why = self.__dict__["_trnsim_name"], self.__dict__["_trnsim_why"]
        raise UnsupportedError(f"{name} {why}", instruction=name)

    __call__ = __iter__ = __int__ = __float__ = __index__ = __len__ = __enter__ = __exit__ = _refuse

    def __bool__(self) -> bool:
        return True

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (_Derived,)

    def __repr__(self) -> str:
        return f"<{self.__dict__['_trnsim_name']}: a name only>"


class StubModule(ModuleType):
    """A module of stubs."""

    def __init__(self, name: str, why: str = NOT_PUBLIC) -> None:
        super().__init__(name, "A module of names that can be imported but not used.")
        self.__dict__["_trnsim_why"] = why

    def __getattr__(self, name: str) -> Stub:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        found = Stub(f"{self.__name__}.{name}", self.__dict__["_trnsim_why"])
        setattr(self, name, found)
        return found
