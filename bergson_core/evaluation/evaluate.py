"""Measures an index: does it find what made the model say it, and what happens without that?

Legend: q queries, n documents, M training runs.

Every method is a table of scores [q, n], the index as well as what stands beside it, and all are measured in the same
way with the same queries, steps and training runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float

from bergson_core.attribution.index import AttributionIndex
from bergson_core.attribution.soft_threshold import soft_threshold
from bergson_core.attribution.unlearning import FIT_SAMPLE_SIZE, StepDirection, Unlearner
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.baselines import gradient_scores, representation_scores
from bergson_core.evaluation.ground_truth import IndexedDocuments, iterate_scores, query_tokens
from bergson_core.evaluation.metrics import (
    bm25_scores,
    bootstrap,
    check_runs,
    linear_datamodelling_score,
    retrieval,
)
from bergson_core.evaluation.queries import EvaluationQuery
from bergson_core.evaluation.retraining import (
    BuiltInTrainer,
    CommandTrainer,
    Trainer,
    check_command,
    losses_after_retraining,
    random_subsets,
)
from bergson_core.gradients.normalizer_fitting import sample_row_numbers
from bergson_core.models.loading import load_model
from bergson_core.schemas.evaluation import (
    Effect,
    Evaluation,
    EvaluationSpec,
    Interval,
    Measure,
    Measured,
    Retrieval,
)
from bergson_core.schemas.results import Progress

_MOST_SCORES: Final = 2**28
_DEPTH: Final = 100
"""Of the rankings that retrieval looks at."""

Told = Callable[[Progress], None]
Scores = Float[np.ndarray, "q n"]


def evaluate_index(
    index: AttributionIndex,
    queries: Sequence[EvaluationQuery],
    spec: EvaluationSpec | None = None,
    *,
    cache: str | Path | None = None,
    report: Told = lambda progress: None,
) -> Evaluation:
    """Measures `index` and the baselines with these queries; `cache` is where losses of training runs are kept.

    Raises `InvalidInput` for queries without gold documents where these are asked for, for a measure that trains where
    it is not said how, for training runs that fail, and for more scores than fit into memory.
    """
    return _Evaluator(index, list(queries), spec or EvaluationSpec(), cache, report).run()


class _Evaluator:
    def __init__(
        self,
        index: AttributionIndex,
        queries: list[EvaluationQuery],
        spec: EvaluationSpec,
        cache: str | Path | None,
        report: Told,
    ) -> None:
        if not queries:
            raise InvalidInput("there are no queries; expected at least one")
        self.index, self.queries, self.spec, self._report = index, queries, spec, report
        self.asked = query_tokens(index, queries)
        self.corpus = IndexedDocuments.of(index)
        if not self.corpus.ids:
            raise InvalidInput(f"all documents of {index.name} were taken down; expected at least one")
        if len(queries) * len(self.corpus.ids) > _MOST_SCORES:
            raise InvalidInput(
                f"{len(queries):,} queries × {len(self.corpus.ids):,} documents are more than {_MOST_SCORES:,} scores: "
                "take fewer queries"
            )
        self.gold = self.corpus.gold(queries, spec.gold)
        self.has_gold = spec.gold in index.manifest.spec.columns.metadata and all(self.gold.values())
        if self.asks("retrieval") and not self.has_gold:
            self._say_gold()
        if self.asks("lds"):
            check_runs(spec.training.runs)
        self._cache = Path(cache) if cache is not None else Path(".bergson-evaluation")
        self.trainer = self._trainer() if self.asks("lds", "removal") else None

    def run(self) -> Evaluation:
        scores = dict(self._scores())
        measured: dict[str, dict[str, Any]] = {name: {} for name in scores}
        learning_rate = None
        if self.asks("retrieval"):
            for name in scores.keys() - {"gold"}:
                measured[name]["retrieval"] = self._retrieval(scores[name])
        if self.asks("unlearning", "tail_patch"):
            sample = sample_row_numbers(len(self.corpus.ids), FIT_SAMPLE_SIZE, self.spec.seed)
            tokens = [self.corpus.tokens[k] for k in sample]
            unlearner = Unlearner.fit(self.index.model, tokens, self.spec.learning_rate)
            learning_rate = unlearner.learning_rate
            steps: dict[Measure, StepDirection] = {"unlearning": "unlearn", "tail_patch": "learn"}
            for measure, step in steps.items():
                if self.asks(measure):
                    for name, effect in self._effects(unlearner, scores, step, measure):
                        measured[name][measure] = effect
        if self.asks("lds"):
            for name, its in self._lds(scores):
                measured[name] |= its
        if self.asks("removal"):
            for name, rise in self._removal(scores):
                measured[name]["removal"] = rise
        return Evaluation(
            index=self.index.name,
            generation=self.index.manifest.generation,
            documents=len(self.corpus.ids),
            queries=len(self.queries),
            spec=self.spec,
            learning_rate=learning_rate,
            methods={name: Measured(**its) for name, its in measured.items()},
        )

    def asks(self, *measures: Measure) -> bool:
        return any(measure in self.spec.measures for measure in measures)

    def _say_gold(self) -> None:
        column, there = self.spec.gold, self.index.manifest.spec.columns.metadata
        if column not in there:
            raise InvalidInput(
                f"{self.index.name} has no metadata column {column!r} to tell right documents by; it has "
                f"{', '.join(there) or 'none'}. Build it with --metadata_column {column}, or leave retrieval out"
            )
        missing = next(query for query in self.queries if not self.gold[query.id])
        raise InvalidInput(
            f"query {missing.id!r} has no gold documents: none in the index has {column} = {missing.fact!r}"
        )

    # Scores

    def _scores(self) -> Iterator[tuple[str, Scores]]:
        """(name, scores) of each method."""
        wanted, shape = self.spec.baselines, (len(self.queries), len(self.corpus.ids))
        yield "index", self._of_index()
        if "random" in wanted:
            yield "random", np.random.default_rng(self.spec.seed).standard_normal(shape, dtype=np.float32)
        if "bm25" in wanted:
            texts = [query.prompt + query.completion for query in self.queries]
            yield "bm25", bm25_scores(self.corpus.texts, texts)
        if "gradient_dot" in wanted or "gradient_cosine" in wanted:
            modules = [module.name for module in self.index.manifest.modules]
            dots, cosines = gradient_scores(self.index.model, self.corpus.tokens, self.asked, modules)
            yield from (
                one for one in (("gradient_dot", dots), ("gradient_cosine", cosines)) if one[0] in wanted
            )
        if "representation" in wanted:
            yield "representation", representation_scores(self.index.model, self.corpus.tokens, self.asked)
        if self.has_gold:
            right = np.zeros(shape, dtype=np.float32)
            for row, query in zip(right, self.queries, strict=True):
                row[self.gold[query.id]] = 1
            yield "gold", right

    def _of_index(self) -> Scores:
        parts, done = [], 0
        for ids, scores in iterate_scores(self.index, self.queries):
            parts.append(scores)
            done += len(ids)
            self._tell("score", done, len(self.corpus.ids))
        return np.concatenate(parts, axis=1)

    # Measures

    def _retrieval(self, scores: Scores) -> Retrieval:
        best = _best(scores, _DEPTH)
        rankings = {
            query.id: [self.corpus.ids[number] for number in row]
            for query, row in zip(self.queries, best, strict=True)
        }
        gold = {name: [self.corpus.ids[number] for number in right] for name, right in self.gold.items()}
        return retrieval(rankings, gold)

    def _effects(
        self, unlearner: Unlearner, scores: Mapping[str, Scores], step: StepDirection, stage: str
    ) -> Iterator[tuple[str, Effect]]:
        """What a step on each method's best documents does, each document alone."""
        best = {name: _best(table, self._deep(name)) for name, table in scores.items()}
        wanted: dict[int, list[int]] = {}
        for rows in best.values():
            for query, row in enumerate(rows):
                for number in row:
                    wanted.setdefault(int(number), []).append(query)
        before = unlearner.log_probabilities(self.asked)
        after: dict[tuple[int, int], float] = {}
        for done, (number, asking) in enumerate(wanted.items(), start=1):
            asking = sorted(set(asking))
            with unlearner.after(self.corpus.tokens[number], step):
                found = unlearner.log_probabilities([self.asked[query] for query in asking])
            after |= {(number, query): float(one) for query, one in zip(asking, found, strict=True)}
            self._tell(stage, done, len(wanted))
        for name, rows in best.items():
            now = np.array([[after[int(number), query] for number in row] for query, row in enumerate(rows)])
            yield (
                name,
                Effect(
                    log_probability=self._interval((now - before[:, None]).mean(1)),
                    probability=self._interval((np.exp(now) - np.exp(before)[:, None]).mean(1)),
                ),
            )

    def _deep(self, method: str) -> int:
        """Of how many documents: of gold, as many as every query has."""
        return min(self.spec.top_k, *map(len, self.gold.values())) if method == "gold" else self.spec.top_k

    def _lds(self, scores: Mapping[str, Scores]) -> Iterator[tuple[str, dict[str, Interval]]]:
        training, seed = self.spec.training, self.spec.seed
        parts = random_subsets(len(self.corpus.ids), training.runs, training.share, seed)
        losses = self._losses(parts, [seed + 1 + number for number in range(training.runs)], "retrain")
        kept = np.array(parts)
        for name, table in scores.items():
            yield (
                name,
                {
                    "lds": linear_datamodelling_score(table, kept, losses, seed),
                    "lds_thresholded": linear_datamodelling_score(soft_threshold(table), kept, losses, seed),
                },
            )

    def _removal(self, scores: Mapping[str, Scores]) -> Iterator[tuple[str, Interval]]:
        """Rise of a query's loss without its best documents, against runs with all of them and the same seeds."""
        training, count = self.spec.training, len(self.corpus.ids)
        chosen = sample_row_numbers(len(self.queries), training.removal_queries, self.spec.seed)
        left_out = max(1, round(training.removal_share * count))
        seeds = [self.spec.seed + number for number in range(training.removal_repeats)]
        parts = [np.ones(count, dtype=bool)]
        for table in scores.values():
            for query in chosen:
                kept = np.ones(count, dtype=bool)
                kept[_best(table[query : query + 1], left_out)[0]] = False
                parts.append(kept)
        losses = self._losses(
            [part for part in parts for _ in seeds], [seed for _ in parts for seed in seeds], "remove"
        )
        mean = losses.reshape(len(parts), len(seeds), -1).mean(1)[:, chosen]
        rises = (mean[1:] - mean[0]).reshape(len(scores), len(chosen), len(chosen))
        for name, rise in zip(scores, rises, strict=True):
            yield name, self._interval(np.diagonal(rise))

    # Training

    def _trainer(self) -> Trainer:
        training, spec = self.spec.training, self.index.manifest.spec
        given = [training.command is not None, training.start is not None, training.scratch]
        if sum(given) != 1:
            raise InvalidInput(
                "lds and removal train the model again: expected one of a training command, a model to start from, or "
                f"scratch; got {sum(given) or 'none'}"
            )
        if training.command is not None:
            check_command(training.command)
            return CommandTrainer(training.command, self.corpus.rows)
        about = (self.corpus.tokens, training.schedule, training.scratch)
        if training.start is not None:
            return BuiltInTrainer(training.start, *about, load_model(training.start).sha256)
        return BuiltInTrainer(spec.model, *about, self.index.model.sha256, self.index.manifest.revision)

    def _losses(
        self,
        kept: Sequence[Bool[np.ndarray, " n"]],
        seeds: Sequence[int],
        stage: str,
    ) -> Float[np.ndarray, "M q"]:
        assert self.trainer is not None  # made where a measure trains
        return losses_after_retraining(
            self.trainer,
            kept,
            seeds,
            self.asked,
            self._cache,
            processes=self.spec.training.processes,
            told=lambda done, total: self._tell(stage, done, total, "runs"),
        )

    def _interval(self, values: Float[np.ndarray, " q"]) -> Interval:
        return bootstrap(values, self.spec.seed)

    def _tell(self, stage: str, done: int, total: int, unit: str = "documents") -> None:
        self._report(Progress(stage=stage, done=done, total=total, unit=unit))


def _best(scores: Scores, count: int) -> np.ndarray:
    """Numbers of the `count` best documents of each query, best first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]
