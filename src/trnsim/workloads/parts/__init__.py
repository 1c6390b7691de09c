"""Parts of a layer: what mixes tokens, and what works on each of them."""

from trnsim.workloads.parts.attention import Attention
from trnsim.workloads.parts.base import Kept, Part
from trnsim.workloads.parts.compressed import CompressedAttention
from trnsim.workloads.parts.feed_forward import Dense, Experts
from trnsim.workloads.parts.latent import Indexer, LatentAttention
from trnsim.workloads.parts.linear import GatedDelta, Lightning, Mamba2, RecurrentUnit

__all__ = [
    "Attention",
    "CompressedAttention",
    "Dense",
    "Experts",
    "GatedDelta",
    "Indexer",
    "Kept",
    "LatentAttention",
    "Lightning",
    "Mamba2",
    "Part",
    "RecurrentUnit",
]
