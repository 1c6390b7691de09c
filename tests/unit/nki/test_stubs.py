"""Modules whose source is not public: they import, and say what they are when something is used."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import trnsim
from trnsim.errors import UnsupportedError
from trnsim.nki.versions import beta1 as nki

NAMES = [
    "neuronxcc.nki._private_kernels", "neuronxcc.nki._private_kernels.qkv", "neuronxcc.nki._private_kernels.RoPE",
    "neuronxcc.nki._pre_prod_kernels", "neuronxcc.nki._pre_prod_kernels.mlp.more", "neuronxcc.nki._private.private_api",
    "neuronxcc.nki.nccl", "neuronxcc.nki.nccl.collectives", "neuronxcc.nki.kernels.attention", "nki.kernels.vision",
    "neuronxcc.nki.compiler.backends.neuron.tensor", "neuronxcc.nki.language.iterators",
    "neuronxcc.starfish.penguin.ir",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _installed():
    trnsim.install()


@pytest.mark.parametrize("name", NAMES)
def test_modules(name):
    module = importlib.import_module(name)
    assert module.__name__ == name
    thing = module.some_kernel
    assert thing is module.some_kernel
    assert thing.MODE is thing.MODE
    assert thing.MODE != thing.OTHER
    assert not hasattr(module, "__some_dunder__")
    for use in (thing, thing[2], thing.MODE, lambda *_: list(thing), lambda *_: int(thing)):
        with pytest.raises(UnsupportedError, match=rf"{name}\.some_kernel.*source is not public"):
            use(np.zeros((2, 2)))


def test_ways_to_import():
    names = {}
    exec("from neuronxcc.nki._private.private_api import *", names)
    exec("from neuronxcc.nki._private_kernels import NormType", names)
    exec("import neuronxcc.nki.nccl as nccl", names)
    exec("def f(kind=NormType.NO_NORM) -> NormType: return kind is NormType.NO_NORM", names)
    assert names["f"]()
    assert not names["f"](names["NormType"].RMS_NORM)


def test_a_class_derived_from_one():
    from neuronxcc.nki._private_kernels import Base

    class Mine(Base):
        pass

    with pytest.raises(UnsupportedError, match="Mine derives"):
        Mine()


@pytest.mark.parametrize("wrap", [nki.jit, nki.baremetal, lambda k: nki.jit(k)[2]])
def test_a_kernel_made_of_one(wrap):
    from neuronxcc.nki.kernels.attention import flash_fwd

    kernel = wrap(flash_fwd)
    with pytest.raises(UnsupportedError, match=r"neuronxcc\.nki\.kernels\.attention\.flash_fwd "):
        kernel(np.zeros((4, 4), np.float32))


@pytest.mark.parametrize("name", ["neuronxcc.nki.nothing", "neuronxcc.nki._private_kernel", "nki.kernel_nothing"])
def test_other_names_do_not_exist(name):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)


def test_modules_that_are_ours():
    from neuronxcc.nki.isa.neuron_isa import dma_copy
    from neuronxcc.nki.language.constants import sizeinbytes

    assert dma_copy is nki.isa.dma_copy
    assert sizeinbytes(nki.language.bfloat16) == 2
    assert nki.language.constants.sizeinbytes is sizeinbytes
