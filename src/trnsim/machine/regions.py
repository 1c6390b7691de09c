"""Where a tensor can live."""

from __future__ import annotations

from enum import Enum

from trnsim.machine.form import HBM, PSUM, SBUF


class MemoryRegion(Enum):
    """Memory regions of NKI. ``nl.hbm`` is ``private_hbm``, in NKI 0.2 ``shared_hbm``."""

    sbuf = "sbuf"
    psum = "psum"
    private_hbm = "private_hbm"
    shared_hbm = "shared_hbm"

    @property
    def memory(self) -> str:
        """``sbuf``, ``psum`` or ``hbm``."""
        return {"sbuf": SBUF, "psum": PSUM}.get(self.value, HBM)
