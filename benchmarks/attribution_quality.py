"""What each choice is worth, on a small training run that is repeated: retrieval, retraining, unlearning, bytes.

    python -m benchmarks.attribution_quality [--people 100] [--runs 48] [--processes 2] [--plot docs/quality.svg]

The model is the demo's recipe on the facts of 100 people (1,200 documents, 400 queries), trained here. The rows go
through the same code as an index: fitted normalizers, projection, float16, int8 or sign, preconditioner, normalisation;
scores are those of every document, without a search in between. LDS is the linear datamodelling score over models that
are trained again on random halves of the documents (`bergson evaluate --measure lds`), of the scores as they are and
after the soft threshold. Δ log p is the change of the completion's log-probability by one step of unlearning on each of
the three best documents alone. With `--runs 0` only retrieval is measured, which the demo's 400 people are large enough
for. Losses of retrained models are kept in the data directory and used again.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.support.row_variants import Rows, fitted
from bergson_core.attribution.soft_threshold import soft_threshold
from bergson_core.attribution.unlearning import FIT_SAMPLE_SIZE, Unlearner
from bergson_core.data.batching import BUDGET_TOKENS, Tokens, tokenize
from bergson_core.demo.model import train_demo_model
from bergson_core.demo.synthetic_facts import FactCorpus, make_corpus
from bergson_core.evaluation.baseline_rankings import bm25_scores
from bergson_core.evaluation.baseline_scores import gradient_scores, representation_scores
from bergson_core.evaluation.metrics import bootstrap_interval, linear_datamodelling_score, retrieval_metrics
from bergson_core.evaluation.retraining import losses_after_retraining, random_subsets
from bergson_core.evaluation.trainers import BuiltInTrainer
from bergson_core.evaluation.training_loop import reproducible, train_causal_model
from bergson_core.gradients import normalizer_moments
from bergson_core.gradients.normalizer_fitting import sample_row_numbers
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector, collect_rows
from bergson_core.models.language_model import LanguageModel, as_language_model
from bergson_core.models.loading import load_model
from bergson_core.models.modules import select_modules
from bergson_core.schemas.build import GradientSpec, Normalize, Normalizer
from bergson_core.schemas.evaluation import Retrieval
from bergson_core.schemas.training import TrainingSchedule

DEPTH = 100
UNLEARNED = 3
NORMALIZERS: tuple[Normalizer, ...] = ("none", "adafactor", "adam", "kfac")
Scores = np.ndarray


def measure(table: Tensor | Scores, corpus: FactCorpus) -> Retrieval:
    best = torch.as_tensor(table).topk(DEPTH, dim=1).indices.tolist()
    rankings = {
        query.id: [corpus.documents[k].id for k in row]
        for query, row in zip(corpus.queries, best, strict=True)
    }
    return retrieval_metrics(rankings, corpus.gold_ids())


@dataclass(frozen=True)
class Run:
    """A training run, and what became of the queries without some of its documents.

    `parts` [M, n] were kept by the retrained models, `losses` [M, q] are theirs; `unlearned` [q, n] are the changes of
    log-probability by one step on each document. None where they were not asked for.
    """

    corpus: FactCorpus
    model: LanguageModel
    documents: list[Tokens]
    queries: list[Tokens]
    parts: np.ndarray | None = None
    losses: np.ndarray | None = None
    unlearned: np.ndarray | None = None

    def line(self, name: str, size: int | str, table: Tensor | Scores) -> tuple[float, float]:
        """Prints a line of the table; returns (MRR, thresholded LDS)."""
        table = np.asarray(table, dtype=np.float64)
        found, cells = measure(table, self.corpus), ["", "", ""]
        lds = float("nan")
        if self.parts is not None and self.losses is not None and self.unlearned is not None:
            plain, thresholded = (
                linear_datamodelling_score(one, self.parts, self.losses)
                for one in (table, soft_threshold(table))
            )
            best = np.argsort(-table, axis=1, kind="stable")[:, :UNLEARNED]
            effect = bootstrap_interval(np.take_along_axis(self.unlearned, best, axis=1).mean(1))
            cells = [
                *(f"{one.mean:.3f} ±{(one.high - one.low) / 2:.3f}" for one in (plain, thresholded)),
                f"{effect.mean:.3f} ±{(effect.high - effect.low) / 2:.3f}",
            ]
            lds = thresholded.mean
        size = f"{size:,}" if isinstance(size, int) else size
        columns = [name, size, f"{found.mrr:.3f}", f"{found.recall_at_10:.3f}"]
        print(f"| {' | '.join([*columns, f'{found.strict_recall_at_10:.3f}', *cells])} |", flush=True)
        return found.mrr, lds


def arguments(description: str, people: int = 400) -> argparse.ArgumentParser:
    """What the benchmarks on the demo's corpus take."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--projection_dims", type=int, nargs="+", default=[8, 16, 32, 48, 64])
    parser.add_argument("--normalizers", nargs="+", choices=NORMALIZERS, default=NORMALIZERS)
    parser.add_argument("--people", type=int, default=people)
    parser.add_argument("--seed", type=int, default=0, help="of the corpus and of the training")
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "bergson" / "demo",
    )
    return parser


