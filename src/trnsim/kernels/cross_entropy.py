"""Cross-entropy of a softmax over a vocabulary, forward and backward.

The logits pass through SBUF once each way, in pieces of a row: the largest so far and the sum of exponentials relative
to it are corrected from piece to piece. The logit of the target is fetched by its address.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trnsim import nki
from trnsim.errors import InputError
from trnsim.kernels.contract import Axis, Contract, Problem
from trnsim.kernels.shapes import array, item, moved
from trnsim.kernels.tiles import PARTITIONS, check_format, check_rows, item_bytes, pieces, share
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

# Bytes a partition of a piece of the logits.
PIECE_BYTES = 16 * 1024
# Below any logit, so that the first piece's largest replaces it and what came before it counts nothing.
LOWEST = -3.0e38


def _check(logits: Any, targets: Any) -> None:
    assert len(logits.shape) == 2, f"logits are {tuple(logits.shape)}: they must be [rows, vocabulary]"
    check_format("logits", logits.dtype)
    check_rows("targets", targets, (logits.shape[0],), nl.int32)
    assert logits.size < 2**31, f"{logits.size} logits: their addresses must fit in int32; call with fewer rows"


def _column(tensor: Any, start: int, lanes: int) -> Any:
    """Elements ``start`` to ``start + lanes`` of a vector in HBM, [lanes, 1]."""
    return tensor[start : start + lanes].reshape((lanes, 1))


def _loaded(tensor: Any, start: int, lanes: int) -> Any:
    tile = nl.ndarray((lanes, 1), dtype=tensor.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=_column(tensor, start, lanes))
    return tile


def _addresses(targets: Any, start: int, lanes: int, width: int) -> Any:
    """Where the logits of the targets of rows ``start`` to ``start + lanes`` are, in elements."""
    wanted = _loaded(targets, start, lanes)
    rows = nl.ndarray((lanes, 1), dtype=nl.int32, buffer=nl.sbuf)
    nisa.iota(dst=rows, pattern=[[0, 1]], offset=start * width, channel_multiplier=width)
    places = nl.ndarray((lanes, 1), dtype=nl.int32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=places, data1=rows, data2=wanted, op=nl.add, engine=nisa.engine.gpsimd)
    return places


def _elements(tensor: Any, places: Any) -> Any:
    """The elements of a tensor at ``places``, [lanes, 1]."""
    flat = tensor.reshape((tensor.size, 1))
    return flat.ap(pattern=[[1, places.shape[0]], [1, 1]], vector_offset=places, indirect_dim=0)


@nki.jit
def cross_entropy(logits: Any, targets: Any) -> Any:
    """-log softmax(logits)[target] of each row.

    Args:
        logits: [rows, vocabulary] in HBM, float32, bfloat16 or float16, any width; fewer than 2^31 elements.
        targets: [rows] int32, each in [0, vocabulary): none is ignored, and one beyond is a logit of another row.

    Returns:
        ([rows], [rows]) float32: the losses, and log(sum(exp(logits))), which ``cross_entropy_backward`` wants. Two
        cores share the rows.
    """
    _check(logits, targets)
    rows, width = logits.shape
    losses = nl.ndarray((rows,), dtype=nl.float32, buffer=nl.shared_hbm)
    logs = nl.ndarray((rows,), dtype=nl.float32, buffer=nl.shared_hbm)
    own_first, own_last = share(rows, PARTITIONS)
    found = []
    for start, lanes in pieces(own_first, own_last, PARTITIONS):
        total, largest = _exponentials(logits, start, lanes)
        found.append((start, lanes, total, largest))
    # At the end: ScalarE loads another function table for logarithms.
    for start, lanes, total, largest in found:
        log = nl.ndarray((lanes, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=log, op=nl.log, data=total)
        nisa.tensor_tensor(dst=log, data1=log, data2=largest, op=nl.add)
        nisa.dma_copy(dst=_column(logs, start, lanes), src=log)
        chosen = nl.ndarray((lanes, 1), dtype=logits.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=chosen, src=_elements(logits, _addresses(targets, start, lanes, width)))
        loss = nl.ndarray((lanes, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=loss, data1=log, data2=chosen, op=nl.subtract)
        nisa.dma_copy(dst=_column(losses, start, lanes), src=loss)
    return losses, logs


def _exponentials(logits: Any, start: int, lanes: int) -> tuple[Any, Any]:
    """(sum of exp(logit - largest), largest) of ``lanes`` rows, [lanes, 1] float32 each."""
    total: Any = None
    largest: Any = None
    for at, size in pieces(0, logits.shape[1], PIECE_BYTES // item_bytes(logits.dtype)):
        data = nl.ndarray((lanes, size), dtype=logits.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=data, src=logits[start : start + lanes, at : at + size])
        found = nl.ndarray((lanes, 1), dtype=logits.dtype, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=found, op=nl.maximum, data=data, axis=1)
        before = largest
        largest = nl.ndarray((lanes, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=largest, data=found, op0=nl.maximum, operand0=LOWEST if before is None else before)
        shift = nl.ndarray((lanes, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=shift, data=largest, op0=nl.multiply, operand0=-1.0)
        part = nl.ndarray((lanes, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(dst=data, op=nl.exp, data=data, bias=shift, reduce_op=nl.add, reduce_res=part)
        if total is None:
            total = part
        else:
            shrunk = nl.ndarray((lanes, 1), dtype=nl.float32, buffer=nl.sbuf)
            nisa.activation(dst=shrunk, op=nl.exp, data=before, bias=shift)
            both = nl.ndarray((lanes, 1), dtype=nl.float32, buffer=nl.sbuf)
            nisa.scalar_tensor_tensor(dst=both, data=total, op0=nl.multiply, operand0=shrunk, op1=nl.add, operand1=part)
            total = both
    return total, largest


@nki.jit
def cross_entropy_backward(logits: Any, targets: Any, logs: Any, gradient: Any) -> Any:
    """Gradient of ``cross_entropy`` with respect to ``logits``: (softmax - one at the target) * gradient.

    Args:
        logits, targets: what ``cross_entropy`` was given.
        logs: [rows] float32, its second result.
        gradient: [rows] float32, the gradient of each loss.

    Returns:
        [rows, vocabulary] in the format of ``logits``; probabilities are rounded to it first.
    """
    _check(logits, targets)
    rows, width = logits.shape
    check_rows("logs", logs, (rows,), nl.float32)
    check_rows("gradient", gradient, (rows,), nl.float32)
    result = nl.ndarray(logits.shape, dtype=logits.dtype, buffer=nl.shared_hbm)
    own_first, own_last = share(rows, PARTITIONS)
    corrections = []
    for start, lanes in pieces(own_first, own_last, PARTITIONS):
        shift = nl.ndarray((lanes, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=shift, data=_loaded(logs, start, lanes), op0=nl.multiply, operand0=-1.0)
        factor = _loaded(gradient, start, lanes)
        for at, size in pieces(0, width, PIECE_BYTES // item_bytes(logits.dtype)):
            data = nl.ndarray((lanes, size), dtype=logits.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=data, src=logits[start : start + lanes, at : at + size])
            nisa.activation(dst=data, op=nl.exp, data=data, bias=shift)
            nisa.tensor_scalar(dst=data, data=data, op0=nl.multiply, operand0=factor, engine=nisa.engine.vector)
            nisa.dma_copy(dst=result[start : start + lanes, at : at + size], src=data)
        places = _addresses(targets, start, lanes, width)
        chosen = nl.ndarray((lanes, 1), dtype=logits.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=chosen, src=_elements(logits, places))
        at_target = nl.ndarray((lanes, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=at_target, op=nl.exp, data=chosen, bias=shift)
        corrected = nl.ndarray((lanes, 1), dtype=logits.dtype, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=corrected, data=at_target, op0=nl.subtract, operand0=1.0, op1=nl.multiply, operand1=factor
        )
        corrections.append((places, corrected))
    # At the end: a scatter waits for all that was written to the tensor before.
    for places, corrected in corrections:
        nisa.dma_copy(dst=_elements(result, places), src=corrected)
    return result


def _axes(problem: Problem) -> tuple[Axis, ...]:
    rows, piece = PARTITIONS * problem.cores, PIECE_BYTES // item(problem)
    return (
        Axis("rows", rows, 4 * PARTITIONS, far=8),
        Axis("vocabulary", piece // 8, piece, low=piece // 8, grain=64, far=32),
    )


def _arguments(problem: Problem) -> tuple[Any, ...]:
    rows = problem.sizes["rows"]
    return array(rows, problem.sizes["vocabulary"], dtype=problem.dtype), array(rows, dtype="int32")


def _backward_arguments(problem: Problem) -> tuple[Any, ...]:
    logs, grads = (array(problem.sizes["rows"], dtype="float32") for _ in range(2))
    return (*_arguments(problem), logs, grads)


def _fits(problem: Problem) -> None:
    sizes = problem.sizes["rows"], problem.sizes["vocabulary"]
    rows, width = (size if isinstance(size, int) else int(np.max(size)) for size in sizes)
    if rows * width >= 2**31:
        limit = (2**31 - 1) // width
        raise InputError(
            f"{rows} rows of {width} logits: addresses must fit in int32; nearest: {limit} rows",
            operand="rows",
            value=rows,
            limit=limit,
        )


CONTRACTS = (
    Contract(
        name="cross_entropy",
        kernel=cross_entropy,
        sizes=("rows", "vocabulary"),
        check=_fits,
        arguments=_arguments,
        axes=_axes,
        flops=lambda p: 4 * p.sizes["rows"] * p.sizes["vocabulary"],
        bytes=lambda p: moved(p, p.sizes["rows"] * p.sizes["vocabulary"]) + 16 * p.sizes["rows"],
        summary="-log softmax(logits)[target] of each row",
    ),
    Contract(
        name="cross_entropy_backward",
        kernel=cross_entropy_backward,
        sizes=("rows", "vocabulary"),
        check=_fits,
        arguments=_backward_arguments,
        axes=_axes,
        flops=lambda p: 3 * p.sizes["rows"] * p.sizes["vocabulary"],
        bytes=lambda p: moved(p, 2 * p.sizes["rows"] * p.sizes["vocabulary"]) + 16 * p.sizes["rows"],
        summary="gradient of cross_entropy with respect to logits",
    ),
)
