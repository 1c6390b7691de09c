"""The modules that draw for nki-library's suite take the numbers that its own code takes, and leave the same state."""

import importlib.util
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest


def repairs():
    spec = importlib.util.spec_from_file_location("repair_nki_library", Path(__file__).parent / "repair_nki_library.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_by_one(data, height, width, max_exp):
    for row in range(0, data.shape[0], height):
        for column in range(0, data.shape[1], width):
            at = row + np.random.randint(0, height - 1), column + np.random.randint(0, width - 1)
            sign = np.random.choice([-1, 1])
            data[at] = sign * (1.0 + np.random.random() * 0.5) * (2**max_exp)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(8, 4), (16, 512), (256, 96)])
def test_the_same_numbers_of_the_same_stream(seed, shape):
    module: dict = {}
    exec(repairs().BLOCKS, module)
    module["_AT_ONCE"] = 100
    found = []
    for draw in (one_by_one, module["place_maxima"]):
        np.random.seed(seed)
        data = np.random.random(shape)
        draw(data, 8, 4, 2)
        found.append((data, np.random.random(3)))
    for expected, given in zip(*found, strict=True):
        np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("shape", [(), 7, (0, 3), (3, 5, 71)])
@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", ["normal", "random_sample", "generator"])
def test_pieces_are_the_numbers_of_the_whole(shape, dtype, kind):
    module: dict = {}
    exec(repairs().PIECES, module)
    module["_AT_ONCE"] = 101
    found = []
    for whole in (True, False):
        np.random.seed(3)
        generator = np.random.default_rng(3)
        draw = generator.normal if kind == "generator" else getattr(np.random, kind)
        if whole:
            numbers = np.asarray(draw(size=shape) * 3 + 1).astype(dtype)
        else:
            numbers = module["in_pieces"](draw, shape, dtype, lambda x: x * 3 + 1)
        found.append((numbers, draw(size=3)))
    for expected, given in zip(*found, strict=True):
        assert given.shape == expected.shape
        assert given.dtype == expected.dtype
        np.testing.assert_array_equal(given, expected)
