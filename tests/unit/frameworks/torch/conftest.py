"""Lets these tests import what they share: test files are imported by path, not from a package."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'trnsim[torch]'")
sys.path.insert(0, str(Path(__file__).parent))
