"""Tokens a second of gradient collection with the logits of labelled positions only, and with all logits.

    python -m benchmarks.logits_throughput [--tokens 200] [--documents 20] [--vocabulary 50000] [--rounds 5]

The documents have a prompt and a completion, which is a tenth of the tokens. The same collector runs once with the head
on labelled positions, in chunks, and once with the logits of every position, as the model itself computes them. Calls
alternate.
"""

import dataclasses
import statistics
from collections.abc import Callable

from transformers import logging

from benchmarks.support.command_line import make_parser
from benchmarks.support.passes import collect_all, make_random_documents
from benchmarks.support.random_models import gpt_neox_8m
from benchmarks.support.timing import measure_alternately
from bergson_core import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.language_model import as_language_model
from bergson_core.tokens.batching import BUDGET_TOKENS, iter_batches

LABELLED, ALL = "labelled positions", "all logits"
PROJECTION_DIM = 16


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a document")
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--vocabulary", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    logging.set_verbosity_error()

    model = as_language_model(gpt_neox_8m(options.vocabulary).eval())
    assert model.head is not None  # the head of GPT-NeoX can be told from its backbone
    prompt_tokens = options.tokens * 9 // 10
    documents = make_random_documents(options.documents, options.tokens, options.vocabulary, prompt_tokens)
    batches = list(iter_batches(documents, BUDGET_TOKENS))
    models = {LABELLED: model, ALL: dataclasses.replace(model, backbone=None, head=None)}
    calls: dict[str, Callable[[], None]] = {}
    for name, variant in models.items():
        collector = RowCollector(variant, GradientProcessor(PROJECTION_DIM))
        calls[name] = lambda collector=collector: collect_all(collector, batches)
    seconds = measure_alternately(calls, options.rounds)

    tokens = options.tokens * options.documents
    for name, times in seconds.items():
        print(f"{name:<20}{tokens / statistics.median(times):>10,.0f} tokens/s")
    ratio = statistics.median(slow / fast for slow, fast in zip(seconds[ALL], seconds[LABELLED], strict=True))
    print(f"labelled positions only: {ratio:.2f} × the tokens/s of all logits")


if __name__ == "__main__":
    main()
