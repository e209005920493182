"""Tokens a second of gradient collection, compared with the same passes without hooks.

    python -m benchmarks.gradient_throughput [--model small] [--device cpu] [--dtype float32]
        [--projection_dims 16 32] [--tokens 128] [--documents 64] [--rounds 9]

The floor asks for a gradient at the input embeddings and runs the same batches with the same loss code, so that the
ratio to the floor is what hooks, projections and rows cost. The ratio is taken round by round, between calls that
alternate, so that it does not matter if the speed of the machine drifts. A naive loop (one document at a time,
gradients of all parameters) runs on fewer documents.
"""

import platform
import statistics
from collections.abc import Callable

import torch
from transformers import logging

from benchmarks.support.command_line import make_parser
from benchmarks.support.passes import collect_all, make_random_documents, run_floor, run_naive_loop
from benchmarks.support.random_models import MODELS, make_random_model
from benchmarks.support.timing import measure_alternately, measure_seconds
from bergson_core import GradientProcessor
from bergson_core.gradients.processor_fitting import fit_normalizers
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.language_model import as_language_model
from bergson_core.models.tracking.selection import select_modules
from bergson_core.schemas.build import NormalizerKind
from bergson_core.tokens.batching import BUDGET_TOKENS, iter_batches

NORMALIZERS: tuple[NormalizerKind, ...] = ("none", "adafactor", "kfac", "adam")
NAIVE_DOCUMENTS = 8


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--projection_dims", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a document")
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    logging.set_verbosity_error()

    model = as_language_model(make_random_model(options.model, options.device, options.dtype))
    documents = make_random_documents(options.documents, options.tokens)
    batches = list(iter_batches(documents, BUDGET_TOKENS, options.device))
    modules = select_modules(model.model)
    calls: dict[str, Callable[[], None]] = {"floor": lambda: run_floor(model, batches)}
    fitted = {kind: fit_normalizers(model, modules, batches, kind) for kind in NORMALIZERS}
    for p in options.projection_dims:
        for kind, normalizers in fitted.items():
            collector = RowCollector(model, GradientProcessor(p, normalizers))
            calls[f"{kind}, p = {p}"] = lambda collector=collector: collect_all(collector, batches)
    seconds = measure_alternately(calls, options.rounds)
    few_documents = documents[:: max(1, len(documents) // NAIVE_DOCUMENTS)]
    naive_seconds = measure_seconds(run_naive_loop, model, few_documents)

    tokens = options.tokens * options.documents
    naive_rate = options.tokens * len(few_documents) / naive_seconds
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    processor = platform.processor() or platform.machine()
    print(f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"{options.model}: {parameters / 1e6:.1f} M parameters, {options.dtype} on {options.device}, "
        f"{options.documents} documents of {options.tokens} tokens"
    )
    print(f"{'':<22}{'tokens/s':>10}{'of the floor':>14}{'(min':>8}{'max)':>7}{'fastest':>10}")
    floor = seconds["floor"]
    for name, times in seconds.items():
        ratios = [floor_time / time for floor_time, time in zip(floor, times, strict=True)]
        print(
            f"{name:<22}{tokens / statistics.median(times):>10,.0f}{statistics.median(ratios):>14.3f}"
            f"{min(ratios):>8.2f}{max(ratios):>7.2f}{min(floor) / min(times):>10.3f}"
        )
    print(f"{'naive loop':<22}{naive_rate:>10,.0f}{naive_rate * statistics.median(floor) / tokens:>14.3f}")


if __name__ == "__main__":
    main()
