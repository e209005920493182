"""Batches are as large as the device's memory allows, and rows arrive whole whatever leaves the device when."""

import numpy as np
import torch

from bergson_core.data.batching import BUDGET_TOKENS
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.device_to_host import overlap_copies
from bergson_core.models.language_model import as_language_model
from bergson_core.models.modules import select_modules
from tests import tiny

MANY = 2**36


def budget(model: torch.nn.Module, longest: int, free_bytes: int = MANY) -> int:
    return find_batch_budget(as_language_model(model), select_modules(model), longest, free_bytes)


def test_with_memory_to_spare_a_batch_is_as_large_as_is_still_faster():
    assert budget(tiny.model(), 20) == BUDGET_TOKENS
    assert (
        find_batch_budget(as_language_model(tiny.model()), select_modules(tiny.model()), 20) == BUDGET_TOKENS
    )  # this machine has as much


def test_with_less_memory_batches_are_smaller_by_as_much():
    logits = 2**28
    few, more = (budget(tiny.model(), 20, logits + 2**22 * factor) for factor in (1, 4))
    assert 1 < few < more == 4 * few < BUDGET_TOKENS
    assert budget(tiny.model(), 20, 2**20) == 1


def test_a_wider_model_has_smaller_batches():
    wide = tiny.gpt_neox().config
    wide.hidden_size, wide.intermediate_size = 240, 400
    model = type(tiny.gpt_neox())(wide)
    assert budget(model, 20, 2**28 + 2**23) < budget(tiny.model(dtype=torch.float32), 20, 2**28 + 2**23)


def test_what_a_batch_keeps_is_what_it_was_estimated_to_keep():
    """The bytes that autograd keeps grow with the tokens, so that one document speaks for a batch."""
    one, two = (budget(tiny.model(), longest, 2**28 + 2**24) for longest in (16, 32))
    assert one in (two, 2 * two)


def test_items_come_in_order_each_after_the_next_was_made():
    made: list[int] = []

    def items():
        for number in range(4):
            made.append(number)
            yield number, torch.full((2,), number)

    seen = []
    for number, array in overlap_copies(items()):
        seen.append((number, array.tolist(), len(made)))
        assert isinstance(array, np.ndarray)
    assert seen == [(0, [0, 0], 2), (1, [1, 1], 3), (2, [2, 2], 4), (3, [3, 3], 4)]
    assert list(overlap_copies([])) == []
