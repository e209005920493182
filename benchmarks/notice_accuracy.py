"""How often an answer claims an influence that does not exist, and how often it misses one, on the demo's corpus.

    python -m benchmarks.notice_accuracy [--queries 800] [--people 400] [--data_dir ~/.cache/bergson/demo]

An answer claims an influence unless it has the notice that no strong influence was found. The benchmark asks the
queries of the corpus ("own") and prompts about people who are not in it: names of the same pools in the same wordings,
with a value drawn at random ("drawn") or with what the model itself says ("generated"). It prints how often the index
claims an influence, then what other statistics of a query's scores would claim. The threshold of each statistic is the
value that a twentieth of null queries exceed: halves of two documents drawn at random ("any"), or of two that fit
("fitting"; `bergson_core.search.significance`). AUC is the probability that a query of the corpus has the higher value.
"""

import random
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.support.command_line import make_parser
from benchmarks.support.demo_model import add_demo_options, load_demo
from benchmarks.support.timing import measure_seconds
from bergson_core import AttributionIndex, build_index
from bergson_core.demo.synthetic_facts import ATTRIBUTES, FIRST_NAMES, LAST_NAMES, FactCorpus, write_corpus
from bergson_core.gradients.processor_fitting import sample_row_numbers
from bergson_core.gradients.row_collector import collect_rows
from bergson_core.models.generation import generate_completion
from bergson_core.models.language_model import LanguageModel
from bergson_core.schemas.build import BuildSpec, ColumnsSpec, DatasetSpec, GradientSpec, ScoringSpec
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import Answer
from bergson_core.search.background_sample import BackgroundSample
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.significance import ENDINGS_TRIED, FALSE_ALARM_RATE, collect_null_rows
from bergson_core.tokens.batching import BUDGET_TOKENS
from bergson_core.tokens.tokenization import tokenize

Texts = list[tuple[str, str]]
"""Prompt and completion of each query."""
KINDS: dict[str, dict[str, Any]] = {
    "adafactor, float16, p = 16, row": {},
    "kfac, sign, p = 32, block": {
        "gradients": GradientSpec(normalizer="kfac", rows="sign", projection_dim=32),
        "scoring": ScoringSpec(normalize="block", preconditioner=False),
    },
}
OWN, DRAWN, GENERATED = "own", "drawn", "generated"
NULL_DOCUMENTS, QUERY_BATCH_SIZE, TIMING_ROUNDS, HILL_SCORES = 256, 32, 50, 50


def prominences(scores: Float[np.ndarray, "q n"], quantile: float) -> Float[np.ndarray, " q"]:
    """Returns the height of the best score above the median, in units of the height of a quantile."""
    median, high = np.quantile(scores, (0.5, quantile), axis=1)
    return (scores.max(1) - median) / (high - median)


def robust_z(scores: Float[np.ndarray, "q n"]) -> Float[np.ndarray, " q"]:
    """Returns the height of the best score above the median, in units of the median absolute deviation."""
    median = np.median(scores, axis=1, keepdims=True)
    return ((scores - median) / np.median(np.abs(scores - median), axis=1, keepdims=True)).max(1)


def hill_estimates(scores: Float[np.ndarray, "q n"]) -> Float[np.ndarray, " q"]:
    """Returns Hill's estimate of the tail index from the 50 best scores."""
    logs = np.log(-np.partition(-scores, HILL_SCORES, axis=1)[:, : HILL_SCORES + 1].clip(max=-1e-9))
    return logs.mean(1) - logs.min(1)


STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "prominence": lambda scores: prominences(scores, 0.99),
    "prominence by the 99.9th percentile": lambda scores: prominences(scores, 0.999),
    "best score": lambda scores: scores.max(1),
    "robust z of the best": robust_z,
    "best / tenth best": lambda scores: scores.max(1) / np.sort(scores, axis=1)[:, -10],
    "third best / tenth best": lambda scores: np.sort(scores, 1)[:, -3] / np.sort(scores, 1)[:, -10],
    "Hill's index of the 50 best": hill_estimates,
    "best / -lowest": lambda scores: -scores.max(1) / scores.min(1),
}


