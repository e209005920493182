"""Checks and measures the library on a GPU, in under eight minutes: `python -m benchmarks.gpu [--output FILE]`.

    rows        rows of every normalizer and codec are those of the CPU in float32, and all tests in tests/gpu pass
    index       an index is built, asked and verified, with the answers of the CPU
    throughput  tokens a second of a GPT-NeoX of 160 M parameters and a Llama of 1 B, with random weights and real
                vocabularies, in bfloat16: of the bare forward pass with the backward pass of activations (the floor),
                of collecting and encoding rows, and of both with a compiled backbone; memory, and MFU
    query       milliseconds of the gradient of one query, beside its bare pass
    upstream    seconds of `bergson build` of EleutherAI's bergson for the same documents, if --upstream names an
                environment that it is installed in (`python -m benchmarks.upstream` makes one)

MFU counts 4 floating-point operations for each parameter and token, forward and backward of activations, over the
fastest that the device has for bfloat16. A part that fails is named at the end, the others are run, and the exit status
is 1. On a machine without a GPU, `--device cpu --small` runs the same code on tiny models.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import torch

from benchmarks.support.command_line import make_parser
from benchmarks.support.encoding_passes import FLOOR, make_encoders, make_passes, measure_compiled
from benchmarks.support.passes import make_random_documents
from benchmarks.support.random_models import make_random_model, save_tiny_model
from benchmarks.support.timing import measure_alternately
from bergson_core import AttributionIndex, GradientProcessor, VerifySpec, build_index, load_model
from bergson_core.demo.synthetic_facts import make_corpus
from bergson_core.gradients.processor_fitting import fit_normalizers
from bergson_core.gradients.row_collector import RowCollector, collect_rows
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.language_model import as_language_model
from bergson_core.schemas.build import BuildSpec, GradientSpec, NormalizerKind
from bergson_core.shards.codecs import CODECS
from bergson_core.tokens.batching import iter_batches
from bergson_core.utils.atomic_files import write_atomically

PEAK_TERAFLOPS: Final[Mapping[str, float]] = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362}
"""Part of a device's name → dense bfloat16 operations a second, in 10¹², by its data sheet."""
UPSTREAM_MODEL: Final = "neox-160m"
UPSTREAM_TOKENS_A_SECOND: Final = 38_000
"""What EleutherAI's bergson has published for a model of 160 M parameters."""
MAX_ROW_ERROR: Final[Mapping[NormalizerKind, float]] = {
    "none": 1e-4,
    "adafactor": 1e-4,
    "adam": 1e-4,
    "kfac": 1e-2,
}
"""Of float32 rows between two devices, relative to their norm. K-FAC's small eigenvalues are mostly rounding."""
MAX_SCORE_ERROR: Final = 5e-3
QUERY_TOKENS: Final = 40
LEAST_SHARED: Final = 4
"""Of five results, those that two devices have to share."""


@dataclass(frozen=True)
class Sizes:
    """What is measured: the models, and how much of it.

    Attributes:
        checked: Name of the random model whose rows are compared.
        models: Names of the random models whose speed is measured.
        dtype: Their precision.
        documents: Number of documents of a pass, and the tokens of each.
        rounds: How often everything is timed.
    """

    checked: str = "small"
    models: tuple[str, ...] = ("neox-160m", "llama-1b")
    dtype: str = "bfloat16"
    documents: tuple[int, int] = (256, 512)
    rounds: int = 5


SMALL: Final = Sizes("two-layers", ("two-layers",), "float32", (8, 32), 2)


def check_rows(device: str, sizes: Sizes) -> Iterator[str]:
    """Compares rows on the device with those on the CPU, and runs the tests of GPUs on one."""
    documents = make_random_documents(12, 48)
    for kind, bound in MAX_ROW_ERROR.items():
        rows = {}
        for place in ("cpu", device):
            model = as_language_model(make_random_model(sizes.checked, place))
            batches = iter_batches(documents, 96 if place == "cpu" else 400, place)
            normalizers = fit_normalizers(model, model.select_modules(), batches, kind)
            rows[place], _ = collect_rows(
                RowCollector(model, GradientProcessor(8, normalizers)), documents, 200
            )
        error = np.linalg.norm(rows[device] - rows["cpu"]) / np.linalg.norm(rows["cpu"])
        yield f"{kind}: rows differ by {error:.1e} of their norm (at most {bound:g})"
        require(bool(error <= bound), f"rows with {kind} differ")
    if device != "cpu":
        tests = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "tests/gpu"], capture_output=True, text=True
        )
        yield f"tests/gpu: {tests.stdout.strip().splitlines()[-1]}"
        require(tests.returncode == 0, tests.stdout[-2000:])


