"""The sample that normalizers are fitted from has so many documents and tokens as the settings say."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from datasets import Dataset

from bergson_core import BuildSpec, GradientSpec, fit_processor
from bergson_core.errors import InvalidInput
from bergson_core.gradients.fitting_sample import (
    MIN_SAMPLE_DOCUMENTS,
    SAMPLE_TOKENS,
    choose_sample,
    sample_documents,
    sample_row_numbers,
)
from bergson_core.tokens.tokenization import Tokens
from tests import tiny
from tests.core.helpers import random_documents

TOTAL = 1000


def choose(length: int = 10, first_label: int = 1, **settings: object) -> list[int]:
    """Returns the numbers of the documents in the sample of a corpus of `TOTAL` documents of one length."""

    def tokenize(numbers: Sequence[int]) -> dict[int, Tokens]:
        assert list(numbers) == sorted(numbers)
        return {number: Tokens.labelled_from(np.full(length, number), first_label) for number in numbers}

    sample = choose_sample(TOTAL, GradientSpec(**settings), tokenize)
    return [int(tokens.ids[0]) for tokens in sample]


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("size", [1, 30, TOTAL, 5000])
def test_a_sample_that_the_tokens_do_not_end_has_so_many_documents_as_before(size, seed):
    chosen = choose(sample_size=size, sample_tokens=10**9, seed=seed)
    assert chosen == sample_row_numbers(TOTAL, size, seed)


@pytest.mark.parametrize(
    ("tokens", "documents"), [(1, 16), (160, 16), (161, 17), (170, 17), (5000, 500), (10**5, 1000)]
)
def test_no_document_is_taken_once_there_are_enough_tokens_but_sixteen_are(tokens, documents):
    chosen = choose(sample_tokens=tokens)
    assert len(chosen) == documents
    assert chosen == sorted(chosen)
    assert set(chosen) <= set(choose(sample_tokens=2 * tokens))
    assert sample_documents(GradientSpec(sample_tokens=tokens), TOTAL, 10) == documents


def test_by_default_there_are_4096_tokens_for_adafactor_and_8192_for_others():
    assert len(choose(length=64)) == 64
    assert len(choose(length=64, normalizer="kfac")) == len(choose(length=64, normalizer="adam")) == 128
    assert len(choose(length=2048)) == MIN_SAMPLE_DOCUMENTS == 16
    assert len(choose(length=2048, sample_size=3)) == 3


def test_documents_without_labels_do_not_use_up_the_tokens():
    assert len(choose(length=10, first_label=10, sample_tokens=100)) == TOTAL


def test_a_sample_is_drawn_from_all_of_the_corpus():
    chosen = torch.tensor(choose(sample_tokens=2000), dtype=torch.float64)
    assert abs(chosen.mean() - TOTAL / 2) < TOTAL / 10


def test_documents_that_cannot_be_had_any_more_are_left_out():
    documents = random_documents([9] * TOTAL)
    sample = choose_sample(
        TOTAL,
        GradientSpec(sample_tokens=10**9),
        lambda numbers: {number: documents[number] for number in numbers if number % 2},
    )
    assert len(sample) == TOTAL // 2


def test_fit_processor_takes_so_many_tokens():
    rows = Dataset.from_list([{"input_ids": [5 + k % 90, 7, 9 + k % 50] * 7} for k in range(300)])
    few, same, all_of_them = (
        fit_processor(tiny.model(), rows, settings=GradientSpec(sample_tokens=tokens)).fingerprint()
        for tokens in (400, 400, None)
    )
    assert few == same != all_of_them


@pytest.mark.parametrize("tokens", [0, -1, "many", 1.5])
def test_a_wrong_number_of_tokens_is_refused(tokens):
    with pytest.raises(InvalidInput, match="sample_tokens"):
        GradientSpec(sample_tokens=tokens)


def test_the_fingerprint_of_a_build_that_does_not_state_the_tokens_stays_as_it_was():
    spec = BuildSpec(model="m", dataset={"path": "d"})
    assert spec.fingerprint() == "43f8e985c4355f5a0cb4f519c78b04350e48eadb77e23e780eef9ebfbb147341"
    stated = spec.model_copy(update={"gradients": GradientSpec(sample_tokens=SAMPLE_TOKENS["adafactor"])})
    assert stated.fingerprint() != spec.fingerprint()
