"""A plugin for nki-samples at 7af4e4d: its tests believe that they run on a trn2 machine."""

from __future__ import annotations


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item.module, "get_target_string"):
            item.module.get_target_string = lambda: "trn2"
