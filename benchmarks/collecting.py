"""Collecting against its floor: the same batches, forward and activation-gradient backward, with no hooks.

    python -m benchmarks.collecting [--model small] [--device cpu] [--dtype float32] [--projection_dims 16 32]
        [--tokens 128] [--documents 64] [--rounds 9]

The floor asks for a gradient at the input embeddings and runs the same loss code, so the ratio is what hooks,
projections and rows cost. Rounds alternate, and the ratio is taken round by round, so that a machine whose
speed drifts does not matter. A naive loop (batch 1, all parameter gradients) runs on fewer documents.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import logging

from benchmarks import models
from bergson_core import GradientProcessor
from bergson_core.data.batching import Batch, Tokens, batches
from bergson_core.gradients.normalizer_fitting import fit_normalizers
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.forward_backward import forward_backward
from bergson_core.models.hooks import freeze
from bergson_core.models.loading import LanguageModel, as_language_model
from bergson_core.models.modules import select_modules


def run_floor(model: LanguageModel, work: list[Batch]) -> None:
    """Forward and backward to the input embeddings, nothing captured."""
    embeddings = model.model.get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda _module, _args, output: output.requires_grad_())
    with freeze(model.model):
        for batch in work:
            forward_backward(model, batch)
    handle.remove()


def run_naive(model: LanguageModel, documents: list[Tokens]) -> None:
    """One document at a time, gradients of all parameters by autograd."""
    for batch in (one for document in documents for one in batches([document], 1)):
        model.model.zero_grad(set_to_none=False)
        forward_backward(model, batch)


def seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def collect_all(collector: RowCollector, work: list[Batch]) -> None:
    for batch in work:
        collector.collect(batch)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=models.MODELS, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--projection_dims", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a document")
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    logging.set_verbosity_error()

    model = as_language_model(models.make(options.model, options.device, options.dtype))
    rng = np.random.default_rng(0)
    documents = [
        Tokens.labelled_from(rng.integers(1, 4096, options.tokens), 1) for _ in range(options.documents)
    ]
    work = list(batches(documents, 4096, options.device))
    layers = select_modules(model.model)
    normalizers = {
        kind: fit_normalizers(model, layers, work, kind) for kind in ("none", "adafactor", "kfac", "adam")
    }
    runs: dict[str, Callable[[], None]] = {"floor": lambda: run_floor(model, work)}
    for p in options.projection_dims:
        for kind, fitted in normalizers.items():
            collector = RowCollector(model, GradientProcessor(p, fitted))
            runs[f"{kind}, p = {p}"] = lambda collector=collector: collect_all(collector, work)
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            taken[name].append(seconds(run))
    tokens = options.tokens * options.documents
    few = documents[:: max(1, len(documents) // 8)]
    naive = options.tokens * len(few) / seconds(lambda: run_naive(model, few))
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(
        f"{options.model}: {parameters / 1e6:.1f} M parameters, {options.dtype} on {options.device}, "
        f"{options.documents} documents of {options.tokens} tokens"
    )
    print(f"{'':<22}{'tokens/s':>10}{'of the floor':>14}{'(min':>8}{'max)':>7}{'fastest':>10}")
    for name, times in taken.items():
        ratios = [floor / one for floor, one in zip(taken["floor"], times, strict=True)]
        print(
            f"{name:<22}{tokens / statistics.median(times):>10,.0f}{statistics.median(ratios):>14.3f}"
            f"{min(ratios):>8.2f}{max(ratios):>7.2f}{min(taken['floor']) / min(times):>10.3f}"
        )
    print(f"{'naive loop':<22}{naive:>10,.0f}{naive * statistics.median(taken['floor']) / tokens:>14.3f}")


if __name__ == "__main__":
    main()
