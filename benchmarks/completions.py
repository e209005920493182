"""What it saves to compute the head on labelled positions only.

    python -m benchmarks.completions [--tokens 200] [--vocabulary 50000] [--rounds 5]

Prompt and completion, the completion a tenth of the tokens: the same collector with the head on labelled positions in
chunks, and with the logits of every position as the model itself computes them. Rounds alternate.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable

import numpy as np
from transformers import logging

from benchmarks import models
from benchmarks.collecting import collect_all, seconds
from bergson_core import GradientProcessor
from bergson_core.data.batching import BUDGET_TOKENS, Tokens, batches
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.loading import as_language_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a document")
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--vocabulary", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    logging.set_verbosity_error()
    model = as_language_model(models.small(options.vocabulary).eval())
    assert model.head is not None  # GPT-NeoX has one that can be told from its backbone
    rng = np.random.default_rng(0)
    documents = [
        Tokens.labelled_from(rng.integers(0, options.vocabulary, options.tokens), options.tokens * 9 // 10)
        for _ in range(options.documents)
    ]
    work = list(batches(documents, BUDGET_TOKENS))
    runs: dict[str, Callable[[], None]] = {}
    for name, one in {
        "labelled positions": model,
        "all logits": dataclasses.replace(model, backbone=None, head=None),
    }.items():
        collector = RowCollector(one, GradientProcessor(16))
        runs[name] = lambda collector=collector: collect_all(collector, work)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(options.rounds):
        for name, run in runs.items():
            taken[name].append(seconds(run))
    tokens = options.tokens * options.documents
    for name, times in taken.items():
        print(f"{name:<20}{tokens / statistics.median(times):>10,.0f} tokens/s")
    every, labelled = (taken[name] for name in ("all logits", "labelled positions"))
    ratio = statistics.median(slow / fast for slow, fast in zip(every, labelled, strict=True))
    print(f"labelled positions only: {ratio:.2f} × the tokens/s of all logits")


if __name__ == "__main__":
    main()
