"""``nki.compiler.frontend`` and ``nki.compiler.ncc_driver``: names of the compiler that trnsim does not have.

They can be imported and named in annotations and defaults; compiling with them says that it cannot be done here.
"""

from __future__ import annotations

from typing import Any

from trnsim.errors import UnsupportedError


class NKIFrontend:
    """Base of the compiler's front ends."""


class ParserFrontend(NKIFrontend):
    """The front end that parses a kernel's source."""


class TracerFrontend(NKIFrontend):
    """The front end that traces a kernel's calls."""


class CompileOptions:
    """Options of a compilation; using them is unsupported."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        raise UnsupportedError(
            "nki.compiler compiles kernels for hardware; trnsim only simulates them", instruction="nki.compiler"
        )


class CompiledKernel(CompileOptions):
    """A kernel compiled for hardware; making one is unsupported."""


def compile_kernel(*args: Any, **kwargs: Any) -> Any:
    """Compile a kernel for hardware: unsupported."""
    return CompileOptions(*args, **kwargs)


NKI_IR_VERSION = "none"
compile_nki_ir_kernel_to_neff = _compile_nki_ir_to_tensorizer_ir = _write_tensorizer_ir = compile_kernel
