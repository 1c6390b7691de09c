"""Keeps what these tests simulate out of the user's folder for caches."""

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TRNSIM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
