"""How often an answer claims an influence that is not there, and how often it misses one, on the demo's corpus.

    python -m benchmarks.notice [--queries 800] [--people 400] [--data_dir ~/.cache/bergson/demo]

Asked are the corpus' own queries, and prompts about people who are not in it: names of the same pools in the same
wordings, with a value drawn at random or with what the model says itself. First the index's own notice, then other
statistics of a query's scores, each with the threshold that five in a hundred made-up queries lie above: halves of two
documents drawn at random, and of two that fit (`bergson_core.search.significance`). AUC is the chance that one of the corpus' own
queries has the higher value.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality import arguments, demo, home
from bergson_core import AttributionIndex, build_index
from bergson_core.data.batching import BUDGET_TOKENS, Tokens, tokenize
from bergson_core.demo.synthetic_facts import ATTRIBUTES, FIRST_NAMES, LAST_NAMES, FactCorpus, write_corpus
from bergson_core.gradients.normalizer_fitting import sample_row_numbers
from bergson_core.gradients.row_collector import collect_rows
from bergson_core.models.generation import generate_completion
from bergson_core.models.language_model import LanguageModel
from bergson_core.schemas.build import BuildSpec, ColumnsSpec, DatasetSpec, GradientSpec, ScoringSpec
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import Answer
from bergson_core.search import significance

Asked = list[tuple[str, str]]
KINDS: dict[str, dict[str, Any]] = {
    "adafactor, float16, p = 16, row": {},
    "kfac, sign, p = 32, block": {
        "gradients": GradientSpec(normalizer="kfac", rows="sign", projection_dim=32),
        "scoring": ScoringSpec(normalize="block", preconditioner=False),
    },
}


def above(scores: np.ndarray, share: float) -> np.ndarray:
    """Height of the best score over the median, in units of that of the quantile `share`."""
    middle, high = np.quantile(scores, (0.5, share), axis=1)
    return (scores.max(1) - middle) / (high - middle)


def robust_z(scores: np.ndarray) -> np.ndarray:
    middle = np.median(scores, axis=1, keepdims=True)
    return ((scores - middle) / np.median(np.abs(scores - middle), axis=1, keepdims=True)).max(1)


def hill(scores: np.ndarray) -> np.ndarray:
    """Hill's estimate of the tail's index from the 50 best."""
    best = np.log(-np.partition(-scores, 50, axis=1)[:, :51].clip(max=-1e-9))
    return best.mean(1) - best.min(1)


STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "prominence": lambda scores: above(scores, 0.99),
    "the same by the 99.9th percentile": lambda scores: above(scores, 0.999),
    "best score": lambda scores: scores.max(1),
    "robust z of the best": robust_z,
    "best / tenth best": lambda scores: scores.max(1) / np.sort(scores, axis=1)[:, -10],
    "third best / tenth best": lambda scores: np.sort(scores, 1)[:, -3] / np.sort(scores, 1)[:, -10],
    "Hill's index of the 50 best": hill,
    "best / -lowest": lambda scores: -scores.max(1) / scores.min(1),
}


def populations(corpus: FactCorpus, model: LanguageModel, count: int) -> dict[str, Asked]:
    """Prompt and completion of each query."""
    rng, known = random.Random(1), {document.metadata["person"] for document in corpus.documents}
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    strangers = [name for name in names if name not in known]
    drawn, said = [], []
    for _ in range(count):
        attribute = rng.choice(list(ATTRIBUTES.values()))
        template = rng.choice(attribute.templates)
        prompt = template.removesuffix(" {value}.").format(person=rng.choice(strangers))
        drawn.append((prompt, f" {rng.choice(attribute.values)}"))
        said.append((prompt, generate_completion(model, prompt, 8).split(".")[0]))
    own = [(query.prompt, query.completion) for query in corpus.queries]
    return {"own": own, "drawn": drawn, "said": said}


def answers(index: AttributionIndex, asked: Asked) -> list[Answer]:
    queries = [AttributionQuery(index="facts", prompt=one, completion=other, top_k=1) for one, other in asked]
    found = [one for k in range(0, len(queries), 32) for one in index.attribute(queries[k : k + 32])]
    assert all(isinstance(one, Answer) for one in found)
    return found  # type: ignore[return-value]


def scores(index: AttributionIndex, rows: torch.Tensor) -> np.ndarray:
    """[q, n], of every document."""
    profile = index.profiles["default"]
    _, weights = profile.prepare_queries(rows.reshape(len(rows), len(index.collector.slices), -1))
    parts = [
        profile.scores(number, shard, slice(0, shard.entry.rows), weights.flatten(1).mT)
        for number, shard in enumerate(index.shards)
    ]
    return torch.cat(parts).mT.numpy()


def made_up(index: AttributionIndex, corpus: FactCorpus) -> dict[str, np.ndarray]:
    """Scores of queries that are joined of halves: of such as fit, and of any."""
    numbers = sample_row_numbers(len(corpus.documents), 256, seed=1)
    assert index.model.tokenizer is not None  # load_model always gives one
    tokens = tokenize(index.model.tokenizer, [corpus.documents[k].text for k in numbers], None)
    return {
        name: scores(
            index,
            significance.collect_null_rows(index.collector, tokens, BUDGET_TOKENS, endings_tried=choices),
        )
        for name, choices in (("any", 1), ("fit", significance.ENDINGS_TRIED))
    }


def auc(high: np.ndarray, low: np.ndarray) -> float:
    ranks = np.argsort(np.argsort(np.concatenate([high, low])))
    return float((ranks[: len(high)].sum() - len(high) * (len(high) - 1) / 2) / len(high) / len(low))


def tell(index: AttributionIndex, corpus: FactCorpus, asked: dict[str, Asked]) -> None:
    """Prints the notices of an index, then what other statistics would have said."""
    entry, texts = index.manifest.notice, {one.id: one.text for one in corpus.documents}
    assert entry is not None  # there are rows enough
    found = {name: answers(index, some) for name, some in asked.items()}
    silent = {name: [one.notice is None for one in some] for name, some in found.items()}
    print(
        f"threshold {entry.threshold:.2f}, for a false-alarm rate of {entry.false_alarms:.0%} of {entry.queries}"
    )
    print(
        f"  an influence claimed: {np.mean(silent['drawn']):.1%} of drawn, {np.mean(silent['said']):.1%} of said"
    )
    print(f"  own queries with the notice: {1 - np.mean(silent['own']):.1%}")
    claimed = [one for one, quiet in zip(found["said"], silent["said"], strict=True) if quiet]
    stated = [one.query.completion in texts[one.results[0].id] for one in claimed if one.results]
    print(f"  of what is claimed for said, the best document states the same value: {np.mean(stated):.1%}")
    print(
        f"  percentiles: {sampled_ms(index):.2f} ms a query, {len(index.searcher.background.offsets):,} rows"
    )
    assert index.model.tokenizer is not None  # load_model always gives one
    values = {}
    for name, some in asked.items():
        tokens = tokenize(index.model.tokenizer, *map(list, zip(*some, strict=True)))
        values[name] = scores(index, collected(index, tokens))
    values |= made_up(index, corpus)
    print("| statistic | AUC drawn | AUC said | any: drawn | said | missed | fit: drawn | said | missed |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, of in STATISTICS.items():
        value = {which: of(some) for which, some in values.items()}
        cells = [f"{auc(value['own'], value[which]):.3f}" for which in ("drawn", "said")]
        for null in ("any", "fit"):
            least = np.quantile(value[null], 1 - significance.FALSE_ALARM_RATE)
            cells += [f"{np.mean(value[which] > least):.1%}" for which in ("drawn", "said")]
            cells.append(f"{np.mean(value['own'] <= least):.1%}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def collected(index: AttributionIndex, tokens: Sequence[Tokens]) -> torch.Tensor:
    return torch.from_numpy(collect_rows(index.collector, tokens, BUDGET_TOKENS)[0])


def sampled_ms(index: AttributionIndex, rounds: int = 50) -> float:
    """Median time of the scores of the sampled rows for one query."""
    profile, sampled, taken = index.profiles["default"], index.searcher.background, []
    _, weights = profile.prepare_queries(torch.randn(1, len(index.collector.slices), sampled.blocks.shape[2]))
    for _ in range(rounds):
        started = time.perf_counter()
        sampled.scores(profile, weights, index.visible())
        taken.append(1e3 * (time.perf_counter() - started))
    return statistics.median(taken)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--queries", type=int, default=800, help="prompts about people who are not there")
    options: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(1)
    corpus, model, _, _ = demo(options)
    path = home(options) / "model"
    asked = populations(corpus, model, options.queries)
    with tempfile.TemporaryDirectory() as directory:
        write_corpus(corpus, directory)
        for number, (name, settings) in enumerate(KINDS.items()):
            spec = BuildSpec(
                model=str(path),
                dataset=DatasetSpec(path=f"{directory}/documents.jsonl"),
                columns=ColumnsSpec(id="id"),
                **settings,
            )
            build_index(spec, Path(directory) / str(number))
            print(f"\n{name}")
            tell(AttributionIndex.open(Path(directory) / str(number)), corpus, asked)


if __name__ == "__main__":
    main()
