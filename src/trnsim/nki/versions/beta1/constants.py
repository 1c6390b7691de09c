"""``neuronxcc.nki.language.constants``: what kernels take from it."""

from __future__ import annotations

from trnsim.nki.language.constants import sizeinbytes

__all__ = ["sizeinbytes"]
