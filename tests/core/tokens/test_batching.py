"""Documents become tokens with labels, and batches of documents of similar lengths."""

import numpy as np
import pytest

from bergson_core.tokens.batching import iter_length_buckets
from bergson_core.tokens.tokenization import tokenize
from tests import tiny


def test_labels_begin_with_the_completion():
    tokenizer = tiny.tokenizer(tiny.texts(20))
    prompts, completions = ["Person 3 lives in", "", "Person"], [" city 1.", "city", " 5"]
    for tokens, prompt, completion in zip(
        tokenize(tokenizer, prompts, completions), prompts, completions, strict=True
    ):
        assert tokenizer.decode(tokens.ids) == prompt + completion
        labelled = tokenizer.decode(tokens.ids[tokens.labels])
        assert labelled == completion or not prompt  # without a prompt the first token cannot be predicted


@pytest.mark.parametrize("budget", [1, 7, 64, 10_000])
def test_each_document_is_in_one_bucket_and_buckets_keep_the_budget(budget):
    lengths = np.random.default_rng(0).integers(1, 30, size=200).tolist()
    buckets = list(iter_length_buckets(lengths, budget))
    assert sorted(k for bucket in buckets for k in bucket) == list(range(200))
    assert all(
        len(bucket) == 1 or len(bucket) * max(lengths[k] for k in bucket) <= budget for bucket in buckets
    )
