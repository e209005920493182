"""A run's batches are matched to documents by tokens and labels, and refused where they mean something else."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from bergson_core import IndexCallback
from bergson_core.errors import InvalidInput
from bergson_core.integrations.hf_document_lookup import DocumentLookup
from bergson_core.schemas.source import ColumnsSpec
from tests import tiny

DOCUMENTS = [[5, 6, 7, 8], [9, 3], [5, 6, 7, 8], [4, 4, 4, 0]]
PAD = 0


def lookup(**columns) -> DocumentLookup:
    return DocumentLookup(Dataset.from_dict({"input_ids": DOCUMENTS} | columns), PAD)


def batch(*documents: list[int], side: str = "right", **values) -> dict:
    """Returns what a collator makes of documents: padded to a multiple of 8, with a mask and labels."""
    rows, masks, labels = [], [], []
    for document in documents:
        padding = [PAD] * (8 - len(document))
        left, right = (padding, []) if side == "left" else ([], padding)
        rows.append(left + document + right)
        masks.append([0] * len(left) + [1] * len(document) + [0] * len(right))
        labels.append([-100 if token == PAD else token for token in rows[-1]])
    tensors = {"input_ids": rows, "attention_mask": masks, "labels": labels} | values
    return {name: torch.tensor(value) for name, value in tensors.items() if value is not None}


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_documents_are_found_and_equal_ones_together(side):
    found = lookup().find_samples(batch([9, 3], [5, 6, 7, 8], side=side))
    assert [numbers.tolist() for numbers in found] == [[1], [0, 2]]


def test_padding_in_the_dataset_is_not_part_of_a_document():
    dataset = Dataset.from_dict({"input_ids": [[9, 3, 0, 0]], "attention_mask": [[1, 1, 0, 0]]})
    assert DocumentLookup(dataset, PAD).find_samples(batch([9, 3]))[0].tolist() == [0]


def test_collators_take_the_labels_from_the_padding_token_wherever_it_stands():
    (numbers,) = lookup().find_samples(batch([4, 4, 4, 0]))
    assert numbers.tolist() == [3]


def test_documents_that_differ_only_in_their_labels_are_told_apart():
    labels = [[-100, -100, 7, 8], [9, 3], [5, 6, 7, 8], [4, 4, 4, 0]]
    completion = [[-100, -100, 7, 8] + [-100] * 4]
    found = lookup(labels=labels)
    assert found.find_samples(batch([5, 6, 7, 8], labels=completion))[0].tolist() == [0]
    assert found.find_samples(batch([5, 6, 7, 8]))[0].tolist() == [2]
    assert found.find_samples(batch([5, 6, 7, 8], labels=None))[0].tolist() == [0, 2]


REFUSED = {
    "a completion that the dataset does not mark": (
        {"labels": [[-100, -100, 7, 8] + [-100] * 4]},
        "labels.*completion_mask",
    ),
    "shifted labels": ({"labels": [[6, 7, 8, -100] + [-100] * 4]}, "labels.*position 0"),
    "labels on padding": ({"labels": [[5, 6, 7, 8, 0, 0, 0, 0]]}, "labels.*padding"),
    "positions that start again": ({"position_ids": [[0, 1, 0, 1, 0, 0, 0, 0]]}, "position_ids"),
    "boundaries of sequences": ({"cu_seq_lens_q": [0, 2, 4]}, "cu_seq_lens_q"),
    "numbers of sequences": ({"seq_idx": [[0, 0, 1, 1, 1, 1, 1, 1]]}, "seq_idx"),
    "labels that are shifted already": ({"shift_labels": [[6, 7, 8, -100] + [-100] * 4]}, "shift_labels"),
    "a mask of four dimensions": ({"attention_mask": [[[[1.0] * 8] * 8]]}, "attention_mask.*shape"),
    "a hole in the mask": ({"attention_mask": [[1, 0, 1, 1, 0, 0, 0, 0]]}, "attention_mask"),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_a_batch_that_means_something_else_is_refused_by_name(values, message):
    with pytest.raises(InvalidInput, match=message):
        lookup().find_samples(batch([5, 6, 7, 8], **values))


def test_a_batch_without_padding_is_one_row_of_several_documents():
    ids = torch.tensor([[5, 6, 7, 8, 9, 3]])
    with pytest.raises(InvalidInput, match="position_ids"):
        lookup().find_samples({"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1]])})
    with pytest.raises(InvalidInput, match="packed"):
        lookup().find_samples({"input_ids": ids})


def test_positions_may_be_those_of_all_rows():
    values = {"position_ids": [list(range(8))]}
    (first, second) = lookup().find_samples(batch([9, 3], [5, 6, 7, 8], **values))
    assert (first.tolist(), second.tolist()) == ([1], [0, 2])


@pytest.mark.parametrize("column", ["position_ids", "attention_mask", "labels"])
def test_the_dataset_of_a_run_is_read_by_the_same_rules(column):
    wrong = {"position_ids": [0, 1, 0, 1], "attention_mask": [1, 0, 1, 1], "labels": [1, 1, 1, 1]}[column]
    with pytest.raises(InvalidInput, match=f"row 0.*{column}"):
        DocumentLookup(Dataset.from_dict({"input_ids": [[5, 6, 7, 8]], column: [wrong]}), PAD)


def test_weights_are_refused_because_the_run_has_its_own_loss(tmp_path):
    dataset = Dataset.from_dict({"input_ids": [[1, 2]], "reward": [1.0]})
    with pytest.raises(InvalidInput, match="weight"):
        IndexCallback(tmp_path / "facts", dataset, tiny.tokenizer(), columns=ColumnsSpec(weight="reward"))


def test_hashes_take_little_memory():
    many = DocumentLookup(Dataset.from_dict({"input_ids": [[k % 300, k // 300] for k in range(1000)]}), None)
    assert many._by_tokens._sorted.dtype == np.uint64
    assert many.find_samples({"input_ids": torch.tensor([[7, 2]])})[0].tolist() == [607]
