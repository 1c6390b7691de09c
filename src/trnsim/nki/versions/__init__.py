"""Older generations of NKI, as views of the one implementation."""
