"""Where the published measurements lie: a folder named by ``TRNSIM_DATA``, with the tables and ``profiles_trn2``."""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path(os.environ["TRNSIM_DATA"]) if os.environ.get("TRNSIM_DATA") else None
REASON = "TRNSIM_DATA does not name a folder of published measurements"
