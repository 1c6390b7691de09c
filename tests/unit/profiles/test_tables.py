"""Tables of instructions and DMAs: what is read, what is predicted, what is wrong."""

from __future__ import annotations

import pytest

from trnsim.errors import InputError
from trnsim.hardware import load_chip, load_timing
from trnsim.profiles.tables import dma_cases, instruction_cases, share_within

TIMING = load_timing(load_chip("trn2"))
HEADER = (
    "engine,opcode,src0(dtype:mem:free_elems[:stride]),src1,dst,detail,channels,n,dur_min_ns,dur_median_ns,dur_max_ns,"
    "n_back_to_back,ii_min_ns,ii_median_ns,ii_max_ns\n"
)


def _table(tmp_path, *rows, header=HEADER):
    path = tmp_path / "t.csv"
    path.write_text(header + "\n".join(rows))
    return path


def test_durations_and_intervals(tmp_path):
    path = _table(
        tmp_path,
        "Vector,COPY,fp32:PSUM:512,,fp32:SBUF:512,,128,45,679,700,691,3,600,610,620",
        "Vector,DRAIN,,,,,,220,13,13.0,385,0,,,",
        "Scalar,ACT_TABLE_LOAD,,,,,,10,1283,1300,1283,0,,,",
    )
    cases = instruction_cases(path, TIMING)
    v = TIMING.vector
    assert [(c.group, c.measured, c.predicted) for c in cases] == [
        ("duration", 700, v.duration(512) / 1000),
        ("interval", 610, v.interval(512) / 1000),
        ("duration", 1300, TIMING.scalar.table_load_ps / 1000),
    ]
    assert cases[0].error == pytest.approx(v.duration(512) / 1000 / 700 - 1)
    assert share_within(cases) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "fp32"])
def test_full_rate_and_throttled_are_told_apart(tmp_path, dtype):
    rows = [
        f'Tensor,MATMUL,{dtype}:SBUF:512,,:PSUM:512,"128*128 util_limit={limit}",,9,1,1,1,9,1,1,1'
        for limit in (1.0, 0.5)
    ]
    full, full_interval, slow, slow_interval = instruction_cases(_table(tmp_path, *rows), TIMING)
    t = TIMING.tensor
    assert slow_interval.predicted == pytest.approx(2 * (full_interval.predicted - t.issue_ps / 1000))
    assert slow.predicted - slow_interval.predicted == pytest.approx((t.tail_ps + t.tail_streamed_ps) / 1000)
    assert full.predicted - full_interval.predicted == pytest.approx(t.tail_ps / 1000)


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([], "engine,opcode\n", "no column 'src0"),
        (["Vector,COPY,fp32,,fp32:SBUF:512,,128,1,1,1,1,0,,,"], HEADER, "row 2: src0 is not dtype:memory:elements"),
        (["Vector,COPY,fp32:SBUF:4,,fp32:SBUF:4,,128,1,1,fast,1,0,,,"], HEADER, "row 2: dur_median_ns is not a number"),
        (["Scalar,ACTIVATE,fp32:SBUF:4,,fp32:SBUF:4,WIGGLE,128,1,1,1,1,0,,,"], HEADER, "row 2: .*'WIGGLE'"),
    ],
)
def test_what_is_no_table_of_instructions(tmp_path, rows, header, message):
    with pytest.raises(InputError, match=message):
        instruction_cases(_table(tmp_path, *rows, header=header), TIMING)


TRIGGERS = (
    "section,profile,trigger_engine,index,trigger_start_ns,trigger_instr_duration_ns,trigger_to_first_packet_ns,"
    "trigger_to_last_packet_ns,total_bytes,elem_size_bytes,n_dma_engines\n"
)


def test_triggers_contend_as_they_did(tmp_path):
    rows = [
        "trigger,p,Scalar,0,1000,524,1190,2600,524288,4096,16",
        "trigger,p,Scalar,1,1700,525,1784,3900,524288,4096,16",
    ]
    cases = {c.group: c for c in dma_cases(_table(tmp_path, rows[0], header=TRIGGERS), TIMING)}
    d = TIMING.dma
    first = d.hardware_issue(128) + d.hardware_first_packet_ps
    assert cases["issue"].predicted == d.hardware_issue(128) / 1000
    assert cases["first packet"].predicted == first / 1000
    assert cases["last packet"].predicted == (first + 8 * d.packet(4096) + d.transfer_ps) / 1000
    found = dma_cases(_table(tmp_path, *rows, header=TRIGGERS), TIMING)
    assert {c.group for c in found} == {"issue, contended", "first packet, contended", "last packet, contended"}
    # The second starts when the engines are done with the first.
    second = [c for c in found if c.group.startswith("last")][1]
    assert second.predicted == pytest.approx((first + 2 * (8 * d.packet(4096) + d.transfer_ps)) / 1000 - 700)


def test_packets_and_semaphores(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "section,queue_type,packet_bytes,n,min_ns,p10_ns,median_ns,p90_ns,max_ns,median_B_per_ns\n"
        "packet,hardware_dynamic,2048,10,81,83,83,90,768,24\n"
        "packet,instruction,16384,1,1,1,1,1,1,1\n"
        "\nsection,producer_engine,producer_opcode,consumer_engine,consumer_opcode,n,min_ns,median_ns,max_ns\n"
        "semaphore,Scalar,COPY,Vector,COPY,4,34,35,36\n"
        "semaphore,Scalar,COPY,Vector,COPY,4,1535,1535,1535\n"
    )
    packet, semaphore = dma_cases(path, TIMING)
    assert packet.predicted == TIMING.dma.packet_alone(2048) / 1000
    assert (semaphore.measured, semaphore.predicted) == (34, TIMING.vector.semaphore_ps / 1000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no section named trigger"),
        (TRIGGERS + "trigger,p,Scalar,0,now,1,1,1,1,1,16", "row 2: trigger_start_ns is not a number"),
        (TRIGGERS + "trigger,p,Scalar,0,1,1,1,1,1,1,16,17", "row 2 has more fields than its header"),
    ],
)
def test_what_is_no_table_of_dmas(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        dma_cases(path, TIMING)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        instruction_cases(tmp_path / "none.csv", TIMING)