def check_index(device: str) -> Iterator[str]:
    """Builds an index, asks it and verifies the answer, and compares it with the CPU's answer."""
    corpus = make_corpus(people=40, seed=0)
    with tempfile.TemporaryDirectory() as name:
        model = save_tiny_model(Path(name) / "model")
        documents = tuple({"text": document.text} for document in corpus.documents)
        for kind in CODECS:
            gradients = GradientSpec(rows=kind, sample_size=64)
            spec = BuildSpec(model=str(model), documents=documents, gradients=gradients)
            path, started = Path(name) / kind, time.perf_counter()
            build_index(spec, path)
            built, scores = time.perf_counter() - started, {}
            for place in ("cpu", device):
                index = AttributionIndex.open(path, load_model=partial(load_model, device=place))
                query = corpus.queries[0]
                answer = index.query(
                    query.prompt, query.completion, top_k=5, verify=VerifySpec(top=2, controls=2)
                )
                require(answer.verification is not None, "the answer is not verified")
                scores[place] = {row.id: row.score for row in answer.results or ()}
            shared = scores["cpu"].keys() & scores[device].keys()
            error = max(abs(scores["cpu"][document] - scores[device][document]) for document in shared)
            yield f"{kind}: built in {built:.1f} s; {len(shared)} of 5 results are the CPU's, scores within {error:.1e}"
            require(
                len(shared) >= LEAST_SHARED and error <= MAX_SCORE_ERROR, f"answers of {kind} rows differ"
            )


def measure_throughput(device: str, sizes: Sizes) -> Iterator[str]:
    """Measures passes with and without collection, and with a compiled backbone."""
    count, length = sizes.documents
    for name in sizes.models:
        model = as_language_model(make_random_model(name, device, sizes.dtype))
        documents = make_random_documents(count, length)
        budget = find_batch_budget(model, model.select_modules(), length)
        batches, encoders = list(iter_batches(documents, budget, device)), make_encoders(model, documents)
        passes = make_passes(model, encoders, batches)
        peaks = {title: peak_gib(device, run) for title, run in passes.items()}
        seconds = measure_alternately(passes, sizes.rounds)
        yield (
            f"{name}, {model.parameter_count / 1e6:.0f} M parameters, {sizes.dtype}, {count} documents of {length} "
            f"tokens in batches of {budget:,} tokens"
        )
        try:
            seconds |= measure_compiled(model, encoders, batches, sizes.rounds)
        except RuntimeError as error:
            yield f"the backbone cannot be compiled: {type(error).__name__}: {str(error)[:200]}"
        yield from (
            "",
            "| pass | tokens/s | of the bare pass | MFU | peak GiB |",
            "|---|---:|---:|---:|---:|",
        )
        floor, rates = median(seconds[FLOOR]), {}
        for title, times in seconds.items():
            rates[title] = count * length / median(times)
            share, peak = mfu(rates[title], model.parameter_count), peaks.get(title)
            memory = "" if peak is None else f"{peak:.1f}"
            yield f"| {title} | {rates[title]:,.0f} | {floor / median(times):.3f} | {share} | {memory} |"
        yield ""
        if name == UPSTREAM_MODEL:
            ratio = max(rates[title] for title in encoders) / UPSTREAM_TOKENS_A_SECOND
            yield f"{ratio:.1f} × the {UPSTREAM_TOKENS_A_SECOND:,} tokens/s that bergson has published"