def demo(options: argparse.Namespace) -> tuple[FactCorpus, LanguageModel, list[Tokens], list[Tokens]]:
    """(the corpus, the model that knows it, tokens of its documents, tokens of its queries)."""
    corpus = make_corpus(options.people, options.seed)
    train_demo_model(corpus, home(options) / "model", seed=options.seed)
    model = load_model(str(home(options) / "model"))
    assert model.tokenizer is not None  # load_model always gives one
    documents = tokenize(model.tokenizer, [document.text for document in corpus.documents], None)
    asked = corpus.queries
    queries = tokenize(model.tokenizer, [one.prompt for one in asked], [one.completion for one in asked])
    return corpus, model, documents, queries


def home(options: argparse.Namespace) -> Path:
    return options.data_dir.expanduser() / f"people-{options.people}-seed-{options.seed}"


def repeated(options: argparse.Namespace) -> Run:
    """The run, and the retrained models and unlearned documents that it is measured by."""
    run = Run(*demo(options))
    if options.runs == 0:
        return run
    started = time.perf_counter()
    trainer = BuiltInTrainer(
        str(home(options) / "model"), run.documents, TrainingSchedule(), scratch=True, sha256=run.model.sha256
    )
    parts = random_subsets(len(run.documents), options.runs, 0.5, options.seed)
    seeds = range(1, options.runs + 1)
    cache = home(options) / "retrained"
    losses = losses_after_retraining(trainer, parts, seeds, run.queries, cache, processes=options.processes)
    trained = time.perf_counter()
    places = sample_row_numbers(len(run.documents), FIT_SAMPLE_SIZE, 0)
    unlearner = Unlearner.fit(run.model, [run.documents[place] for place in places])
    unlearned = unlearner.log_probability_changes(run.documents, run.queries).T
    print(
        f"{options.runs} runs on half of {len(run.documents):,} documents: {trained - started:.0f} s; all documents "
        f"unlearned: {time.perf_counter() - trained:.0f} s, learning rate {unlearner.learning_rate:.2g}\n"
    )
    return replace(run, parts=np.array(parts), losses=losses, unlearned=unlearned)


def baselines(run: Run) -> Iterator[tuple[str, Scores]]:
    """What needs no gradients of ours, and the right documents themselves."""
    texts = [document.text for document in run.corpus.documents]
    asked = [query.prompt + query.completion for query in run.corpus.queries]
    shape = (len(run.queries), len(run.documents))
    yield "random order", np.random.default_rng(0).standard_normal(shape)
    yield "BM25", bm25_scores(texts, asked)
    yield "representations, cosine", representation_scores(run.model, run.documents, run.queries)
    gold = run.corpus.gold_ids()
    yield (
        "the right documents",
        np.array(
            [[float(d.id in gold[query.id]) for d in run.corpus.documents] for query in run.corpus.queries]
        ),
    )
    if run.unlearned is not None:
        yield "unlearning itself", -run.unlearned


def whole(run: Run, kind: Normalizer, **settings: object) -> tuple[Scores, Scores]:
    """(inner products, cosines) of gradients that were normalized and not projected."""
    spec = GradientSpec.model_validate({"normalizer": kind} | settings)
    names = list(select_modules(run.model.model, spec.modules))
    return gradient_scores(
        run.model, run.documents, run.queries, names, fitted(run.model, run.documents, spec)
    )


def damped(damping: float, work: Callable[[], Tensor | Scores]) -> Tensor | Scores:
    """What `work` gives where K-FAC is damped by that."""
    before = normalizer_moments.KFAC_DAMPING
    setattr(normalizer_moments, "KFAC_DAMPING", damping)  # noqa: B010 - it is no setting
    try:
        return work()
    finally:
        setattr(normalizer_moments, "KFAC_DAMPING", before)  # noqa: B010


