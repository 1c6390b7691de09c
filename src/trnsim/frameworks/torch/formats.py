"""Number formats of products: what a policy rounds the operands of a matrix multiplication to.

Tensors keep the formats that their owner gave them. A policy says in which format TensorE multiplies them, as the
Neuron compiler's automatic casts do (``--auto-cast=matmult``): operands are rounded on their way to TensorE, sums are
float32, and the result is rounded once, to the format of its tensor.

========== ================================================================ ====================
policy     operands                                                         scales
========== ================================================================ ====================
float32    as they are                                                      none
bf16, fp16 float32 tensors in that format, 16-bit tensors as they are       none
fp8        float8_e4m3, gradients in float8_e5m2                            one a tensor
mxfp8      float8_e4m3fn, gradients in float8_e5m2                          one for 32 elements
========== ================================================================ ====================

8-bit policies are for products of layers, activations or gradients with weights. Products of activations with each
other (attention) stay in bfloat16, as in published recipes (P. Micikevicius et al., "FP8 formats for deep learning",
arXiv 2209.05433, section 3, which also gives gradients the wider exponents of e5m2). The scale of a tensor takes its
largest magnitude at the moment to the largest number of the format; scales for 32 elements of the contraction are those
of ``quantize_mx`` (``trnsim.numerics.mx``), which NeuronCore-v4 alone has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trnsim import numerics
from trnsim.errors import HardwareError, InputError
from trnsim.numerics import DType, as_dtype

# PyTorch's types are not there without PyTorch, and code is checked without it too.
Tensor = Any

FLOAT32 = as_dtype("float32")
BFLOAT16 = as_dtype("bfloat16")
FLOAT16 = as_dtype("float16")

#: Tensors narrower than float32, which engines read into float32 and write back rounded.
LOW = frozenset(
    {
        torch.bfloat16,
        torch.float16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    }
)

# Rounding that PyTorch does bit for bit as ``trnsim.numerics`` does (tested), without leaving its tensors.
_TORCH = {BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}


@dataclass(frozen=True)
class Policy:
    """How operands of products are rounded.

    Attributes:
        name: ``float32``, ``bf16``, ``fp16``, ``fp8`` or ``mxfp8``.
        operand: format of operands, ``gradient`` that of the ones that are gradients.
        scaling: ``none``, ``tensor`` or ``block`` (32 elements of the contraction).
        inner: format of products of activations with each other.
        generations: of the NeuronCore, that have it.
    """

    name: str
    operand: DType
    gradient: DType
    scaling: str
    inner: DType
    generations: tuple[str, ...] = ("v2", "v3", "v4")

    @classmethod
    def of(cls, name: str | Policy) -> Policy:
        """The policy of a name; raises ``InputError`` for one that there is not."""
        if isinstance(name, Policy):
            return name
        if name not in POLICIES:
            raise InputError("no such format of products", operand="format", value=name, limit=tuple(POLICIES))
        return POLICIES[name]

    def check(self, generation: str) -> None:
        """Raise ``HardwareError`` where this generation of the NeuronCore lacks the format."""
        if generation not in self.generations:
            raise HardwareError(
                f"{self.name} products need NeuronCore-{', '.join(self.generations)}; nearest here: fp8",
                operand="format",
                value=self.name,
                generation=generation,
            )

    @property
    def narrow(self) -> bool:
        """Whether operands have 8 bits."""
        return self.scaling != "none"

    def product(self, dtype: Any, *, layer: bool = True, gradient: bool = False) -> DType:
        """The format in which TensorE gets an operand.

        Args:
            dtype: of its tensor.
            layer: the product is one with weights.
            gradient: the operand is a gradient.
        """
        if self.narrow and layer:
            return self.gradient if gradient else self.operand
        if dtype is torch.float32:
            return self.inner
        return as_dtype(dtype)


POLICIES = {
    "float32": Policy("float32", FLOAT32, FLOAT32, "none", FLOAT32),
    "bf16": Policy("bf16", BFLOAT16, BFLOAT16, "none", BFLOAT16),
    "fp16": Policy("fp16", FLOAT16, FLOAT16, "none", FLOAT16),
    "fp8": Policy("fp8", as_dtype("float8_e4m3"), as_dtype("float8_e5m2"), "tensor", BFLOAT16),
    "mxfp8": Policy("mxfp8", as_dtype("float8_e4m3fn"), as_dtype("float8_e5m2"), "block", BFLOAT16, ("v4",)),
}

_policy: ContextVar[Policy | None] = ContextVar("trnsim_torch_policy", default=None)


@contextmanager
def autocast(name: str | Policy) -> Iterator[Policy]:
    """Multiply in another format within this context, on the chip of the ``device`` around it.

    ``with trnsim.torch.autocast("fp8"):``. As with PyTorch's, backward runs in the format of the place that calls it.
    """
    policy = Policy.of(name)
    token = _policy.set(policy)
    try:
        yield policy
    finally:
        _policy.reset(token)


def active(default: Policy) -> Policy:
    """The policy of the innermost ``autocast``, else ``default``."""
    return _policy.get() or default


def rounded(values: Tensor, dtype: DType) -> Tensor:
    """A float32 tensor rounded to nearest even in a format, in float32; ``values`` itself for float32."""
    if dtype is FLOAT32:
        return values
    native = _TORCH.get(dtype)
    if native is not None:
        return values.to(native).to(torch.float32)
    array = values.contiguous().numpy()
    return torch.from_numpy(numerics.to_float32(numerics.from_float32(array, dtype), dtype))


def scaled(values: Tensor, dtype: DType) -> tuple[Tensor, Tensor | None]:
    """A float32 tensor in a format of 8 bits, in float32, and the scale (no dimensions) that it is to be multiplied by.

    The largest magnitude becomes the largest number of the format. Tensors of zeros, and those with infinities or NaN,
    have no scale.
    """
    if not values.numel():
        return values, None
    low, high = torch.aminmax(values)
    largest = torch.maximum(high, -low)
    if not torch.isfinite(largest) or not largest:
        return rounded(values, dtype), None
    # as ``quantize_tensor`` does: its scale, then a product with its reciprocal
    scale = torch.clamp(largest * float(np.float32(1 / dtype.max)), min=torch.finfo(torch.float32).tiny)
    limit = float(dtype.max)
    return rounded((values * (1.0 / scale)).clamp_(-limit, limit), dtype), scale


def in_blocks(values: Tensor, dtype: DType, dim: int) -> Tensor:
    """A float32 tensor as MX blocks along the dimension ``dim`` hold it, in float32; rounded up with zeros to 32."""
    moved = values.movedim(dim, -1)
    size = moved.shape[-1]
    padded = torch.nn.functional.pad(moved, (0, -size % numerics.mx.GROUP)).contiguous()
    elements, scales = numerics.mx.quantize_blocks(padded.numpy(), dtype)
    result = torch.from_numpy(numerics.mx.dequantize_blocks(elements, scales, dtype))
    return result[..., :size].movedim(-1, dim)


def stochastic(values: Tensor, dtype: Any, rng: np.random.Generator) -> Tensor:
    """A float32 tensor rounded stochastically to a 16-bit or 8-bit floating type of PyTorch."""
    kind = as_dtype(dtype)
    result = numerics.from_float32_stochastic(values.contiguous().numpy(), kind, rng)
    carrier = np.int16 if kind.itemsize == 2 else np.uint8
    return torch.from_numpy(result.view(carrier)).view(dtype)
