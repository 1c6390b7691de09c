"""Units of the catalogue, against values worked out by hand."""

import pytest

from trnsim.hardware.quantity import DURATION, FREQUENCY, OPERATIONS, POWER, RATE, SIZE


@pytest.mark.parametrize(
    ("dimension", "text", "expected"),
    [
        (FREQUENCY, "0.96 GHz", 960_000_000),
        (FREQUENCY, "1.12 GHz", 1_120_000_000),
        (SIZE, "224 KiB", 229_376),
        (SIZE, "80 GB", 80_000_000_000),
        (SIZE, "24 MiB", 25_165_824),
        (SIZE, "16392B", 16_392),
        (RATE, "23 B/ns", 23_000_000_000),
        (RATE, "3200 Gb/s", 400_000_000_000),
        (RATE, "27 GiB/s", 28_991_029_248),
        (RATE, "2.9 TB/s", 2_900_000_000_000),
        (OPERATIONS, "667 TFLOPS", 667e12),
        (OPERATIONS, "128 TOPS", 128e12),
        (POWER, "1.73 kW", 1730.0),
        (DURATION, "1.5 us", 1_500_000),
    ],
)
def test_values(dimension, text, expected):
    value = dimension.parse(text)
    assert value == pytest.approx(expected, rel=1e-12)
    assert isinstance(value, int if dimension.whole else float)


@pytest.mark.parametrize(
    ("dimension", "text", "complaint"),
    [
        (FREQUENCY, "0.96", "has no unit"),
        (FREQUENCY, "2 GB", "unit 'GB' is not one of frequency"),
        (SIZE, "lots", "is not a number"),
        (SIZE, "0.3 B", "whole number of B"),
        (RATE, "3 TB", "unit 'TB'"),
        (OPERATIONS, "1e999 TFLOPS", "not finite"),
    ],
)
def test_complaints(dimension, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        dimension.parse(text)
