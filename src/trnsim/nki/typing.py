"""``nki.typing``: annotations of kernel parameters."""

from __future__ import annotations

from typing import Any


class _Annotation:
    """``nt.tensor``, also with a shape: ``nt.tensor[128, 512]``."""

    def __init__(self, name: str, shape: Any = None) -> None:
        self.name, self.shape = name, shape

    def __getitem__(self, shape: Any) -> _Annotation:
        return _Annotation(self.name, shape)

    def __call__(self, *args: Any, **kwargs: Any) -> _Annotation:
        return _Annotation(self.name, args or kwargs or None)

    def __or__(self, other: Any) -> Any:
        return self

    def __ror__(self, other: Any) -> Any:
        return self

    def __repr__(self) -> str:
        return f"nki.typing.{self.name}"


tensor = _Annotation("tensor")
mutable_tensor = _Annotation("mutable_tensor")
mutable = _Annotation("mutable")
immutable = _Annotation("immutable")
scalar = _Annotation("scalar")
