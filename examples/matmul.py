"""A tiled matrix multiplication for NKI 0.6."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def tiled_matmul(lhs_t, rhs):
    """``lhs_t.T @ rhs`` for lhs_t [K, M] and rhs [K, N]; K and M multiples of 128, N of 512.

    The rows of one block of ``lhs_t`` stay in SBUF while the columns of ``rhs`` stream past.
    """
    k_size, m_size = lhs_t.shape
    _, n_size = rhs.shape
    tile_k, tile_m, tile_n = nl.tile_size.pmax, nl.tile_size.gemm_stationary_fmax, nl.tile_size.gemm_moving_fmax
    assert k_size % tile_k == 0
    assert m_size % tile_m == 0
    assert n_size % tile_n == 0
    k_tiles = k_size // tile_k
    result = nl.ndarray((m_size, n_size), dtype=lhs_t.dtype, buffer=nl.shared_hbm)

    for n in range(n_size // tile_n):
        moving = nl.ndarray((tile_k, k_tiles, tile_n), dtype=rhs.dtype, buffer=nl.sbuf)
        for k in range(k_tiles):
            nisa.dma_copy(
                dst=moving[:, k, :],
                src=rhs[k * tile_k : (k + 1) * tile_k, n * tile_n : (n + 1) * tile_n],
            )
        for m in range(m_size // tile_m):
            stationary = nl.ndarray((tile_k, k_tiles, tile_m), dtype=lhs_t.dtype, buffer=nl.sbuf)
            for k in range(k_tiles):
                nisa.dma_copy(
                    dst=stationary[:, k, :],
                    src=lhs_t[k * tile_k : (k + 1) * tile_k, m * tile_m : (m + 1) * tile_m],
                )
            product = nl.ndarray((tile_m, tile_n), dtype=nl.float32, buffer=nl.psum)
            for k in range(k_tiles):
                nisa.nc_matmul(dst=product, stationary=stationary[:, k, :], moving=moving[:, k, :])
            out = nl.ndarray((tile_m, tile_n), dtype=result.dtype, buffer=nl.sbuf)
            nisa.tensor_copy(dst=out, src=product)
            nisa.dma_copy(dst=result[m * tile_m : (m + 1) * tile_m, n * tile_n : (n + 1) * tile_n], src=out)
    return result
