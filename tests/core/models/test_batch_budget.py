"""Batches are as large as the device's memory allows, and results come whole and in order from the device."""

import numpy as np
import torch

from bergson_core.models.batch_budget import MAX_BATCH_TOKENS, find_batch_budget
from bergson_core.models.device_to_host import overlap_copies
from bergson_core.models.language_model import as_language_model
from bergson_core.models.tracking.selection import select_modules
from tests import tiny

PLENTY_OF_BYTES = 2**36


def budget(model: torch.nn.Module, longest: int, free_bytes: int = PLENTY_OF_BYTES) -> int:
    return find_batch_budget(as_language_model(model), select_modules(model), longest, free_bytes)


def test_with_memory_to_spare_a_batch_is_as_large_as_makes_it_faster():
    assert budget(tiny.model(), 20) == MAX_BATCH_TOKENS["cpu"]
    # This machine has memory enough.
    model = tiny.model()
    assert find_batch_budget(as_language_model(model), select_modules(model), 20) == MAX_BATCH_TOKENS["cpu"]


def test_a_quarter_of_the_memory_gives_a_quarter_of_the_tokens():
    logits = 2**28
    few, more = (budget(tiny.model(), 20, logits + 2**22 * factor) for factor in (1, 4))
    assert 1 < few < more == 4 * few < MAX_BATCH_TOKENS["cpu"]
    assert budget(tiny.model(), 20, 2**20) == 1


def test_a_wider_model_has_smaller_batches():
    wide = tiny.gpt_neox().config
    wide.hidden_size, wide.intermediate_size = 240, 400
    model = type(tiny.gpt_neox())(wide)
    assert budget(model, 20, 2**28 + 2**23) < budget(tiny.model(dtype=torch.float32), 20, 2**28 + 2**23)


def test_the_budget_hardly_depends_on_the_length_of_the_document_that_was_measured():
    """The bytes that autograd saves grow with the tokens, so that one document stands for a batch."""
    short, long = (budget(tiny.model(), tokens, 2**28 + 2**24) for tokens in (16, 32))
    assert short in (long, 2 * long)


def test_items_come_in_order_each_after_the_next_was_made():
    numbers: list[int] = []

    def items():
        for number in range(4):
            numbers.append(number)
            yield number, torch.full((2,), number)

    seen = []
    for number, array in overlap_copies(items()):
        seen.append((number, array.tolist(), len(numbers)))
        assert isinstance(array, np.ndarray)
    assert seen == [(0, [0, 0], 2), (1, [1, 1], 3), (2, [2, 2], 4), (3, [3, 3], 4)]
    assert list(overlap_copies([])) == []