def make_queries(corpus: FactCorpus, model: LanguageModel, count: int) -> dict[str, Texts]:
    """Returns the queries of the corpus, and `count` queries of each other kind."""
    rng, known_people = random.Random(1), {document.metadata["person"] for document in corpus.documents}
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    strangers = [name for name in names if name not in known_people]
    drawn, generated = [], []
    for _ in range(count):
        attribute = rng.choice(list(ATTRIBUTES.values()))
        template = rng.choice(attribute.templates)
        prompt = template.removesuffix(" {value}.").format(person=rng.choice(strangers))
        drawn.append((prompt, f" {rng.choice(attribute.values)}"))
        generated.append((prompt, generate_completion(model, prompt, 8).text.split(".")[0]))
    own = [(query.prompt, query.completion) for query in corpus.queries]
    return {OWN: own, DRAWN: drawn, GENERATED: generated}


def answer_queries(index: AttributionIndex, texts: Texts) -> list[Answer]:
    """Returns the answers with one result each."""
    queries = [
        AttributionQuery(index="facts", prompt=prompt, completion=completion, top_k=1)
        for prompt, completion in texts
    ]
    answers: list[Answer] = []
    for start in range(0, len(queries), QUERY_BATCH_SIZE):
        for answer in index.attribute(queries[start : start + QUERY_BATCH_SIZE]):
            assert isinstance(answer, Answer), answer
            answers.append(answer)
    return answers


def score_all(index: AttributionIndex, rows: Float[Tensor, "q m d"]) -> Float[np.ndarray, "q n"]:
    """Returns the score of every document with every query."""
    profile = index.profiles["default"]
    _, weights = profile.prepare_queries(rows)
    scorer = ExactScorer(index.shards, profile)
    parts = [
        scorer.score_range(number, slice(0, shard.entry.rows), weights.flatten(1).mT)
        for number, shard in enumerate(index.shards)
    ]
    return torch.cat(parts).mT.numpy()


def score_queries(index: AttributionIndex, texts: Texts) -> Float[np.ndarray, "q n"]:
    """Returns the score of every document with every query."""
    assert index.model.tokenizer is not None  # load_model always returns one
    prompts, completions = map(list, zip(*texts, strict=True))
    tokens = tokenize(index.model.tokenizer, prompts, completions)
    rows, _ = collect_rows(index.collector, tokens, BUDGET_TOKENS)
    return score_all(index, torch.from_numpy(rows).reshape(len(rows), len(index.collector.slices), -1))


def score_null_queries(index: AttributionIndex, corpus: FactCorpus) -> dict[str, Float[np.ndarray, "q n"]]:
    """Returns the scores of null queries of both kinds."""
    numbers = sample_row_numbers(len(corpus.documents), NULL_DOCUMENTS, seed=1)
    assert index.model.tokenizer is not None  # load_model always returns one
    texts = [corpus.documents[number].text for number in numbers]
    tokens = tokenize(index.model.tokenizer, texts, None)
    return {
        name: score_all(
            index, collect_null_rows(index.collector, tokens, BUDGET_TOKENS, endings_tried=endings)
        )
        for name, endings in (("any", 1), ("fitting", ENDINGS_TRIED))
    }


def auc(high: Float[np.ndarray, " q"], low: Float[np.ndarray, " q"]) -> float:
    """Returns the probability that a value of `high` is larger than a value of `low`."""
    ranks = np.argsort(np.argsort(np.concatenate([high, low])))
    return float((ranks[: len(high)].sum() - len(high) * (len(high) - 1) / 2) / len(high) / len(low))


