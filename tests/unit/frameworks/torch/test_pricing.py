"""Prices of uses and regions: how they add up, and that they are kept."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from trnsim.errors import UnsupportedError
from trnsim.frameworks.torch import kept_prices
from trnsim.frameworks.torch.kept_prices import KeptPrices
from trnsim.frameworks.torch.pricing import Price, Pricer, together
from trnsim.frameworks.torch.uses import Used
from trnsim.operators.kernel_costs import KernelCosts

MATMUL = Used("matmul", "bfloat16", {"m": 96, "k": 128, "n": 192, "contract_lhs": 1})


def test_a_use_costs_what_its_kernel_does():
    price = Pricer("trn2", 1).use(MATMUL)
    cost = KernelCosts("trn2", 1).once("matmul", "bfloat16", m=96, k=128, n=192, contract_lhs=1)
    assert price.time_ps == cost.time_ps
    assert dict(price.busy_ps) == dict(cost.busy_ps)
    assert Pricer("trn2", 1).use(Used(MATMUL.operator, MATMUL.dtype, MATMUL.sizes, 3)).time_ps == 3 * cost.time_ps


def test_decoding_is_linear_between_blocks_of_context():
    def time(context):
        sizes = {"sequences": 1, "heads": 4, "kv_heads": 2, "context": context, "depth": 64, "width": 64}
        return Pricer("trn2", 1).use(Used("decode_attention", "bfloat16", sizes)).time_ps

    assert time(192) == pytest.approx((time(128) + time(256)) / 2)
    assert time(128) < time(200) < time(256)


def test_a_format_without_a_kernel_is_priced_as_bfloat16():
    plain = Pricer("trn1", 1).use(MATMUL)
    narrow = Pricer("trn1", 1).use(Used("matmul", "float8_e4m3", {"m": 96, "k": 128, "n": 192}))
    assert narrow.time_ps == plain.time_ps
    assert narrow.support == "assumed"
    assert "no float8_e4m3 kernel on trn1" in narrow.reason


def test_what_no_kernel_takes_is_refused():
    with pytest.raises(UnsupportedError, match="heads"):
        sizes = {"heads": 3, "kv_heads": 2, "queries": 64, "keys": 64, "depth": 64, "width": 64, "causal": 1}
        Pricer("trn2", 1).use(Used("attention", "bfloat16", sizes))


@st.composite
def prices(draw):
    busy = {name: draw(st.floats(0, 1e6)) for name in ("tensor", "vector", "scalar", "dma")}
    time = max(busy.values()) + draw(st.floats(0, 1e5))
    return Price(time, draw(st.floats(1, 1e6)), 1.0, busy, "calibrated", "", draw(st.booleans()))


@given(st.lists(prices(), min_size=1, max_size=5), st.floats(0, 2e6))
def test_a_region_is_between_its_busiest_engine_and_its_members_one_by_one(members, saved):
    found = together(members, saved)
    assert found.time_ps <= sum(p.time_ps for p in members) * (1 + 1e-9)
    assert found.time_ps >= max(found.busy_ps.values()) * (1 - 1e-9)
    products = sum(p.time_ps for p in members if p.product)
    assert found.time_ps >= products * (1 - 1e-9)
    assert found.hbm_bytes == pytest.approx(max(sum(p.hbm_bytes for p in members) - saved, 0), abs=1e-6)


def test_prices_are_kept_until_their_sources_change(tmp_path, monkeypatch):
    price = Price(1.5, 2.0, 3.0, {"tensor": 1.0}, "assumed", "why", product=True)
    first = KeptPrices(tmp_path, "trn2 1", Price)
    first.put("a", price)
    first.save()
    again = KeptPrices(tmp_path, "trn2 1", Price)
    assert again.get("a") == price
    assert again.get("b") is None
    assert KeptPrices(tmp_path, "trn2 2", Price).get("a") is None
    monkeypatch.setattr(kept_prices, "_sources", lambda: "another state of the sources")
    assert KeptPrices(tmp_path, "trn2 1", Price).get("a") is None
    monkeypatch.undo()
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"no prices")
    assert KeptPrices(tmp_path, "trn2 1", Price).get("a") is None


def test_only_a_few_states_are_kept(tmp_path, monkeypatch):
    for number in range(7):
        monkeypatch.setattr(kept_prices, "_sources", lambda number=number: f"state {number}")
        found = KeptPrices(tmp_path, "trn2 1", Price)
        found.put("a", Price(float(number)))
        found.save()
    assert len(list(tmp_path.iterdir())) == 4
    assert KeptPrices(tmp_path, "trn2 1", Price).get("a").time_ps == 6.0
