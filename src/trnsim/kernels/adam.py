"""One step of Adam or AdamW: float32 weights and moments, updated in place, and weights in the format of the model.

ScalarE takes roots and reciprocals, VectorE and GpSimdE add up; all is between 28 bytes an element that travel.
"""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.kernels.contract import Contract, Problem
from trnsim.kernels.elementwise import flat_tiles, flat_view, load_flat
from trnsim.kernels.shapes import array, elements_axis, item
from trnsim.kernels.tiles import check_format, check_rows, filled, load_to_all
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

# Below what a moment of float32 gradients is; ScalarE's root is defined from 2^-116 on.
LEAST = 1e-30


@nki.jit
def adam_step(
    weight: Any,
    first: Any,
    second: Any,
    gradient: Any,
    schedule: Any,
    model_weight: Any,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = True,
) -> Any:
    """One optimiser step, as ``torch.optim.AdamW`` (``decoupled``) or ``torch.optim.Adam`` takes it.

    Args:
        weight, first, second: the weights and their moments, float32 of one shape in HBM; changed in place.
        gradient: of that shape, float32, bfloat16 or float16.
        schedule: [3] float32: learning rate, 1 - beta1^t, 1 - beta2^t of step t = 1, 2, ...: as a tensor, so that
            every step runs the same program.
        model_weight: of that shape, bfloat16, float16 or float32; receives the new weights, rounded.
        beta1, beta2, eps, weight_decay, decoupled: as PyTorch has them. The root of the second moment is that of the
            moment + 1e-30.

    Returns:
        (weight, first, second, model_weight). Two cores share the elements.
    """
    for name, tensor in (("weight", weight), ("first", first), ("second", second)):
        check_rows(name, tensor, weight.shape, nl.float32)
    check_format("gradient", gradient.dtype)
    check_rows("gradient", gradient, weight.shape, gradient.dtype)
    check_format("model_weight", model_weight.dtype)
    check_rows("model_weight", model_weight, weight.shape, model_weight.dtype)
    check_rows("schedule", schedule, (3,), nl.float32)
    rates = _rates(load_to_all(schedule), eps, weight_decay)
    least = filled((128, 1), LEAST)
    for tile in flat_tiles(weight):
        lanes = tile[1]
        held, mean, square = load_flat(weight, tile), load_flat(first, tile), load_flat(second, tile)
        arrived = load_flat(gradient, tile)
        if weight_decay and not decoupled:
            whole = nl.ndarray(held.shape, dtype=nl.float32, buffer=nl.sbuf)
            nisa.scalar_tensor_tensor(
                dst=whole, data=held, op0=nl.multiply, operand0=weight_decay, op1=nl.add, operand1=arrived
            )
            arrived = whole
        part = nl.ndarray(held.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=part, op=nl.copy, data=arrived, scale=1.0 - beta1)
        nisa.scalar_tensor_tensor(dst=mean, data=mean, op0=nl.multiply, operand0=beta1, op1=nl.add, operand1=part)
        nisa.dma_copy(dst=flat_view(first, tile), src=mean)
        power = nl.ndarray(held.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=power, op=nl.square, data=arrived, scale=(1.0 - beta2) ** 0.5)
        nisa.scalar_tensor_tensor(dst=square, data=square, op0=nl.multiply, operand0=beta2, op1=nl.add, operand1=power)
        nisa.dma_copy(dst=flat_view(second, tile), src=square)
        # step = -rate / bias1 * mean / (sqrt(square / bias2) + eps): the factors go into root and eps.
        nisa.activation(dst=power, op=nl.sqrt, data=square, bias=least[0:lanes, :])
        nisa.tensor_scalar(
            dst=power,
            data=power,
            op0=nl.multiply,
            operand0=rates[0:lanes, 0:1],
            op1=nl.add,
            operand1=rates[0:lanes, 1:2],
        )
        nisa.activation(dst=power, op=nl.reciprocal, data=power)
        nisa.tensor_tensor(dst=part, data1=mean, data2=power, op=nl.multiply)
        if weight_decay and decoupled:
            nisa.scalar_tensor_tensor(
                dst=held, data=held, op0=nl.multiply, operand0=rates[0:lanes, 2:3], op1=nl.add, operand1=part
            )
        else:
            nisa.tensor_tensor(dst=held, data1=held, data2=part, op=nl.add)
        nisa.dma_copy(dst=flat_view(weight, tile), src=held)
        if model_weight.dtype == nl.float32:
            nisa.dma_copy(dst=flat_view(model_weight, tile), src=held)
        else:
            rounded = nl.ndarray(held.shape, dtype=model_weight.dtype, buffer=nl.sbuf)
            nisa.activation(dst=rounded, op=nl.copy, data=held)
            nisa.dma_copy(dst=flat_view(model_weight, tile), src=rounded)
    return weight, first, second, model_weight


def _rates(schedule: Any, eps: float, weight_decay: float) -> Any:
    """[128, 3]: -bias1 / rate / sqrt(bias2), -eps bias1 / rate, 1 - rate * weight_decay."""
    rate, bias1, bias2 = schedule[:, 0:1], schedule[:, 1:2], schedule[:, 2:3]
    rates = nl.ndarray((128, 3), dtype=nl.float32, buffer=nl.sbuf)
    inverse = nl.ndarray((128, 2), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse[:, 0:1], data=rate)
    nisa.activation(dst=inverse[:, 1:2], op=nl.rsqrt, data=bias2)
    nisa.scalar_tensor_tensor(
        dst=rates[:, 1:2], data=inverse[:, 0:1], op0=nl.multiply, operand0=-1.0, op1=nl.multiply, operand1=bias1
    )
    nisa.tensor_tensor(dst=rates[:, 0:1], data1=rates[:, 1:2], data2=inverse[:, 1:2], op=nl.multiply)
    nisa.tensor_scalar(dst=rates[:, 1:2], data=rates[:, 1:2], op0=nl.multiply, operand0=eps)
    nisa.tensor_scalar(dst=rates[:, 2:3], data=rate, op0=nl.multiply, operand0=-weight_decay, op1=nl.add, operand1=1.0)
    return rates


def _arguments(problem: Problem) -> tuple[Any, ...]:
    count = problem.sizes["elements"]
    whole = [array(count, dtype="float32") for _ in range(3)]
    gradient, model = array(count, dtype=problem.dtype), array(count, dtype=problem.dtype)
    decay = 0.0 if problem.options["weight_decay"] == "none" else 0.01
    decoupled = problem.options["weight_decay"] != "coupled"
    schedule = array(3, dtype="float32")
    return *whole, gradient, schedule, model, 0.9, 0.999, 1e-8, decay, decoupled


CONTRACTS = (
    Contract(
        name="adam",
        kernel=adam_step,
        sizes=("elements",),
        options={"weight_decay": ("decoupled", "coupled", "none")},
        arguments=_arguments,
        axes=elements_axis,
        flops=lambda p: 14 * p.sizes["elements"],
        bytes=lambda p: p.sizes["elements"] * (24 + 2 * item(p)),
        summary="a step of Adam; the format is that of gradients and of the model's weights",
    ),
)
