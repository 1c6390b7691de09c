"""The operand text of profiled instructions."""

from __future__ import annotations

import pytest
from profile_documents import load, store

from trnsim.errors import UnsupportedError
from trnsim.profiles.operands import DmaSide, Update, Wait, dma_sides, dtype, parse


def test_tensors_semaphores_and_attributes():
    text = (
        "S[6] (Vector)>=5 S[4] (Scalar)++@complete EXP bias_ptr=fp32@0x4810 src=fp32@0x2002000[1,1,1][512,1,1] "
        "dst=bfloat16@0x4820[2,1,1][256,2,1] channels=64 scale=1.000000"
    )
    found = parse(text)
    source, result = found.tensor("src"), found.tensor("dst")
    assert (source.dtype, source.memory, source.elements, source.bank()) == ("fp32", "psum", 512, 4)
    assert (result.dtype, result.memory, result.elements, result.strides[0]) == ("bfloat16", "sbuf", 512, 2)
    assert found.tensor("src1") is None
    assert found.waits == (Wait(6, 5),)
    assert found.updates == (Update(4, 1),)
    assert found.channels == 64
    assert "EXP" in found.shape


def test_several_waits_and_the_array():
    found = parse("S[8] (qSync)>=16 setter=0 S[9] (qGpSimd)>=32 src=fp32@0x369f4[-1,0,0][128,1,1] 128*64")
    assert found.waits == (Wait(8, 16), Wait(9, 32))
    assert found.array == (128, 64)
    assert found.channels == 128


def test_the_runtimes_own_semaphores_are_not_the_kernels():
    found = parse("setter=0 $S[2]==6 $S[2]++@complete")
    assert not found.waits
    assert not found.updates


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S[3] (Vector)==4", "a wait for semaphore 3 == 4"),
        ("S[3] (Vector)--@complete", "semaphore 3 --@complete"),
        ("S[3] (Vector)=0@complete", "semaphore 3 =0@complete"),
        ("S[3] (Vector)++@read", r"semaphore 3 \+\+@read"),
    ],
)
def test_semaphores_that_are_not_understood(text, message):
    with pytest.raises(UnsupportedError, match=message):
        parse(text)


def test_sides_of_a_dma():
    chip, hbm = DmaSide("sbuf", 2048, (262144, 1), (128, 1)), DmaSide("hbm", 2048, (2048, 1), (128, 1))
    assert dma_sides(load()) == (hbm, chip)
    assert dma_sides(store()) == (chip, hbm)
    assert parse(load(semaphore=8)).updates == (Update(8, 16),)
    assert dma_sides("semaphore=3 sem_increment=16") is None


def test_dtypes():
    assert dtype("fp32") == "float32"
    assert dtype("bfloat16") == "bfloat16"
    with pytest.raises(UnsupportedError, match="dtype 'fp7' of a profile is not known"):
        dtype("fp7")
