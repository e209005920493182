"""`bergson demo` trains a small model on a generated corpus, indexes it through the service and queries it."""

import hashlib
import json
import os
import shlex
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from bergson_core.demo.synthetic_facts import ATTRIBUTES, FactCorpus, make_corpus, write_corpus
from bergson_core.errors import IndexNotFound
from bergson_core.evaluation.queries import EvaluationQuery
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.presets import PresetName
from bergson_core.schemas.query import VerifySpec
from bergson_core.schemas.results import Progress
from bergson_core.storage.manifest import FORMAT_VERSION
from bergson_core.utils.private_directory import prepare_private_directory
from bergson_core.utils.progress import ProgressCallback
from service.cli.support.console import console, error_console, print_message, progress_bar
from service.cli.support.result_tables import results_table, verification_table
from service.cli.support.service_options import apply_settings
from service.client import Client
from worker.settings import PROCESS_LOG_FILE

PRESET: Final[PresetName] = "best"
SHOWN_RESULTS: Final = 5
SHOWN_CONTRAST: Final = 3
VERIFY_TIMEOUT_S: Final = 300
MAX_MEASURED_QUERIES: Final = 200
MEASURED_TOP_K: Final = 10


def default_directory() -> Path:
    """Returns the directory of the demo's models and indexes where no other is given."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bergson" / "demo"


def demo(
    exit_after_report: Annotated[
        bool, typer.Option("--exit", help="Exit after the report instead of staying up.")
    ] = False,
    people: Annotated[
        int, typer.Option(min=10, help="Invented people in the corpus; each has four facts.")
    ] = 400,
    seed: Annotated[int, typer.Option(help="Seed of the corpus and of the training.")] = 0,
    port: Annotated[int, typer.Option(help="Port of the service.")] = 8000,
    data_dir: Annotated[
        Path | None, typer.Option("--data_dir", help="Directory that keeps the model and the index.")
    ] = None,
) -> None:
    """Train a small model on invented facts, index it, and ask which documents made it answer."""
    from service.cli.support.process_group import running_system

    directory = (data_dir or default_directory()).absolute() / f"people-{people}-seed-{seed}"
    prepare_private_directory(directory)  # `running_system` gives the warning, if there is one
    corpus = make_corpus(people, seed)
    write_corpus(corpus, directory / "corpus")
    console.print(
        f"[bold]corpus[/]  {len(corpus.documents):,} documents that state {len(corpus.queries):,} facts"
    )
    _train(corpus, directory, seed)
    settings = apply_settings(data_dir=directory, port=port)
    with ExitStack() as stack:
        with error_console.status("starting Redis, a worker and the web service"):
            system = stack.enter_context(running_system(settings, log=directory / PROCESS_LOG_FILE))
        # A proxy does not reach a process of this machine.
        client = stack.enter_context(Client(system.url, trust_env=False))
        index = _build(client, directory)
        _show_answer(client, index, corpus)
        _show_contrast(client, index, corpus)
        _report(client, index, corpus)
        print_message(f"\nindex: {index}   files: {directory}")
        if not exit_after_report:
            print_message(f"ask: {curl_command(system.url, index, corpus.queries[0])}")
            print_message(f"explorer: {system.url}/   dashboard: {system.url}/docs   Ctrl-C stops everything")
            system.wait()


def curl_command(url: str, index: str, query: EvaluationQuery) -> str:
    """Returns the command that asks a query over HTTP."""
    body = {"index": index, "prompt": query.prompt, "completion": query.completion, "top_k": 3}
    return f"curl {url}/attribute -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"


@contextmanager
def _progress() -> Iterator[ProgressCallback]:
    """Yields a function that shows progress on a terminal, and shows nothing where nobody looks."""
    if not error_console.is_terminal:
        yield lambda progress: None
        return
    with progress_bar() as show:
        yield show


def _train(corpus: FactCorpus, directory: Path, seed: int) -> None:
    """Trains the model, unless an earlier run has saved it."""
    from bergson_core.demo.model import train_demo_model

    with _progress() as show:
        report = train_demo_model(
            corpus,
            directory / "model",
            seed=seed,
            progress=lambda done, total, note: show(
                Progress(stage="training", done=done, total=total, unit=note)
            ),
        )
    console.print(
        f"[bold]model[/]   GPT-NeoX of {report.parameters / 1e6:.1f} M parameters, trained in {report.seconds:.0f} s, "
        f"answers {report.accuracy:.0%} of the held-out paraphrases"
    )


def _build(client: Client, directory: Path) -> str:
    """Builds the index through the service, unless an earlier run has built it.

    Returns:
        The name of the index, which depends on the spec and on the model's weights.
    """
    request: dict[str, Any] = {
        "model": str(directory / "model"),
        "dataset": {"path": str(directory / "corpus" / "documents.jsonl")},
        "columns": {"prompt": "text", "id": "id", "metadata": ["fact", "person", "attribute"]},
        "preset": PRESET,
    }
    weights = (directory / "model" / "model.safetensors").read_bytes()
    spec = f"{FORMAT_VERSION} {BuildSpec.model_validate(request).fingerprint()}"
    index = "facts-" + hashlib.sha256(spec.encode() + weights).hexdigest()[:8]
    try:
        job = client.index(index).job_id  # The job of an interrupted run; None if the index is ready.
    except IndexNotFound:
        job = client.build(index, **request).job_id
    if job is not None:
        _wait_for_build(client, job)
    detail = client.index(index)
    assert detail.size_bytes is not None
    console.print(
        f"[bold]index[/]   {index}, preset {PRESET}: {detail.rows:,} rows of {detail.dimensions:,} dimensions, "
        f"{detail.coverage_percent:g} % of the parameters, {detail.size_bytes.total / 2**20:.1f} MiB"
    )
    return index


def _wait_for_build(client: Client, job: str) -> None:
    tokens_per_s = 0.0
    with _progress() as show:

        def show_and_note_rate(progress: Progress) -> None:
            nonlocal tokens_per_s
            show(progress)
            if progress.stage == "gradients":
                tokens_per_s = progress.tokens_per_s or tokens_per_s

        client.wait(job, show_and_note_rate)
    console.print(f"[bold]build[/]   {tokens_per_s:,.0f} tokens/s")


def _show_answer(client: Client, index: str, corpus: FactCorpus) -> None:
    """Prints the documents behind one answer, and what unlearning them does to it."""
    query = corpus.queries[0]
    with error_console.status("asking, and unlearning the best documents and random ones"):
        answer = client.attribute(
            index,
            query.prompt,
            query.completion,
            top_k=SHOWN_RESULTS,
            include=["text"],
            verify=VerifySpec(top=3, controls=3),
            timeout_s=VERIFY_TIMEOUT_S,
        )
    results = answer.results or []
    print_message(f"\nWhy does the model say{query.completion} after {query.prompt!r}?")
    console.print(results_table("", results, marked=corpus.gold_ids()[query.id]))
    console.print("✓ states the fact")
    if answer.verification is not None:
        print_message(
            "\nIs that so? Each of the best documents is unlearned by one step, and random ones too."
        )
        console.print(verification_table(results, answer.verification))


def _show_contrast(client: Client, index: str, corpus: FactCorpus) -> None:
    """Prints which documents speak for an answer rather than for another one, and which for the other one."""
    query, other = corpus.queries[0], _rival_of_the_first(corpus)
    answer = client.attribute(
        index,
        query.prompt,
        query.completion,
        instead_of=other.completion,
        top_k=SHOWN_CONTRAST,
        direction="both",
        include=["text"],
    )
    print_message(f"\nWhy{query.completion} rather than{other.completion}?")
    marked = corpus.gold_ids()[query.id]
    console.print(results_table(f"for{query.completion}", answer.results or [], marked=marked))
    console.print(results_table(f"for{other.completion}", answer.opponents or []))


def _rival_of_the_first(corpus: FactCorpus) -> EvaluationQuery:
    """Returns a query of the same kind as the first with another answer, if possible of a namesake."""
    first, *others = corpus.queries[:: len(ATTRIBUTES)]
    rivals = [query for query in others if query.completion != first.completion]
    people = {document.gold: set(document.metadata["person"].split()) for document in corpus.documents}
    namesakes = (query for query in rivals if people[query.gold] & people[first.gold])
    return next(namesakes, rivals[0])


def _report(client: Client, index: str, corpus: FactCorpus) -> None:
    """Prints the retrieval quality next to BM25 and random order, and the latency of queries to the service."""
    from bergson_core.evaluation.baseline_rankings import bm25_rankings, random_rankings
    from bergson_core.evaluation.metrics import retrieval_metrics

    stride = max(1, len(corpus.queries) // MAX_MEASURED_QUERIES)
    queries = corpus.queries[::stride][:MAX_MEASURED_QUERIES]
    seconds, service_rankings = [], {}
    with _progress() as show:
        for query in queries:
            started = time.perf_counter()
            answer = client.attribute(index, query.prompt, query.completion, top_k=MEASURED_TOP_K, include=[])
            seconds.append(time.perf_counter() - started)
            service_rankings[query.id] = [row.id for row in answer.results or []]
            show(Progress(stage="questions", done=len(seconds), total=len(queries), unit="queries"))
    gold = {query.id: corpus.gold_ids()[query.id] for query in queries}
    title = f"\n{len(queries)} queries, the top {MEASURED_TOP_K} documents of each"
    table = Table(title=title, title_justify="left", box=None)
    for name in ("", "MRR", "Recall@10", "strict recall@10"):
        table.add_column(name, justify="left" if not name else "right")
    rankings = {
        "gradients (through the service)": service_rankings,
        "BM25 (finds the wording)": bm25_rankings(corpus.documents, queries, MEASURED_TOP_K),
        "random order": random_rankings(corpus.documents, queries, MEASURED_TOP_K, seed=0),
    }
    for name, ranking in rankings.items():
        measured = retrieval_metrics(ranking, gold)
        figures = (measured.mrr, measured.recall_at_10, measured.strict_recall_at_10)
        table.add_row(name, *(f"{figure:.3f}" for figure in figures))
    console.print(table)
    median, p95 = statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]
    console.print(
        f"[bold]latency[/]  median {median * 1e3:.1f} ms, p95 {p95 * 1e3:.1f} ms for a query over HTTP with the "
        f"top {MEASURED_TOP_K}"
    )
