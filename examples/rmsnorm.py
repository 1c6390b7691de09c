"""RMSNorm for NKI 0.6."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def rmsnorm(x, weight, epsilon=1e-6):
    """``x / sqrt(mean(x * x) + epsilon) * weight`` by rows, for x [N, D] with N a multiple of 128 and weight [1, D]."""
    n, d = x.shape
    rows = nl.tile_size.pmax
    assert n % rows == 0
    result = nl.ndarray((n, d), dtype=x.dtype, buffer=nl.shared_hbm)

    scale_row = nl.ndarray((1, d), dtype=weight.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=scale_row, src=weight)
    scale = nl.broadcast_to(scale_row, (rows, d))

    for i in range(n // rows):
        tile = nl.ndarray((rows, d), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x[i * rows : (i + 1) * rows, :])

        squares = nl.ndarray((rows, d), dtype=nl.float32, buffer=nl.sbuf)
        total = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(dst=squares, op=nl.square, data=tile, reduce_op=nl.add, reduce_res=total)

        mean = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=mean, data=total, op0=nl.multiply, operand0=1.0 / d, op1=nl.add, operand1=epsilon)
        inverse = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=inverse, op=nl.rsqrt, data=mean)

        out = nl.ndarray((rows, d), dtype=x.dtype, buffer=nl.sbuf)
        nisa.scalar_tensor_tensor(
            dst=out, data=tile, op0=nl.multiply, operand0=inverse, op1=nl.multiply, operand1=scale
        )
        nisa.dma_copy(dst=result[i * rows : (i + 1) * rows, :], src=out)
    return result
