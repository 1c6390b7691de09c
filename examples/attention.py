"""Softmax attention for one head, for NKI 0.6."""

import math

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def attention(q_t, k_t, v):
    """``softmax(q @ k.T / sqrt(d)) @ v`` for q_t and k_t [d, S] and v [S, d]; d at most 128, S a multiple of 512.

    One block of 128 queries at a time: scores into PSUM, the row maximum on VectorE, the exponential and its row sum in
    one pass of ScalarE, the weights transposed by TensorE so that they multiply the values.
    """
    d, seq = q_t.shape
    rows, columns = 128, 512
    assert d <= nl.tile_size.pmax
    assert seq % columns == 0
    result = nl.ndarray((seq, d), dtype=v.dtype, buffer=nl.shared_hbm)

    keys = nl.ndarray((d, seq), dtype=k_t.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=keys, src=k_t)
    values = nl.ndarray((rows, seq // rows, d), dtype=v.dtype, buffer=nl.sbuf)
    for j in range(seq // rows):
        nisa.dma_copy(dst=values[:, j, :], src=v[j * rows : (j + 1) * rows, :])

    for i in range(seq // rows):
        queries = nl.ndarray((d, rows), dtype=q_t.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=queries, src=q_t[:, i * rows : (i + 1) * rows])

        scores = nl.ndarray((rows, seq), dtype=nl.float32, buffer=nl.sbuf)
        for j in range(seq // columns):
            block = nl.ndarray((rows, columns), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_matmul(dst=block, stationary=queries, moving=keys[:, j * columns : (j + 1) * columns])
            nisa.tensor_scalar(
                dst=scores[:, j * columns : (j + 1) * columns],
                data=block,
                op0=nl.multiply,
                operand0=1.0 / math.sqrt(d),
            )

        negative_max = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=negative_max, op=nl.maximum, data=scores, axis=1, negate=True)
        weights = nl.ndarray((rows, seq), dtype=v.dtype, buffer=nl.sbuf)
        total = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(
            dst=weights, op=nl.exp, data=scores, bias=negative_max, reduce_op=nl.add, reduce_res=total
        )
        scale = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.reciprocal(dst=scale, data=total)

        output = nl.ndarray((rows, d), dtype=nl.float32, buffer=nl.psum)
        for j in range(seq // rows):
            turned = nl.ndarray((rows, rows), dtype=v.dtype, buffer=nl.psum)
            nisa.nc_transpose(dst=turned, data=weights[:, j * rows : (j + 1) * rows])
            weights_t = nl.ndarray((rows, rows), dtype=v.dtype, buffer=nl.sbuf)
            nisa.tensor_copy(dst=weights_t, src=turned)
            nisa.nc_matmul(dst=output, stationary=weights_t, moving=values[:, j, :])

        normalised = nl.ndarray((rows, d), dtype=result.dtype, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=normalised, data=output, op0=nl.multiply, operand0=scale)
        nisa.dma_copy(dst=result[i * rows : (i + 1) * rows, :], src=normalised)
    return result
