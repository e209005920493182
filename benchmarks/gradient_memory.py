"""Peak memory of gradient collection, compared with plain forward and backward passes.

    python -m benchmarks.gradient_memory [--model small] [--device cpu] [--dtype float32]
        [--projection_dims 16 32] [--tokens 512] [--normalizers none adafactor kfac adam]

Two plain passes are measured: "training" is `model(ids, labels=ids).loss.backward()` with the gradients of all
parameters and all logits; "floor" is that of benchmarks.gradient_throughput, which has neither. Each pass runs in a
process of its own. The numbers are the peak above the loaded model: on a GPU what torch has allocated, on the CPU the
resident memory of the process, with an allocator that is told to return large blocks at once.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import logging

from benchmarks.support.command_line import make_parser
from benchmarks.support.passes import collect_all, make_random_documents, run_floor, run_training_steps
from benchmarks.support.processes import run_in_new_process
from benchmarks.support.random_models import MODELS, make_random_model
from bergson_core import GradientProcessor
from bergson_core.gradients.processor_fitting import fit_normalizers
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.indexing.estimation.cost_meter import resident_bytes
from bergson_core.models.language_model import LanguageModel, as_language_model
from bergson_core.models.tracking.selection import select_modules
from bergson_core.tokens.batching import BUDGET_TOKENS, iter_batches

DOCUMENTS = 16
NORMALIZERS = ("none", "adafactor", "kfac", "adam")
Variant = tuple[Any, ...]
"""("training",), ("floor",), or (normalizer, p)."""


def make_pass(model: LanguageModel, options: argparse.Namespace, variant: Variant) -> Callable[[], None]:
    """Returns the call whose memory is measured; everything that it needs is in memory already."""
    documents = make_random_documents(DOCUMENTS, options.tokens)
    batches = list(iter_batches(documents, BUDGET_TOKENS, options.device))
    if variant == ("training",):
        return lambda: run_training_steps(model, batches)
    if variant == ("floor",):
        return lambda: run_floor(model, batches)
    kind, p = variant
    one_document = list(iter_batches(documents[:1], BUDGET_TOKENS, options.device))
    normalizers = fit_normalizers(model, select_modules(model.model), one_document, kind)
    collector = RowCollector(model, GradientProcessor(p, normalizers))
    collect_all(collector, one_document)  # draws the projections
    return lambda: collect_all(collector, batches)


def measure_peak(options: argparse.Namespace, variant: Variant) -> int:
    """Returns the peak of a pass above the loaded model, in bytes; runs in a process of its own."""
    logging.set_verbosity_error()
    model = as_language_model(make_random_model(options.model, options.device, options.dtype))
    run = make_pass(model, options, variant)
    if options.device == "cpu":
        # This resets VmHWM, which includes the fit of the normalizers.
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_bytes("VmRSS")
        run()
        return resident_bytes("VmHWM") - before
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--projection_dims", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a document")
    parser.add_argument("--normalizers", nargs="+", choices=NORMALIZERS, default=NORMALIZERS)
    options = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)  # glibc's, for the new processes
    variants: list[Variant] = [("training",), ("floor",)]
    variants += [(kind, p) for p in options.projection_dims for kind in options.normalizers]
    print(f"{'':<20}{'peak':>13}  of training  of the floor")
    peaks: dict[Variant, int] = {}
    for variant in variants:
        peaks[variant] = run_in_new_process(measure_peak, options, variant)
        ratios = [peaks[variant] / peaks[plain] for plain in variants[:2] if plain in peaks]
        columns = "  ".join(f"{ratio:>11.3f}" for ratio in ratios)
        print(
            f"{', p = '.join(map(str, variant)):<20}{peaks[variant] / 2**20:>9,.0f} MiB  {columns}",
            flush=True,
        )


if __name__ == "__main__":
    main()
