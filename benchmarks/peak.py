"""Peak memory of collecting beside that of a plain forward and backward pass, each in a process of its own.

    python -m benchmarks.peak [--model small] [--device cpu] [--dtype float32] [--projection_dims 16 32] [--tokens 512]

Two plain passes are measured: a step of training, `model(ids, labels=ids).loss.backward()` with the gradients of all
parameters, and the floor of benchmarks.collecting, which has no gradients of parameters and no full logits. What is
given is the peak above the loaded model: on a GPU what torch has allocated, on the CPU the resident memory of the
process, with an allocator that is told to give large blocks back at once.
"""

import argparse
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import logging

from benchmarks import models
from benchmarks.collecting import collect_all, run_floor
from bergson_core import GradientProcessor
from bergson_core.data.batching import BUDGET_TOKENS, Batch, Tokens, batches
from bergson_core.gradients.normalizer_fitting import fit_normalizers
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.indexing.cost_meter import resident_bytes
from bergson_core.models.loading import LanguageModel, as_language_model
from bergson_core.models.modules import select_modules


def run_training(model: LanguageModel, work: list[Batch]) -> None:
    """One pass of training a batch, as any tutorial has it."""
    for batch in work:
        model.model.zero_grad()
        model.model(input_ids=batch.input_ids, labels=batch.input_ids).loss.backward()


def measure(options: argparse.Namespace, what: tuple[Any, ...], results: Any) -> None:
    """Puts (what, peak bytes above the loaded model)."""
    logging.set_verbosity_error()
    model = as_language_model(models.make(options.model, options.device, options.dtype))
    rng = np.random.default_rng(0)
    documents = [Tokens.labelled_from(rng.integers(1, 4096, options.tokens), 1) for _ in range(16)]
    work = list(batches(documents, BUDGET_TOKENS, options.device))
    run: Callable[[], None] = lambda: run_training(model, work)  # noqa: E731
    if what[0] == "floor":
        run = lambda: run_floor(model, work)  # noqa: E731
    elif what[0] != "training":
        kind, p = what
        few = list(batches(documents[:1], BUDGET_TOKENS, options.device))
        fitted = fit_normalizers(model, select_modules(model.model), few, kind)
        collector = RowCollector(model, GradientProcessor(p, fitted))
        collect_all(collector, few)  # draws the projections
        run = lambda: collect_all(collector, work)  # noqa: E731
    on_gpu = options.device != "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far: fitting has its own
    before = torch.cuda.memory_allocated() if on_gpu else resident_bytes("VmRSS")
    run()
    peak = torch.cuda.max_memory_allocated() if on_gpu else resident_bytes("VmHWM")
    results.put((what, peak - before))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=models.MODELS, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--projection_dims", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a document")
    kinds = ("none", "adafactor", "kfac", "adam")
    parser.add_argument("--normalizers", nargs="+", choices=kinds, default=kinds)
    options = parser.parse_args()
    runs: list[tuple[Any, ...]] = [("training",), ("floor",)]
    runs += [(kind, p) for p in options.projection_dims for kind in options.normalizers]
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)  # for the processes that are started: glibc's
    context = multiprocessing.get_context("spawn")
    results, peaks = context.Queue(), {}
    for what in runs:
        process = context.Process(target=measure, args=(options, what, results))
        process.start()
        process.join()
        name, peaks[what] = results.get(timeout=10)
        ratios = [peaks[name] / peaks[plain] for plain in (("training",), ("floor",)) if plain in peaks]
        beside = "  ".join(f"{ratio:>6.3f}" for ratio in ratios)
        print(f"{', p = '.join(map(str, name)):<20}{peaks[name] / 2**20:>9,.0f} MiB  {beside}", flush=True)


if __name__ == "__main__":
    main()
