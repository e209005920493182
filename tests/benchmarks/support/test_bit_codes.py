"""Blocks of two bits come back up to half of an interval, and take the bytes that are stated."""

import numpy as np
import pytest
import torch

from benchmarks.support.bit_codes import INTERVAL, decode, encode, row_bytes, store


def make_rows(width: int = 100) -> torch.Tensor:
    """Rows [40, 3, width] whose blocks have very different sizes."""
    rows = torch.randn(40, 3, width, generator=torch.Generator().manual_seed(0))
    return rows * torch.tensor([1e-3, 1.0, 50.0])[:, None]


def test_numbers_come_back_up_to_half_of_an_interval() -> None:
    rows = make_rows()
    intervals = rows.square().mean(2, keepdim=True).sqrt() * INTERVAL
    stored = store("bits2", rows)
    inside = rows.abs() < 2 * intervals
    assert (((stored - rows) / intervals).abs()[inside] < 0.51).all()
    assert torch.equal(stored > 0, rows >= 0)
    levels = (stored / intervals).round(decimals=2).abs().unique()
    assert len(torch.unique((levels * 2).round())) == 2


def test_the_bits_themselves_come_back() -> None:
    packed, scales = encode(make_rows(37))
    again, _ = encode(decode(packed, scales, 37))
    assert np.array_equal(packed, again)
    assert packed.nbytes + 2 * scales.numel() == 40 * row_bytes("bits2", 3, 37)


def test_a_block_of_zeros_comes_back_as_next_to_nothing() -> None:
    assert store("bits2", torch.zeros(1, 2, 8)).abs().max() < 1e-30


def test_the_error_is_the_least_that_two_bits_allow_for_normal_numbers() -> None:
    rows = torch.randn(20, 1, 20_000, generator=torch.Generator().manual_seed(1))
    assert float((store("bits2", rows) - rows).square().mean()) == pytest.approx(0.1188, rel=0.02)


def test_sizes_of_rows_are_those_of_an_index() -> None:
    assert row_bytes("sign", 8, 1024) == 8 * 128 + 1
    assert row_bytes("float16", 8, 1024) == 8 * (2048 + 4)
    assert row_bytes("bits2", 8, 1024) == 8 * (256 + 2)
