"""Calls of aten operators for tests of executors: arguments of every format, and what rounding once leaves."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
LOW = [torch.bfloat16, torch.float16]
ALL = [torch.float32, *LOW]
# Half a step of a format, relative; float32 arithmetic adds a little of its own.
HALF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


class Through(TorchDispatchMode):
    """Sends what runs inside to an executor."""

    def __init__(self, executor):
        super().__init__()
        self.executor = executor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.executor.run(func, args, kwargs or {})


def through(executor, function, *args):
    with Through(executor):
        return function(*args)


def drawn(*shape, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def wide(value):
    """Floating tensors in float64."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(map(wide, value))
    return torch.float64 if value in ALL else value


def flat(value):
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in flat(v)]


def assert_once_rounded(got, expected, like, sums=1.0):
    """``got`` is float64 ``expected`` rounded once, as far as float32 sums of terms of size ``sums`` tell."""
    for one, right, native in zip(flat(got), flat(expected), flat(like), strict=True):
        assert (one.shape, one.dtype) == (native.shape, native.dtype)
        if not one.is_floating_point():
            assert torch.equal(one, right)
            continue
        limit = right.abs() * HALF[one.dtype] * 1.01 + 2e-6 * sums + torch.finfo(one.dtype).tiny
        assert bool(((one.double() - right).abs() <= limit).all()), f"{one}\n{right}"


X = lambda d: drawn(6, 40, dtype=d)
Y = lambda d: drawn(6, 40, dtype=d, seed=1)
W = lambda d: drawn(40, dtype=d, seed=2)
ROWS = torch.tensor([0, 2, 2, 5])
ONE_TO_SIX = torch.tensor([3, 0, 39, 7, 8, 9])
# (operator, arguments for a format, keywords)
OPERATORS = {
    "add": (aten.add.Tensor, lambda d: (X(d), Y(d)), {"alpha": 0.3}),
    "add scalar": (aten.add.Scalar, lambda d: (X(d), 0.1), {}),
    "mul number": (aten.mul.Tensor, lambda d: (X(d), 0.1), {}),
    "mul row": (aten.mul.Tensor, lambda d: (X(d), W(d)), {}),
    "div": (aten.div.Tensor, lambda d: (X(d), Y(d).abs() + 1), {}),
    "lt": (aten.lt.Scalar, lambda d: (X(d), 0.1), {}),
    "where": (aten.where.self, lambda d: (X(d) > 0, X(d), Y(d)), {}),
    "pow": (aten.pow.Tensor_Scalar, lambda d: (X(d), 3), {}),
    "rsqrt": (aten.rsqrt.default, lambda d: (X(d).abs() + 0.5,), {}),
    "exp": (aten.exp.default, lambda d: (X(d),), {}),
    "silu": (aten.silu.default, lambda d: (X(d),), {}),
    "silu backward": (aten.silu_backward.default, lambda d: (X(d), Y(d)), {}),
    "gelu": (aten.gelu.default, lambda d: (X(d),), {"approximate": "tanh"}),
    "gelu backward": (aten.gelu_backward.default, lambda d: (X(d), Y(d)), {"approximate": "none"}),
    "tanh": (aten.tanh.default, lambda d: (X(d),), {}),
    "sum": (aten.sum.dim_IntList, lambda d: (X(d), [-1], True), {}),
    "sum to float32": (aten.sum.dim_IntList, lambda d: (X(d), [0]), {"dtype": torch.float32}),
    "mean": (aten.mean.dim, lambda d: (X(d), [-1]), {}),
    "var": (aten.var.correction, lambda d: (X(d), [-1]), {"correction": 0}),
    "amax": (aten.amax.default, lambda d: (X(d), [-1]), {}),
    "max": (aten.max.dim, lambda d: (X(d), -1), {}),
    "cumsum": (aten.cumsum.default, lambda d: (X(d), -1), {}),
    "norm": (aten.linalg_vector_norm.default, lambda d: (X(d), 2), {}),
    "softmax": (aten._softmax.default, lambda d: (X(d), -1, False), {}),
    "log softmax": (aten._log_softmax.default, lambda d: (X(d), -1, False), {}),
    "softmax backward": (aten._softmax_backward_data.default, lambda d: (X(d), Y(d).softmax(-1), -1, d), {}),
    "layer norm": (aten.native_layer_norm.default, lambda d: (X(d), [40], W(d), W(d), 1e-5), {}),
    "layer norm backward": (
        aten.native_layer_norm_backward.default,
        lambda d: (X(d), Y(d), [40], drawn(6, 1), drawn(6, 1, seed=4).abs(), W(d), W(d), [True, True, True]),
        {},
    ),
    "embedding": (aten.embedding.default, lambda d: (X(d), ROWS), {}),
    "embedding backward": (aten.embedding_dense_backward.default, lambda d: (X(d)[:4], ROWS, 9, -1, False), {}),
    "index": (aten.index.Tensor, lambda d: (X(d), [ROWS]), {}),
    "index add": (aten.index_add.default, lambda d: (X(d), 0, ROWS, Y(d)[:4]), {}),
    "index put": (aten.index_put.default, lambda d: (X(d), [ROWS], Y(d)[:4], True), {}),
    "scatter add": (aten.scatter_add.default, lambda d: (X(d), 1, ONE_TO_SIX[:, None], Y(d)[:, :1]), {}),
    "gather": (aten.gather.default, lambda d: (X(d), 1, ONE_TO_SIX[:, None]), {}),
    "cat": (aten.cat.default, lambda d: ([X(d), Y(d)], 1), {}),
    "loss": (aten.nll_loss_forward.default, lambda d: (X(d), ONE_TO_SIX, None, 1, -100), {}),
    "topk": (aten.topk.default, lambda d: (X(d), 3), {}),
    "lerp": (aten.lerp.Scalar, lambda d: (X(d), Y(d), 0.1), {}),
    "addcmul": (aten.addcmul.default, lambda d: (X(d), Y(d), Y(d)), {"value": 0.2}),
    "foreach": (aten._foreach_add.List, lambda d: ([X(d), W(d)], [Y(d), W(d)]), {"alpha": 0.7}),
}
PRODUCTS = {
    "mm": (aten.mm.default, lambda d: (drawn(9, 40, dtype=d), drawn(40, 12, dtype=d, seed=1)), {}),
    "mm transposed": (aten.mm.default, lambda d: (drawn(9, 40, dtype=d), drawn(12, 40, dtype=d, seed=1).t()), {}),
    "addmm": (
        aten.addmm.default,
        lambda d: (drawn(12, dtype=d), drawn(9, 40, dtype=d), drawn(40, 12, dtype=d, seed=1)),
        {"beta": 0.5, "alpha": 2},
    ),
    "bmm": (aten.bmm.default, lambda d: (drawn(2, 9, 40, dtype=d), drawn(2, 40, 12, dtype=d, seed=1)), {}),
    "baddbmm": (
        aten.baddbmm.default,
        lambda d: (drawn(2, 9, 12, dtype=d), drawn(2, 9, 40, dtype=d), drawn(2, 40, 12, dtype=d, seed=1)),
        {},
    ),
    "mv": (aten.mv.default, lambda d: (drawn(9, 40, dtype=d), drawn(40, dtype=d)), {}),
    "convolution": (
        aten.convolution.default,
        lambda d: (drawn(2, 3, 8, 8, dtype=d), drawn(4, 3, 3, 3, dtype=d), None, [1], [1], [1], False, [0], 1),
        {},
    ),
}  # fmt: skip
