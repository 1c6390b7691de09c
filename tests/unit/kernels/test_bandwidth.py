"""Kernels that memory limits: what they reach of what DMA or HBM allows on trn2, by our own timing."""

import numpy as np
import pytest
from kernel_harness import BF16, share_of_bandwidth

from trnsim.kernels.adam import adam_step
from trnsim.kernels.cross_entropy import cross_entropy, cross_entropy_backward
from trnsim.kernels.elementwise import activation_backward, elementwise, gated_activation, gated_activation_backward
from trnsim.kernels.embedding import embedding, embedding_backward
from trnsim.kernels.layernorm import layernorm, layernorm_backward
from trnsim.kernels.quantization import quantize_rows, quantize_tensor
from trnsim.kernels.reductions import reduce_all, reduce_columns, reduce_rows
from trnsim.kernels.rmsnorm import rmsnorm, rmsnorm_backward
from trnsim.kernels.rope import rope
from trnsim.kernels.softmax import softmax, softmax_backward

ROWS, WIDTH, VOCABULARY = 8192, 4096, 64000
SIZE = ROWS * WIDTH * 2


def x(rows=ROWS, width=WIDTH, dtype=BF16):
    return np.zeros((rows, width), dtype)


def w(size=WIDTH, dtype=BF16):
    return np.zeros(size, dtype)


def numbers(size=ROWS):
    return np.arange(size, dtype=np.int32)


CASES = [
    # kernel, least share, bytes, arguments
    (rmsnorm, 0.8, 2 * SIZE, lambda: (x(), w())),
    (rmsnorm_backward, 0.8, 3 * SIZE, lambda: (x(), x(), w())),
    (layernorm, 0.8, 2 * SIZE, lambda: (x(), w(), w())),
    # VectorE has more to do than DMA has to move.
    (layernorm_backward, 0.6, 3 * SIZE, lambda: (x(), x(), w())),
    (softmax, 0.8, 2 * SIZE, lambda: (x(),)),
    (softmax_backward, 0.69, 3 * SIZE, lambda: (x(), x())),
    # ScalarE's exponentials take longer than the logits to arrive.
    (cross_entropy, 0.7, 512 * VOCABULARY * 2, lambda: (x(512, VOCABULARY), numbers(512))),
    (
        cross_entropy_backward,
        0.8,
        512 * VOCABULARY * 4,
        lambda: (x(512, VOCABULARY), numbers(512), w(512, np.float32), w(512, np.float32)),
    ),
    (elementwise, 0.8, 3 * SIZE, lambda: (x(), None, x())),
    (elementwise, 0.8, 3 * SIZE, lambda: (x(), w(), x(), "gelu")),
    (activation_backward, 0.8, 3 * SIZE, lambda: (x(), x())),
    (gated_activation, 0.8, 3 * SIZE, lambda: (x(), x())),
    (gated_activation_backward, 0.75, 5 * SIZE, lambda: (x(), x(), x())),
    (rope, 0.74, 2 * SIZE + SIZE // 32, lambda: (np.zeros((ROWS, 32, 128), BF16), x(ROWS, 64), x(ROWS, 64))),
    (
        adam_step,
        0.75,
        14 * SIZE // 8,
        lambda: (*(x(2048, 2048, np.float32) for _ in range(3)), x(2048, 2048), w(3, np.float32), x(2048, 2048)),
    ),
    (embedding, 0.8, 2 * SIZE, lambda: (numbers(), x(32000))),
    # Gathers, whose descriptors software makes.
    (embedding_backward, 0.7, 5 * SIZE + 16000 * WIDTH * 4, lambda: (x(), numbers(), 16000)),
    (reduce_rows, 0.8, SIZE, lambda: (x(),)),
    (reduce_columns, 0.8, SIZE, lambda: (x(),)),
    (reduce_columns, 0.8, SIZE, lambda: (x(), "max")),
    (reduce_all, 0.8, SIZE, lambda: (x(),)),
    (quantize_rows, 0.75, SIZE * 3 // 2, lambda: (x(),)),
    (quantize_tensor, 0.78, SIZE * 5 // 2, lambda: (x(),)),
]


@pytest.mark.parametrize(("kernel", "least", "moved", "arguments"), CASES)
def test_share(kernel, least, moved, arguments):
    assert share_of_bandwidth(kernel, ("trn2", 1), moved, *arguments()) >= least
