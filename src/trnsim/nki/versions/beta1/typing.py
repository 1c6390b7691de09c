"""``neuronxcc.nki.typing`` of NKI 0.1: annotations, and shapes of arguments for ``nki.benchmark``."""

from __future__ import annotations

from typing import Any

from trnsim.nki.typing import _Annotation, immutable, mutable, mutable_tensor, scalar
from trnsim.session import ShapeOnly


class _TensorAnnotation(_Annotation):
    """``nt.tensor[128, 512]`` annotates; ``nt.tensor[[128, 512], dtype]`` is an argument without data."""

    def __getitem__(self, shape: Any) -> Any:
        from trnsim.numerics import as_dtype

        if isinstance(shape, tuple) and len(shape) == 2 and isinstance(shape[0], (list, tuple)):
            return ShapeOnly(tuple(int(n) for n in shape[0]), as_dtype(shape[1]))
        return _Annotation(self.name, shape)


tensor = _TensorAnnotation("tensor")

__all__ = ["immutable", "mutable", "mutable_tensor", "scalar", "tensor"]
