"""NCCL's time: its ring is the fabric's ring with the own part beside it; growth with bytes; what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trnsim.errors import InputError, UnsupportedError
from trnsim.fabric import closed
from trnsim.fabric.group import group
from trnsim.fabric.links import LinkModel, Protocol
from trnsim.fabric.nccl import CONSTANTS, network_ps, node_ps, terms
from trnsim.fabric.nccl_constants import network_shape, networks, nvlink
from trnsim.fabric.predict import predict
from trnsim.fabric.selection import WIRE, NcclChoice

MIB = 1 << 20
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "permute")
TECHNOLOGIES = ("NVLink 3", "NVLink 4", "NVLink 5")


@pytest.mark.parametrize("collective", ["all_reduce", "all_gather", "reduce_scatter"])
@pytest.mark.parametrize("protocol", ["LL", "LL128", "Simple"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ring_is_the_ring_of_the_fabric(collective, protocol, ranks):
    """Its steps over the links, and a rank's own part at the same rate."""
    values, nbytes, rate = nvlink("NVLink 4").values, ranks * MIB, 450e9
    efficiency = WIRE[protocol] / values["ring_cost"]
    step = round(values[f"{protocol.lower()}_step"])
    model = LinkModel(
        technology="NVLink 4",
        protocols=(Protocol(name=protocol, step_latency_ps=step, efficiency=efficiency),),
        launch_ps=round(values["launch"]),
    )
    where = group("p5.48xlarge", ranks)
    ring = closed.collective_time(collective, "ring", where, nbytes, models={"NVLink 4": model})
    own = nbytes / ranks / (efficiency * rate) * 1e12
    found = terms(collective, ranks, nbytes, rate, NcclChoice("ring", protocol, 0.0))
    assert sum(w * values[n] for n, w in found.items()) == pytest.approx(ring + own, rel=1e-6)


def test_no_more_than_twelve_constants():
    for technology in TECHNOLOGIES:
        assert set(nvlink(technology).values) <= set(CONSTANTS)
        assert len(nvlink(technology).values) + 2 <= 12  # and latency and efficiency of the network


@given(
    st.sampled_from(TECHNOLOGIES), st.sampled_from(COLLECTIVES), st.sampled_from(["ring", "nvls", "pairs"]),
    st.sampled_from(["LL", "LL128", "Simple"]), st.integers(2, 72), st.integers(0, 1 << 34), st.integers(0, 1 << 30),
)  # fmt: skip
def test_time_never_falls_with_bytes(technology, collective, algorithm, protocol, ranks, nbytes, more):
    values = dict.fromkeys(CONSTANTS, 1.0) | dict(nvlink(technology).values)
    if collective in ("all_to_all", "permute", "broadcast"):
        algorithm = "pairs"
    elif algorithm == "pairs":
        algorithm = "ring"
    choice = NcclChoice(algorithm, protocol, 0.0)
    low, high = (
        sum(w * values[n] for n, w in terms(collective, ranks, size, 450e9, choice).items())
        for size in (nbytes, nbytes + more)
    )
    assert high >= low


@given(st.sampled_from(COLLECTIVES), st.integers(2, 1000), st.integers(1, 8), st.integers(0, 1 << 34),
       st.integers(0, 1 << 30))  # fmt: skip
def test_network_time_never_falls_with_bytes(collective, nodes, ranks, nbytes, more):
    network, shape = networks()["p5"], network_shape()
    low, high = (
        network_ps(network, shape, collective, nodes, ranks, size, 400e9)[0] for size in (nbytes, nbytes + more)
    )
    assert high >= low * (1 - 1e-12)


def test_support_of_a_prediction():
    cases = [
        ("p5.48xlarge", 8, "all_reduce", MIB, "calibrated"),
        ("p5.48xlarge", 6, "all_reduce", MIB, "interpolated"),
        ("gb300-nvl72", 4, "all_reduce", MIB, "calibrated"),
        ("gb300-nvl72", 8, "all_reduce", MIB, "extrapolated"),
        ("p4d.24xlarge", 8, "all_reduce", MIB, "extrapolated"),
        ("p4de.24xlarge", 16, "all_reduce", 4096 * MIB, "extrapolated"),
        ("p5.48xlarge", 8, "all_reduce", 1 << 30, "extrapolated"),
        ("p5.48xlarge", 8, "broadcast", MIB, "extrapolated"),
        ("p5.48xlarge", 16, "all_reduce", MIB, "calibrated"),
        ("p5.48xlarge", 32, "all_reduce", MIB, "extrapolated"),
        ("p6-b200.48xlarge", 16, "all_reduce", MIB, "extrapolated"),
        ("gb300-nvl72", 72, "all_reduce", MIB, "extrapolated"),
        ("dgx-h100", 16, "all_reduce", MIB, "extrapolated"),
        ("trn1.32xlarge", 32, "all_gather", MIB // 2, "calibrated"),
        ("trn1.32xlarge", 32, "all_gather", MIB, "extrapolated"),
        ("trn2.48xlarge", 64, "all_reduce", 8192, "extrapolated"),
    ]
    for system, ranks, collective, nbytes, support in cases:
        found = predict(group(system, ranks), collective, nbytes)
        assert found.support == support, (system, ranks, collective, nbytes)
        assert found.reason
        assert (found.error_percent is not None) or support == "extrapolated"
        assert found.time_ps > 0


@pytest.mark.parametrize(("system", "gb_per_second"), [("dgx-a100", (185, 195)), ("dgx-h100", (46 * 8, 48 * 8))])
def test_networks_of_infiniband_reach_what_is_stated(system, gb_per_second):
    found = predict(group(system, 1024), "all_gather", 256 << 30)
    assert gb_per_second[0] < found.bus_bytes_per_second / 1e9 < gb_per_second[1]
    assert "InfiniBand" in found.reason


def test_bus_bandwidth():
    found = predict(group("p5.48xlarge", 8), "all_reduce", 512 * MIB)
    assert found.bus_bytes_per_second == pytest.approx(512 * MIB / (found.time_ps * 1e-12) * 14 / 8)


def test_wrong_input_is_named():
    where = group("p5.48xlarge", 8)
    with pytest.raises(InputError, match="no such collective"):
        predict(where, "all_around", MIB)
    with pytest.raises(InputError, match="at least two ranks"):
        predict(group("p5.48xlarge", 1), "all_reduce", MIB)
    with pytest.raises(InputError, match="fewer than 0 bytes"):
        predict(where, "all_reduce", -1)
    with pytest.raises(InputError, match="zero bandwidth"):
        node_ps(nvlink("NVLink 4"), "all_reduce", 8, MIB, 0.0)
    with pytest.raises(UnsupportedError, match="NVLink 9"):
        nvlink("NVLink 9")
    with pytest.raises(UnsupportedError, match="same number of ranks on each node"):
        predict(group("p5.48xlarge", 12), "all_reduce", MIB)
