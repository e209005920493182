"""`bergson demo`: the main job on a model and a corpus that it makes itself."""

import hashlib
import os
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from bergson_core.demo.synthetic_facts import FactCorpus, make_corpus, write_corpus
from bergson_core.errors import IndexNotFound
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.results import Progress
from bergson_core.storage.manifest import FORMAT_VERSION
from service.cli.serve import set_environment
from service.cli.support.output import console, progress_bar, results_table
from service.client import Client

SHOWN = 4
EVALUATED = 200
DEPTH = 100


def _default_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bergson" / "demo"


def demo(
    exit: Annotated[bool, typer.Option("--exit", help="End after the report instead of staying up.")] = False,
    people: Annotated[
        int, typer.Option(min=10, help="Invented people in the corpus; each has four facts.")
    ] = 400,
    seed: Annotated[int, typer.Option(help="Seed of the corpus and of the training.")] = 0,
    port: Annotated[int, typer.Option(help="Port of the service.")] = 8000,
    data_dir: Annotated[
        Path | None, typer.Option("--data_dir", help="Where the model and the index are kept.")
    ] = None,
) -> None:
    """Train a small model on invented facts, index it, and ask which documents made it answer."""
    from service.cli.support.process_group import running_system

    directory = (data_dir or _default_directory()).absolute() / f"people-{people}-seed-{seed}"
    corpus = make_corpus(people, seed)
    write_corpus(corpus, directory / "corpus")
    console.print(
        f"[bold]corpus[/]  {len(corpus.documents):,} documents that state {len(corpus.queries):,} facts"
    )
    _train(corpus, directory, seed)
    settings = set_environment(data_dir=directory, port=port)
    with (
        running_system(settings, log=directory / "processes.log") as system,
        Client(system.url) as client,
    ):
        index = _build(client, directory)
        _show_answers(client, index, corpus)
        _report(client, index, corpus)
        console.print(f"\n[bold]dashboard[/]  {system.url}/docs   index: {index}   files: {directory}")
        if not exit:
            console.print("Ctrl-C stops everything.")
            system.wait()


def _train(corpus: FactCorpus, directory: Path, seed: int) -> None:
    from bergson_core.demo.model import train_demo_model

    with progress_bar() as show:
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
        f"answers {report.accuracy:.0%} of the kept paraphrases"
    )


def _build(client: Client, directory: Path) -> str:
    """Builds the index of this model and corpus through the service, unless it is there already."""
    request: dict[str, Any] = {
        "model": str(directory / "model"),
        "dataset": {"path": str(directory / "corpus" / "documents.jsonl")},
        "columns": {"prompt": "text", "id": "id", "metadata": ["fact", "person", "attribute"]},
        "gradients": {"normalizer": "kfac", "rows": "sign"},  # docs/quality.md says why
        "scoring": {"normalize": "block", "preconditioner": False},
    }
    weights = (directory / "model" / "model.safetensors").read_bytes()
    spec = f"{FORMAT_VERSION} {BuildSpec.model_validate(request).fingerprint()}"
    index = "facts-" + hashlib.sha256(spec.encode() + weights).hexdigest()[:8]
    try:
        job = client.index(index).job_id  # of an earlier run that was stopped; None where it is ready
    except IndexNotFound:
        job = client.build(index, **request).job_id
    if job is not None:
        _follow(client, job)
    found = client.index(index)
    assert found.size_bytes is not None
    console.print(
        f"[bold]index[/]   {index}: {found.rows:,} rows of {found.dimensions:,} dimensions, "
        f"{found.coverage_percent:g} % of the parameters, {found.size_bytes.total / 2**20:.1f} MiB"
    )
    return index


def _follow(client: Client, job: str) -> None:
    rate = 0.0
    with progress_bar() as show:

        def look(progress: Progress) -> None:
            nonlocal rate
            show(progress)
            if progress.stage == "gradients":
                rate = progress.tokens_per_s or rate

        client.wait(job, look)
    console.print(f"[bold]build[/]   {rate:,.0f} tokens/s")


def _show_answers(client: Client, index: str, corpus: FactCorpus) -> None:
    gold = corpus.gold()
    step = len(corpus.queries) // SHOWN + 1  # an odd stride meets every kind of fact
    for query in corpus.queries[:: step | 1][:SHOWN]:
        answer = client.attribute(index, query.prompt, query.completion, top_k=5)
        title = f"\n{query.prompt}[{query.completion.strip()}]   {answer.timing_ms.total:.0f} ms"
        console.print(results_table(title, answer.results or [], marked=gold[query.id]))
    console.print("✓ states the fact")


def _report(client: Client, index: str, corpus: FactCorpus) -> None:
    """Retrieval quality beside BM25 and random order, and latency, over queries through the service."""
    from bergson_core.evaluation.metrics import bm25_rankings, random_rankings, retrieval

    queries = corpus.queries[:: max(1, len(corpus.queries) // EVALUATED)][:EVALUATED]
    seconds, found = [], {}
    for query in queries:
        started = time.perf_counter()
        answer = client.attribute(index, query.prompt, query.completion, top_k=DEPTH, include=[])
        seconds.append(time.perf_counter() - started)
        found[query.id] = [row.id for row in answer.results or []]
    gold = {query.id: corpus.gold()[query.id] for query in queries}
    table = Table(title=f"\n{len(queries)} queries, the top {DEPTH} of each", title_justify="left", box=None)
    for name in ("", "MRR", "Recall@10", "strict recall@10"):
        table.add_column(name, justify="left" if not name else "right")
    rankings = {
        "gradients (through the service)": found,
        "BM25 (finds the wording)": bm25_rankings(corpus.documents, queries, DEPTH),
        "random order": random_rankings(corpus.documents, queries, DEPTH, seed=0),
    }
    for name, ranking in rankings.items():
        measured = retrieval(ranking, gold)
        table.add_row(
            name, *(f"{v:.3f}" for v in (measured.mrr, measured.recall_at_10, measured.strict_recall_at_10))
        )
    console.print(table)
    median, p95 = statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]
    console.print(
        f"[bold]latency[/]  median {median * 1e3:.1f} ms, p95 {p95 * 1e3:.1f} ms a query over HTTP, top {DEPTH}"
    )
