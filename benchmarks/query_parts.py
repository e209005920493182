"""Milliseconds of the parts of a query in this process, compared with its bare gradient.

    python -m benchmarks.query_parts [--models tiny small] [--documents 4800 100000] [--queries 100]

For each model, an index of pairs of the demo's sentences is built with defaults and kept in the benchmark's cache. Each
query runs three times in turn: with the gradients of all weights by plain autograd, and as a query of each index. The
output has medians: the bare gradient, the gradient and the search of the query, and the whole query beside the bare
gradient.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.support.command_line import make_parser
from benchmarks.support.random_models import MODELS, save_random_model, save_tiny_model
from benchmarks.support.text_files import corpus_sentences, write_sentence_pairs
from benchmarks.support.timing import measure_seconds
from bergson_core import AttributionIndex, BuildSpec, build_index
from bergson_core.demo.synthetic_facts import make_corpus
from bergson_core.errors import BergsonError
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec

WARM_UP_QUERIES = 10
VOCABULARY = 4096


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=["tiny", *MODELS], default=["tiny", "small"])
    parser.add_argument("--documents", type=int, nargs="+", default=[4800])
    parser.add_argument("--queries", type=int, default=100)
    options = parser.parse_args()
    print(
        f"{'model':<10}{'rows':>9}{'numbers':>9}{'bare':>9}{'gradient':>10}{'search':>9}{'query / bare':>14}"
    )
    with tempfile.TemporaryDirectory() as directory:
        for model in options.models:
            for documents in options.documents:
                _measure(Path(directory) / f"{model}-{documents}", model, documents, options.queries)


def _measure(root: Path, model: str, documents: int, count: int) -> None:
    root.mkdir()
    index = _build(root, model, documents)
    questions = make_corpus(people=400, seed=0).queries[: WARM_UP_QUERIES + count]
    bare, whole, gradient, search = [], [], [], []
    for question in questions:
        query = AttributionQuery(index="i", prompt=question.prompt, completion=question.completion)
        bare.append(measure_seconds(_bare_gradient, index, question.prompt + question.completion))
        started = time.perf_counter()
        (answer,) = index.attribute([query])
        whole.append(time.perf_counter() - started)
        if isinstance(answer, BergsonError):
            raise answer
        gradient.append(answer.timing_ms.gradient)
        search.append(answer.timing_ms.search)
    bare_ms, whole_ms = (1e3 * statistics.median(times[WARM_UP_QUERIES:]) for times in (bare, whole))
    gradient_ms, search_ms = (statistics.median(times[WARM_UP_QUERIES:]) for times in (gradient, search))
    print(
        f"{model:<10}{documents:>9,}{index.manifest.dimensions:>9,}{bare_ms:>9.2f}{gradient_ms:>10.2f}{search_ms:>9.2f}"
        f"{whole_ms / bare_ms:>14.2f}",
        flush=True,
    )


def _build(root: Path, model: str, documents: int) -> AttributionIndex:
    directory = root / "model"
    if model == "tiny":
        save_tiny_model(directory)
    else:
        save_random_model(directory, model, VOCABULARY, corpus_sentences())
    source = DatasetSpec(path=str(write_sentence_pairs(root, documents)))
    build_index(BuildSpec(model=str(directory), dataset=source, columns=ColumnsSpec(id="id")), root / "index")
    return AttributionIndex.open(root / "index")


def _bare_gradient(index: AttributionIndex, text: str) -> None:
    """Computes the gradients of all weights for a text, as one would without this library."""
    model, tokenizer = index.model.model, index.model.tokenizer
    assert tokenizer is not None
    ids = torch.tensor([tokenizer(text).input_ids])
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    requires = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        torch.autograd.grad(model(input_ids=ids, labels=ids).loss, parameters, allow_unused=True)
    finally:
        for parameter, required in zip(parameters, requires, strict=True):
            parameter.requires_grad_(required)


if __name__ == "__main__":
    main()
