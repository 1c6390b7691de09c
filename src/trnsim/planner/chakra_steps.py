"""A training step of a plan as Chakra traces: one rank of each stage of the pipeline.

Nodes stand in the order in which the rank works through its micro-batches (``pipeline.order``), layers one by one; each
waits for the one before it, passes for what the neighbours send, and the optimiser for all. Durations are those of
operators and exchanges alone, before a stack's factors, in whole microseconds; sums of ``length_us`` are therefore a
rank's time with nothing hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trnsim.planner.chakra import COLLECTIVE, COLLECTIVES, COMPUTE, RECEIVE, SEND, Node, Trace, Value
from trnsim.planner.groups import stride
from trnsim.planner.pipeline import FORWARD, WEIGHT, Schedule, order
from trnsim.planner.training import prices_of
from trnsim.workloads.layout import stage_chunks
from trnsim.workloads.operators import Exchange, Use
from trnsim.workloads.training import layer_steps, outer_steps, training_pass, update

if TYPE_CHECKING:
    from trnsim.planner.pricing import Prices
    from trnsim.planner.training import TrainingPlan
    from trnsim.workloads.operators import Step

_OF = {name: number for number, name in enumerate(COLLECTIVES)}


class _Writer:
    """Nodes of a rank, one after the other."""

    def __init__(self, plan: TrainingPlan, prices: Prices) -> None:
        self.plan, self.prices = plan, prices
        self.nodes: list[Node] = []
        self.last: tuple[int, ...] = ()

    def add(self, name: str, kind: int, microseconds: float, **attributes: int | str | bool) -> None:
        number = len(self.nodes)
        held = {"is_cpu_op": False, **attributes}
        self.nodes.append(Node(number, name, kind, self.last, (), 0, round(microseconds), held))
        self.last = (number,)

    def items(self, step: Step, where: str) -> None:
        """Operators and exchanges, each as often as it counts."""
        layout = self.plan.layout
        for item in step:
            count = max(round(float(item.count)), 1)
            time, *_ = self.prices.priced(item, layout)
            name = f"{where}.{item.where}.{item.operation if isinstance(item, Exchange) else item.operator}"
            for _ in range(count):
                if isinstance(item, Use):
                    flops = round(float(item.flops) / count) if item.operator != "permute" else 0
                    size = round(float(item.hbm_bytes) / count)
                    self.add(name, COMPUTE, time / count, num_ops=flops, tensor_size=size)
                else:
                    size = round(float(item.bytes))
                    self.add(
                        name, COLLECTIVE, time / count, comm_type=_OF[item.operation], comm_size=size,
                        pg_name=item.group, pg_size=int(item.ranks), pg_stride=stride(layout, item.group),
                    )  # fmt: skip

    def neighbour(self, kind: int, rank: int, other: int, tag: int) -> None:
        time, *_ = self.prices.send(self.plan.layout)
        p = training_pass(self.prices.model, self.plan.layout, self.prices.sequence)
        nbytes = round(float(p.rows * self.prices.model.hidden * p.itemsize))
        source, target = (rank, other) if kind == SEND else (other, rank)
        name = "send" if kind == SEND else "receive"
        # The receiver waits; what is sent leaves beside what follows.
        took = time if kind == RECEIVE else 0.0
        self.add(name, kind, took, comm_src=source, comm_dst=target, comm_tag=tag, comm_size=nbytes)


def trace_of(plan: TrainingPlan, stage: int) -> Trace:
    """The step of the first rank of a stage.

    Raises:
        InputError: the layout does not fit the model.
        UnsupportedError: an operator or exchange that nothing is known of.
    """
    layout, model = plan.layout, plan.model
    layout.check(model, plan.sequence)
    prices = prices_of(plan)
    writer = _Writer(plan, prices)
    name = "interleaved" if layout.vpp > 1 else plan.schedule
    schedule = Schedule(name, layout.pp, layout.micro_batches, layout.vpp)
    p = training_pass(model, layout, plan.sequence)
    steps = {layer: layer_steps(layout, p, layer) for layer, _ in model.kinds()}
    first, last = outer_steps(model, layout, p)
    chunks = stage_chunks(layout, model, stage)
    apart = stride(layout, "pp")
    rank, pieces = stage * apart, layout.pp * layout.vpp

    def beside(way: int) -> int:
        return (stage + way) % layout.pp * apart

    for kind, micro, chunk in order(schedule, stage):
        piece = chunk * layout.pp + stage
        # Tags: micro-batch, boundary between pieces, forward or back.
        tag = (micro * pieces + piece) * 2
        if kind == FORWARD:
            if piece > 0:
                writer.neighbour(RECEIVE, rank, beside(-1), tag)
            else:
                writer.items(first[0], f"m{micro}")
            for number in chunks[chunk]:
                writer.items(steps[model.layers[number]][0], f"m{micro}.layer{number}")
            if piece == pieces - 1:
                writer.items(last[0], f"m{micro}")
            else:
                writer.neighbour(SEND, rank, beside(1), tag + 2)
            continue
        weights = kind == WEIGHT

        def now(step: Step, *, weights: bool = weights) -> Step:
            """Of a backward pass: all, or where it is split what is for inputs or for weights."""
            if not schedule.splits_backward:
                return step
            return [item for item in step if item.where.endswith(".weight") == weights]

        if not weights and piece < pieces - 1:
            writer.neighbour(RECEIVE, rank, beside(1), tag + 3)
        if piece == pieces - 1:
            writer.items(now(last[1]), f"m{micro}.back")
        for number in reversed(chunks[chunk]):
            writer.items(now(steps[model.layers[number]][1]), f"m{micro}.back.layer{number}")
        if piece == 0:
            writer.items(now(first[1]), f"m{micro}.back")
        elif not weights:
            writer.neighbour(SEND, rank, beside(-1), tag + 1)
    writer.items(update(model, layout, stage), "step")
    where: dict[str, Value] = {"system": plan.on.name, "rank": rank, "stage": stage}
    metadata = {"schema": "trnsim", "model": model.name, **where}
    return Trace(tuple(writer.nodes), metadata)
