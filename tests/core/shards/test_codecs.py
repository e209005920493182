"""Codecs store rows and give them back, up to their rounding."""

import numpy as np
import pytest
import torch

from bergson_core.schemas.build import RowKind
from bergson_core.shards.codecs import CODECS
from bergson_core.shards.shard import RowShape

ERRORS = {"float16": 1e-3, "int8": 2e-2}


def rows() -> torch.Tensor:
    """Returns five rows of three blocks: tiny, usual and huge numbers, and one block of zeros."""
    torch.manual_seed(0)
    values = torch.randn(5, 3, 19) * torch.tensor([1e-20, 1.0, 1e20])[:, None]
    values[2, 1] = 0
    return values


def encoded(kind: RowKind) -> tuple[np.ndarray, np.ndarray]:
    """Returns the blocks and scales of `rows`, as they lie on disk."""
    blocks, scales = CODECS[kind].encode(rows())
    return blocks.numpy(), scales.numpy()


@pytest.mark.parametrize("kind", ERRORS)
def test_scaled_rows_neither_overflow_nor_vanish(kind):
    codec = CODECS[kind]
    blocks, scales = encoded(kind)
    error = (codec.decode(blocks, scales, 19) - rows()).norm(dim=-1)
    assert (error <= ERRORS[kind] * rows().norm(dim=-1)).all()
    assert blocks.dtype == np.dtype(kind)


def test_signs_are_stored_in_one_bit_each_and_decoded_to_unit_length():
    codec = CODECS["sign"]
    blocks, scales = encoded("sign")
    np.testing.assert_array_equal(blocks, np.packbits(rows().numpy() > 0, axis=-1))
    decoded = codec.decode(blocks, scales, 19)
    torch.testing.assert_close(decoded, rows().sign() / (3 * 19) ** 0.5)
    assert decoded[0].norm() == pytest.approx(1)
    assert not decoded[2, 1].any()


@pytest.mark.parametrize("kind", CODECS)
def test_products_are_those_of_the_decoded_rows(kind):
    codec, weights = CODECS[kind], torch.randn(3, 19)
    stored = encoded(kind)
    expected = (codec.decode(*stored, 19) * weights).sum(2)
    torch.testing.assert_close(codec.block_products(*stored, weights), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", CODECS)
def test_the_bytes_of_a_row_are_those_on_disk(kind):
    blocks, scales = encoded(kind)
    assert RowShape(kind, 3, 19).row_bytes == (blocks.nbytes + scales.nbytes) / 5
    assert (blocks.shape[1:], scales.shape[1]) == (
        RowShape(kind, 3, 19).block_shape,
        RowShape(kind, 3, 19).scale_entries,
    )