def print_notices(index: AttributionIndex, corpus: FactCorpus, queries: Mapping[str, Texts]) -> None:
    """Prints how often the index claims an influence."""
    entry, texts = index.manifest.notice, {document.id: document.text for document in corpus.documents}
    assert entry is not None  # the index has enough rows
    answers = {kind: answer_queries(index, kind_texts) for kind, kind_texts in queries.items()}
    claims = {kind: [answer.notice is None for answer in answers[kind]] for kind in queries}
    rates = {kind: float(np.mean(kind_claims)) for kind, kind_claims in claims.items()}
    print(
        f"threshold {entry.threshold:.2f}, for {entry.false_alarms:.0%} false alarms of {entry.queries} queries"
    )
    print(f"  an influence is claimed: {rates[DRAWN]:.1%} of drawn, {rates[GENERATED]:.1%} of generated")
    print(f"  own queries with the notice: {1 - rates[OWN]:.1%}")
    best_states_value = [
        answer.query.completion in texts[answer.results[0].id]
        for answer in answers[GENERATED]
        if answer.notice is None and answer.results and answer.query.completion is not None
    ]
    if best_states_value:
        share = np.mean(best_states_value)
        print(f"  where it is claimed for generated, the best document states the same value: {share:.1%}")
    background = BackgroundSample.read(index.shards, index.manifest.rows, index.manifest.spec.gradients.seed)
    milliseconds = measure_background_ms(index, background)
    print(f"  percentiles: {milliseconds:.2f} ms a query, {len(background.offsets):,} rows")


def measure_background_ms(index: AttributionIndex, background: BackgroundSample) -> float:
    """Returns the median time of the scores of the background sample for one query."""
    profile = index.profiles["default"]
    shape = (1, len(index.collector.slices), background.blocks.shape[2])
    _, weights = profile.prepare_queries(torch.randn(shape))
    seconds = [
        measure_seconds(background.scores, profile, weights, index.visible()) for _ in range(TIMING_ROUNDS)
    ]
    return 1e3 * statistics.median(seconds)


def print_statistics(index: AttributionIndex, corpus: FactCorpus, queries: Mapping[str, Texts]) -> None:
    """Prints how well each statistic tells the queries of the corpus from the others."""
    scores = {kind: score_queries(index, texts) for kind, texts in queries.items()}
    scores |= score_null_queries(index, corpus)
    columns = "any: drawn | generated | missed | fitting: drawn | generated | missed"
    print(f"| statistic | AUC drawn | AUC generated | {columns} |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, statistic in STATISTICS.items():
        values = {kind: statistic(table) for kind, table in scores.items()}
        cells = [f"{auc(values[OWN], values[kind]):.3f}" for kind in (DRAWN, GENERATED)]
        for null_kind in ("any", "fitting"):
            threshold = np.quantile(values[null_kind], 1 - FALSE_ALARM_RATE)
            cells += [f"{np.mean(values[kind] > threshold):.1%}" for kind in (DRAWN, GENERATED)]
            cells.append(f"{np.mean(values[OWN] <= threshold):.1%}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    add_demo_options(parser)
    parser.add_argument(
        "--queries", type=int, default=800, help="prompts about people who are not in the corpus"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    demo = load_demo(options)
    queries = make_queries(demo.corpus, demo.model, options.queries)
    with tempfile.TemporaryDirectory() as directory:
        write_corpus(demo.corpus, directory)
        for number, (name, settings) in enumerate(KINDS.items()):
            index_path = Path(directory) / str(number)
            spec = BuildSpec(
                model=str(demo.model_path),
                dataset=DatasetSpec(path=f"{directory}/documents.jsonl"),
                columns=ColumnsSpec(id="id"),
                **settings,
            )
            build_index(spec, index_path)
            print(f"\n{name}")
            index = AttributionIndex.open(index_path)
            print_notices(index, demo.corpus, queries)
            print_statistics(index, demo.corpus, queries)


if __name__ == "__main__":
    main()
