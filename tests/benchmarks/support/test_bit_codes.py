"""Blocks of 1, 2 and 4 bits come back up to half of an interval, and take the bytes that are stated."""

import numpy as np
import pytest
import torch

from benchmarks.support.bit_codes import BITS, INTERVALS, decode, encode, row_bytes, store


def make_rows(width: int = 100) -> torch.Tensor:
    """Rows [40, 3, width] whose blocks have very different sizes."""
    rows = torch.randn(40, 3, width, generator=torch.Generator().manual_seed(0))
    return rows * torch.tensor([1e-3, 1.0, 50.0])[:, None]


@pytest.mark.parametrize("code", BITS)
def test_numbers_come_back_up_to_half_of_an_interval(code: str) -> None:
    bits, rows = BITS[code], make_rows()
    intervals = rows.square().mean(2, keepdim=True).sqrt() * INTERVALS[bits]
    stored = store(code, rows)
    inside = rows.abs() < intervals * 2 ** (bits - 1)
    assert (((stored - rows) / intervals).abs()[inside] < 0.51).all()
    assert torch.equal(stored > 0, rows >= 0)
    levels = (stored / intervals).round(decimals=2).abs().unique()
    assert len(torch.unique((levels * 2).round())) == 2 ** (bits - 1)


@pytest.mark.parametrize("code", BITS)
def test_the_bits_themselves_come_back(code: str) -> None:
    bits = BITS[code]
    packed, scales = encode(make_rows(37), bits)
    again, _ = encode(decode(packed, scales, bits, 37), bits)
    assert np.array_equal(packed, again) or bits == 4  # the scale of numbers of four bits is a little smaller
    assert packed.nbytes + 2 * scales.numel() == 40 * row_bytes(code, 3, 37)


@pytest.mark.parametrize("code", BITS)
def test_a_block_of_zeros_comes_back_as_next_to_nothing(code: str) -> None:
    assert store(code, torch.zeros(1, 2, 8)).abs().max() < 1e-30


@pytest.mark.parametrize(("code", "error"), [("bits1", 0.3634), ("bits2", 0.1188), ("bits4", 0.01154)])
def test_errors_are_the_least_that_the_code_allows_for_normal_numbers(code: str, error: float) -> None:
    rows = torch.randn(20, 1, 20_000, generator=torch.Generator().manual_seed(1))
    assert float((store(code, rows) - rows).square().mean()) == pytest.approx(error, rel=0.02)


def test_sizes_of_rows_are_those_of_an_index() -> None:
    assert row_bytes("sign", 8, 1024) == 8 * 128 + 1
    assert row_bytes("float16", 8, 1024) == 8 * (2048 + 4)
    assert row_bytes("bits2", 8, 1024) == 8 * (256 + 2)