def corrected(run: Run) -> Scores:
    """Cosines by EK-FAC: in K-FAC's eigenbases each direction has a second moment of its own (George et al., 2018)."""
    spec = GradientSpec(normalizer="kfac")
    kfac, layers = fitted(run.model, run.documents, spec), select_modules(run.model.model)
    collector = RowCollector(run.model, GradientProcessor(None))
    documents, queries = (
        torch.from_numpy(collect_rows(collector, tokens, BUDGET_TOKENS)[0])
        for tokens in (run.documents, run.queries)
    )
    dots, squares = torch.zeros(len(queries), len(documents)), torch.zeros(len(documents))
    for name, part in collector.slices.items():
        layer, roots = layers[name], list(kfac[name].tensors().values())
        left, right = (torch.linalg.eigh(root.double())[1].float() for root in roots)
        known, asked = (
            left.mT @ rows[:, part].reshape(-1, layer.out_features, layer.in_features) @ right
            for rows in (documents, queries)
        )
        moment = known.square().mean(0)
        weights = 1 / (moment + 1e-3 * moment.mean())
        dots += (asked * weights).flatten(1) @ known.flatten(1).mT
        squares += (known.square() * weights).sum((1, 2))
    return (dots / squares.sqrt()).numpy()


def checkpoints(run: Run, directory: Path, spec: GradientSpec) -> list[Tensor]:
    """Sign scores at a half, three quarters and the end of another training run."""
    models: list[LanguageModel] = []
    start = load_model(str(directory))
    assert start.tokenizer is not None  # load_model always gives one
    end = start.tokenizer.get_vocab()[str(start.tokenizer.eos_token)]
    with reproducible(0, 1):
        model = AutoModelForCausalLM.from_config(start.model.config)
    schedule = TrainingSchedule()
    steps = schedule.steps(len(run.documents))

    def keep(step: int, total: int, note: str) -> None:
        if step in (steps // 2, 3 * steps // 4, steps):
            copy = AutoModelForCausalLM.from_config(model.config)
            copy.load_state_dict(model.state_dict())
            models.append(as_language_model(copy.requires_grad_(False).eval(), start.tokenizer))

    with reproducible(7, 1):
        train_causal_model(model, run.documents, end, schedule, keep)
    return [Rows(one, run.documents, run.queries, spec).sign_scores() for one in models]


def fused(one: Scores, other: Scores) -> Scores:
    """Reciprocal rank fusion (Cormack et al., 2009, with its k = 60)."""
    first, second = (np.argsort(np.argsort(-table, axis=1), axis=1) for table in (one, other))
    return 1 / (61 + first) + 1 / (61 + second)


def main() -> None:
    parser = arguments(__doc__ or "", people=100)
    parser.add_argument("--runs", type=int, default=48, help="models that are trained again")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="SVG file for quality over bytes (needs matplotlib)")
    options = parser.parse_args()
    started = time.perf_counter()
    run = repeated(options)
    print(f"{len(run.documents):,} documents, {len(run.queries):,} queries")
    columns = "MRR | Recall@10 | strict recall@10 | LDS | LDS, thresholded | Δ log p"
    print(f"| rows | bytes | {columns} |\n|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, table in baselines(run):
        run.line(name, "", table)
    points = projected(run, options)
    if run.parts is not None:
        further(run, options)
    print(f"\n{time.perf_counter() - started:.0f} s")
    if options.plot is not None:
        plot(points, options.plot)


PLOTTED = (
    *("kfac, not projected", "kfac, sign", "kfac, float16", "kfac, float16, C"),
    *("adafactor, not projected", "adafactor, sign, C", "adafactor, float16, C", "none, float16"),
)
Points = dict[str, list[tuple[int, float, float]]]
"""Kind of rows → (bytes of a document, MRR, thresholded LDS)."""


def projected(run: Run, options: argparse.Namespace) -> Points:
    """Gradients that are not projected, then rows of every size; C where fitting it is worth its time."""
    points: Points = {}
    for kind in options.normalizers:
        size = 4 * sum(
            layer.out_features * layer.in_features for layer in select_modules(run.model.model).values()
        )
        dots, cosines = whole(run, kind)
        run.line(f"not projected, {kind}, none", size, dots)
        points.setdefault(f"{kind}, not projected", []).append(
            (size, *run.line(f"not projected, {kind}, row", size, cosines))
        )
    for p in options.projection_dims:
        for kind in options.normalizers:
            if p > 32 and kind != "kfac":
                continue
            rows = Rows(
                run.model, run.documents, run.queries, GradientSpec(projection_dim=p, normalizer=kind)
            )
            numbers = rows.layers * p * p
            roots: list[Preconditioner | None] = [None]
            if p != 48:
                roots.append(rows.root())
            for root in roots:
                c = ", C" if root else ""
                normalized: Sequence[Normalize] = ("none", "row", "block") if p == 16 else ("row", "block")
                for normalize in normalized:
                    name = f"p = {p}, {kind}, float16{c}, {normalize}"
                    found = run.line(name, 2 * numbers, rows.scores(root, normalize))
                    if normalize == "row":
                        points.setdefault(f"{kind}, float16{c}", []).append((2 * numbers, *found))
                found = run.line(f"p = {p}, {kind}, sign{c}", numbers // 8, rows.sign_scores(root))
                points.setdefault(f"{kind}, sign{c}", []).append((numbers // 8, *found))
    return points


def further(run: Run, options: argparse.Namespace) -> None:
    """What else was tried, each beside the recommended rows: kfac, sign, p = 32."""
    spec = GradientSpec(normalizer="kfac", projection_dim=32)
    rows = Rows(run.model, run.documents, run.queries, spec)
    size = rows.layers * 32 * 32 // 8

    def signs(settings: GradientSpec = spec) -> Tensor:
        return Rows(run.model, run.documents, run.queries, settings).sign_scores()

    for damping in (1e-1, 1e-2, 1e-4):
        run.line(f"p = 32, kfac damped by {damping:g}, sign", size, damped(damping, signs))
        table = damped(damping, lambda: whole(run, "kfac")[1])
        run.line(f"not projected, kfac damped by {damping:g}, row", "", table)
    run.line("not projected, EK-FAC, row", "", corrected(run))
    run.line("p = 32, kfac of sampled labels, sign", size, signs(replace_spec(spec, fit_labels="sampled")))
    every = replace_spec(spec, modules=".*")
    layers = len(select_modules(run.model.model, every.modules))
    run.line("p = 32, kfac, sign, embeddings and head too", size * layers // rows.layers, signs(every))
    run.line("p = 32, kfac, int8, block", 8 * size, rows.scores(None, "block", "int8"))
    less = Rows(run.model, run.documents, run.queries, replace_spec(spec, projection_dim=23))
    run.line("p = 23, kfac, float16, block", 2 * less.layers * 23 * 23, less.scores(None, "block"))
    run.line("p = 32, kfac, float16, C mixed, row", 16 * size, rows.scores(rows.mixed_root(), "row"))
    table = rows.sign_scores().numpy()
    text = dict(baselines(run))["BM25"]
    run.line("p = 32, kfac, sign, fused with BM25 by rank", size, fused(table, text))
    cosines = whole(run, "kfac")[1]
    least = np.sort(table, axis=1)[:, -DEPTH, None]
    rescored = np.where(table >= least, np.maximum(cosines, 1e-9), 0)
    run.line(f"p = 32, kfac, sign, the best {DEPTH} rescored by whole gradients", size, rescored)
    several = checkpoints(run, home(options) / "model", spec)
    run.line("another run's end, p = 32, kfac, sign", size, several[-1])
    run.line("its three checkpoints averaged", 3 * size, torch.stack(several).mean(0))


def replace_spec(spec: GradientSpec, **changes: object) -> GradientSpec:
    return spec.model_copy(update=changes)


def plot(points: Points, path: Path) -> None:
    """Thresholded LDS over bytes of a document, a line for each kind of rows."""
    import matplotlib as mpl  # pyright: ignore[reportMissingImports]

    mpl.use("svg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    mpl.rcParams |= {"svg.hashsalt": "bergson", "svg.fonttype": "none"}
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name in PLOTTED:
        its = points[name]
        sizes, _, lds = zip(*sorted(its), strict=True)
        style = {"kfac": "-", "adafactor": "--", "adam": "-.", "none": ":"}[name.split(",")[0]]
        axes.plot(sizes, lds, style, marker="s" if "sign" in name else "o", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("bytes of a document")
    axes.set_ylabel("linear datamodelling score, thresholded")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