def measure_query(device: str, sizes: Sizes) -> Iterator[str]:
    """Measures the gradient of one query beside its bare pass."""
    for name in sizes.models:
        model = as_language_model(make_random_model(name, device, sizes.dtype))
        queries = make_random_documents(4, QUERY_TOKENS, prompt=QUERY_TOKENS // 2)
        batches = list(iter_batches(queries[:1], QUERY_TOKENS, device))
        passes = make_passes(model, make_encoders(model, queries), batches)
        seconds = measure_alternately(passes, 10 * sizes.rounds)
        figures = ", ".join(f"{title} {1e3 * median(times):.2f} ms" for title, times in seconds.items())
        yield f"{name}, a query of {QUERY_TOKENS} tokens: {figures}"


def measure_upstream(environment: Path, device: str, sizes: Sizes) -> Iterator[str]:
    """Measures the build of EleutherAI's bergson, and ours, of the same documents with the same model."""
    corpus = make_corpus(people=40 if sizes is SMALL else 2_000, seed=0)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = save_tiny_model(directory / "model")
        texts = directory / "texts.jsonl"
        texts.write_text("".join(json.dumps({"text": document.text}) + "\n" for document in corpus.documents))
        common = ["--model", str(model), "--dataset", str(texts), "--prompt_column", "text"]
        theirs = [str(environment / "bin" / "bergson"), "build", str(directory / "theirs"), *common]
        theirs += ["--projection_dim", "16", "--precision", "fp32"]
        ours = [sys.executable, "-m", "service.cli", str(directory / "ours"), *common]
        for title, command in {"bergson": theirs, "this": ours}.items():
            started = time.perf_counter()
            run = subprocess.run(command, capture_output=True, text=True)
            require(run.returncode == 0, f"{title} on {device}: {run.stderr[-1000:]}")
            yield f"{title}: {len(corpus.documents):,} documents in {time.perf_counter() - started:.1f} s"


def peak_gib(device: str, call: Callable[[], object]) -> float:
    """Returns the peak of the device's memory during a call; 0 on a CPU."""
    if device == "cpu":
        call()
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() / 2**30


def mfu(tokens_a_second: float, parameters: int) -> str:
    """Returns the share of the device's fastest that is used, or nothing for an unknown device."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((peak for part, peak in PEAK_TERAFLOPS.items() if part in name), None)
    return "" if peak is None else f"{4 * parameters * tokens_a_second / (1e12 * peak):.1%}"


def require(holds: bool, message: str) -> None:
    """Raises `AssertionError` if a check does not hold."""
    if not holds:
        raise AssertionError(message)


def run_parts(parts: Mapping[str, Callable[[], Iterator[str]]]) -> tuple[list[str], list[str]]:
    """Runs every part, and returns the lines that they print and the names of those that failed."""
    lines, failed = [], []
    for name, run in parts.items():
        started = time.perf_counter()
        lines += [f"## {name}", ""]
        try:
            for line in run():
                lines.append(line)
                print(line, flush=True)
        except Exception:  # noqa: BLE001 - whatever it is, the other parts are run
            failed.append(name)
            lines += ["", "```", traceback.format_exc(limit=-3), "```"]
            print(lines[-2], flush=True)
        lines += ["", f"({time.perf_counter() - started:.0f} s)", ""]
    return lines, failed


def make_options() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--device", default="cuda", help="device to check and to measure")
    parser.add_argument("--small", action="store_true", help="tiny models, to try the code")
    parser.add_argument(
        "--upstream", type=Path, help="environment in which EleutherAI's bergson is installed"
    )
    parser.add_argument("--output", type=Path, help="Markdown file for all that is printed")
    return parser


def main() -> None:
    """Runs all parts; the exit status is 1 if one of them failed."""
    options = make_options().parse_args()
    device, sizes = options.device, SMALL if options.small else Sizes()
    if device != "cpu" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device; expected one, or --device cpu --small")
    parts = {
        "rows": partial(check_rows, device, sizes),
        "index": partial(check_index, device),
        "throughput": partial(measure_throughput, device, sizes),
        "query": partial(measure_query, device, sizes),
    }
    if options.upstream is not None:
        parts["upstream"] = partial(measure_upstream, options.upstream, device, sizes)
    device_name = torch.cuda.get_device_name() if device != "cpu" else "CPU"
    lines, failed = run_parts(parts)
    if options.output is not None:
        heading = f"{device_name}, torch {torch.__version__}"
        write_atomically(options.output, "\n".join([heading, "", *lines]).encode())
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
