"""How a model is laid out over ranks, and what of it does not divide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trnsim.errors import InputError
from trnsim.numerics import as_dtype
from trnsim.workloads.model import Layer, Model, counted
from trnsim.workloads.operators import SCALED_BYTES
from trnsim.workloads.parts import Attention, GatedDelta, LatentAttention

RECOMPUTATION = ("none", "selective", "full")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Ranks and what they keep. A rank is a logical core on Trainium, a GPU elsewhere.

    Attributes:
        dp, tp, pp, cp: ranks of data, tensor, pipeline and context parallelism; the world is their product.
        ep: ranks that share the experts; they are also ranks of dp, cp and tp.
        expert_tp: ranks that share each expert; None: 1 where there is expert parallelism, else ``tp``.
        vpp: chunks of layers that a stage of the pipeline has (interleaved schedule).
        stages: layers of each chunk, in the order of layers; None: ``stage_layers`` decides.
        sequence_parallel: between products, ranks of tp hold a share of the tokens each.
        zero: 0; 1: optimiser states are shared by ranks of dp; 2: gradients too; 3: weights too.
        recompute: what the backward pass computes again: ``none``, ``selective`` (scores and softmax; with
            flash attention norms, activations and projections out of latents), ``full``
            (layers).
        micro_batch, global_batch: sequences.
        dtype: of activations; ``product_dtype`` of the products of layers with weights (``float8_e4m3``, ``mxfp8``
            ...), ``weight_dtype`` of the weights they read, if others. Embedding, head, routers and attention keep
            ``dtype``.
        gradient_dtype, master_dtype, moment_dtype: of gradients, of the optimiser's weights ("": it has none of its
            own) and of its moments, of which there are ``moments``.
        flash: attention keeps no scores.
        fused_loss: one kernel each way computes the loss; otherwise several pass over logits in float32.
        next_token: modules of multi-token prediction that are trained too, on the last stage.
    """

    dp: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    expert_tp: int | None = None
    vpp: int = 1
    stages: tuple[int, ...] | None = None
    sequence_parallel: bool = True
    zero: int = 0
    recompute: str = "none"
    micro_batch: int = 1
    global_batch: int | None = None
    dtype: str = "bfloat16"
    product_dtype: str = ""
    weight_dtype: str = ""
    gradient_dtype: str = "float32"
    master_dtype: str = "float32"
    moment_dtype: str = "float32"
    moments: int = 2
    flash: bool = True
    fused_loss: bool = True
    next_token: int = 0

    def __post_init__(self) -> None:
        for name in ("dp", "tp", "pp", "cp", "ep", "vpp", "micro_batch"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise InputError(f"{name} must be at least 1", operand=name, value=value)
        if self.recompute not in RECOMPUTATION:
            raise InputError("no such recomputation", operand="recompute", value=self.recompute, limit=RECOMPUTATION)
        if self.zero not in (0, 1, 2, 3):
            raise InputError("zero is 0, 1, 2 or 3", operand="zero", value=self.zero)
        for name in ("dtype", "product_dtype", "weight_dtype", "gradient_dtype", "master_dtype", "moment_dtype"):
            value = getattr(self, name)
            if value and value not in SCALED_BYTES:
                as_dtype(value)

    @property
    def ranks(self) -> int:
        return self.dp * self.tp * self.pp * self.cp

    @property
    def expert_ranks(self) -> int:
        """Ranks that share an expert."""
        if self.expert_tp is not None:
            return self.expert_tp
        return self.tp if self.ep == 1 else 1

    @property
    def replicas(self) -> int:
        """Ranks with the same weights, which share the optimiser's states."""
        return self.dp * self.cp

    @property
    def expert_replicas(self) -> int:
        """Ranks with the same experts."""
        return self.dp * self.cp * self.tp // (self.ep * self.expert_ranks)

    @property
    def micro_batches(self) -> int:
        """Of a step, for each rank of dp."""
        return (self.global_batch or self.dp * self.micro_batch) // (self.dp * self.micro_batch)

    @property
    def sharded(self) -> bool:
        return self.sequence_parallel and self.tp > 1

    def chunks(self, count: int) -> tuple[int, ...]:
        """Layers of each chunk, ``pp * vpp`` of them; chunk c is on stage c modulo pp."""
        return self.stages if self.stages is not None else stage_layers(count, self.pp * self.vpp)

    def check(self, model: Model, sequence: int) -> None:
        """Raise an error that names everything that does not divide.

        Raises:
            InputError: with each complaint on a line.
        """
        found = [*_model_complaints(self, model), *_batch_complaints(self, sequence)]
        chunks = self.chunks(len(model.layers))
        if self.stages is not None and (len(chunks) != self.pp * self.vpp or sum(chunks) != len(model.layers)):
            found.append(f"stages {chunks} are not {self.pp * self.vpp} chunks of {len(model.layers)} layers in all")
        elif min(chunks) < 0 or 0 in chunks[1:-1] or (0 in chunks and len(chunks) < 3):
            found.append(f"pp {self.pp} x vpp {self.vpp} is more than {len(model.layers)} layers")
        if found:
            raise InputError(f"{model.name} cannot be laid out so: " + "; ".join(found), operand="layout")


def _model_complaints(layout: Layout, model: Model) -> list[str]:
    found = []
    if layout.next_token > model.next_token:
        found.append(
            f"next_token {layout.next_token}, and there are {model.next_token} modules of multi-token prediction"
        )
    for layer, _ in model.kinds():
        for part in layer.parts:
            heads = getattr(part, "heads", 0)
            if heads and heads % layout.tp:
                found.append(f"tp {layout.tp} does not divide {heads} heads")
            kv = part.kv_heads if isinstance(part, Attention) else part.key_heads if isinstance(part, GatedDelta) else 0
            if kv and kv % layout.tp and layout.tp % kv:
                found.append(f"tp {layout.tp} and {kv} heads of keys do not divide one another")
            values = part.value_heads if isinstance(part, GatedDelta) else 0
            if values % layout.tp:
                found.append(f"tp {layout.tp} does not divide {values} heads of values")
            if isinstance(part, LatentAttention) and heads and layout.tp > heads:
                found.append(f"tp {layout.tp} is more than {heads} heads")
    mixture = next((layer.experts for layer, _ in model.kinds() if layer.experts), None)
    if mixture is None:
        if layout.ep > 1:
            found.append(f"ep {layout.ep}, and there are no experts")
        return list(dict.fromkeys(found))
    if mixture.experts % layout.ep:
        found.append(f"ep {layout.ep} does not divide {mixture.experts} experts")
    if mixture.inner % layout.expert_ranks:
        found.append(f"expert_tp {layout.expert_ranks} does not divide {mixture.inner}, the width of an expert")
    shared = layout.ep * layout.expert_ranks
    if layout.tp > 1 and not layout.sequence_parallel and shared != layout.tp:
        found.append(f"experts on other ranks than those of tp {layout.tp} need sequence parallelism")
    if (layout.dp * layout.cp * layout.tp) % shared:
        found.append(f"ep x expert_tp, {shared}, does not divide dp x cp x tp, {layout.dp * layout.cp * layout.tp}")
    return list(dict.fromkeys(found))


def _batch_complaints(layout: Layout, sequence: int) -> list[str]:
    found = []
    if layout.global_batch is not None and layout.global_batch % (layout.dp * layout.micro_batch):
        found.append(
            f"a global batch of {layout.global_batch} is no multiple of dp x micro_batch, "
            f"{layout.dp * layout.micro_batch}"
        )
    if layout.vpp > 1 and layout.pp == 1:
        found.append(f"vpp {layout.vpp} without a pipeline")
    if layout.vpp > 1 and layout.micro_batches % layout.pp:
        found.append(f"{layout.micro_batches} micro-batches are no multiple of pp {layout.pp}, as interleaving needs")
    if layout.cp > 1 and sequence % (2 * layout.cp):
        found.append(f"cp {layout.cp} needs a sequence that 2 x cp divides, not {sequence}")
    if layout.sharded and (sequence // layout.cp) % layout.tp:
        found.append(f"sequence parallelism over tp {layout.tp} does not divide {sequence // layout.cp} tokens")
    return found


def stage_layers(count: int, chunks: int) -> tuple[int, ...]:
    """Layers of each chunk: equal if they divide.

    If they do with one or two more, the last chunk, or the first and the last, have one less, as embedding and head
    take the time of a layer (Megatron-LM's ``--account-for-embedding-in-pipeline-split`` and ``-loss-``). Otherwise the
    chunks in the middle have one more.
    """
    if count % chunks == 0:
        return (count // chunks,) * chunks
    if chunks > 1 and (count + 1) % chunks == 0:
        return (*((count + 1) // chunks,) * (chunks - 1), (count + 1) // chunks - 1)
    if chunks > 2 and (count + 2) % chunks == 0:
        each = (count + 2) // chunks
        return (each - 1, *(each,) * (chunks - 2), each - 1)
    each, rest = divmod(count, chunks)
    first = (chunks - rest) // 2
    return tuple(each + (first <= i < first + rest) for i in range(chunks))


def stage_chunks(layout: Layout, model: Model, stage: int) -> list[Sequence[int]]:
    """Numbers of the layers of each chunk of a stage."""
    sizes = layout.chunks(len(model.layers))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [range(starts[c], starts[c] + sizes[c]) for c in range(stage, len(sizes), layout.pp)]


def stage_kinds(layout: Layout, model: Model, stage: int) -> list[tuple[Layer, int]]:
    """Different layers of a stage, with how often each occurs."""
    return counted(model.layers[i] for layers in stage_chunks(layout, model, stage) for i in layers)
