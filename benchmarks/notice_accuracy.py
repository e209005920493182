"""How often an answer claims an influence where a document is right, and how often it claims one for strangers.

    python -m benchmarks.notice_accuracy [CASE ...] [--queries 400] [--seed 0] [--alternatives] [--data_dir DIR]

An answer claims an influence unless it has the notice that no strong influence was found. `benchmarks.support.
notice_queries` says what is asked. Of the queries that a document is right for, those count whose best result is right:
the table has their share ("right"), how many of them are claimed, and in how many of the claims the best document has
the completion word for word ("stated"), with 95 % intervals (Wilson's).

With --alternatives it also prints what other ways to calibrate would claim: null queries made of two documents, or of
one; with these documents among the results or not; with the threshold at the 95th percentile, or extrapolated from the
middle. "Oracle" is the threshold that a
twentieth of the first kind of strangers exceed, for several statistics.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool

from benchmarks.corpora.registry import default_cache
from benchmarks.models.cases import Case, load_case
from benchmarks.support.command_line import make_parser, parse_with_names
from benchmarks.support.notice_alternatives import print_alternatives
from benchmarks.support.notice_queries import NOTICE_CASES, STRANGERS, NoticeQuery, make_notice_queries
from bergson_core import AttributionIndex, build_index
from bergson_core.errors import BergsonError
from bergson_core.schemas.build import BuildSpec, GradientSpec, ScoringSpec
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import Answer
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec

Z: Final = 1.96
KINDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "adafactor, float16, p = 16, C, row": {},
    "kfac, sign, p = 32, block": {
        "gradients": GradientSpec(normalizer="kfac", rows="sign", projection_dim=32),
        "scoring": ScoringSpec(normalize="block", preconditioner=False),
    },
}
QUERY_BATCH_SIZE: Final = 32


@dataclass(frozen=True)
class Claims:
    """What became of the queries of a kind.

    Attributes:
        counts: Which of them count: those whose best result is right, of strangers all.
        claimed: Which have no notice.
        stated: Whose best document has the completion word for word.
    """

    counts: Bool[np.ndarray, " q"]
    claimed: Bool[np.ndarray, " q"]
    stated: Bool[np.ndarray, " q"]

    def describe(self) -> tuple[str, str]:
        """Returns the share of claims among those that count, and the share of stated ones among the claims."""
        claims = self.claimed & self.counts
        return describe_share(self.claimed[self.counts]), describe_share(self.stated[claims])


def describe_share(values: Bool[np.ndarray, " q"]) -> str:
    """Returns the share of true values, with its interval, and how many values there are."""
    if len(values) == 0:
        return "none"
    low, high = wilson_interval(int(values.sum()), len(values))
    return f"{values.mean():.1%} [{low:.1%}, {high:.1%}] of {len(values)}"


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Returns the bounds of Wilson's 95 % interval of a proportion."""
    share, spread = successes / trials, Z * Z / trials
    middle = share + spread / 2
    half = Z * np.sqrt((share * (1 - share) + spread / 4) / trials)
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)


def build(case: Case, settings: Mapping[str, Any], directory: Path) -> AttributionIndex:
    """Builds an index of the documents of a case."""
    spec = BuildSpec(
        model=str(case.model_path),
        dataset=DatasetSpec(path=str(case.directory / "documents.jsonl")),
        columns=ColumnsSpec(id="id"),
        **settings,
    )
    build_index(spec, directory)
    return AttributionIndex.open(directory)


def ask(index: AttributionIndex, queries: Sequence[NoticeQuery]) -> Claims:
    """Returns what the index answers."""
    outcomes = []
    for start in range(0, len(queries), QUERY_BATCH_SIZE):
        batch = queries[start : start + QUERY_BATCH_SIZE]
        questions = [
            AttributionQuery(prompt=query.prompt, completion=query.completion, top_k=1) for query in batch
        ]
        for query, answer in zip(batch, index.attribute(questions), strict=True):
            assert isinstance(answer, Answer) and answer.results, answer
            best = answer.results[0]
            counts = not query.right or best.id in query.right
            outcomes.append((counts, answer.notice is None, query.completion.strip() in (best.prompt or "")))
    return Claims(*np.array(outcomes).T)


def measure(case: Case, queries: Mapping[str, Sequence[NoticeQuery]], *, alternatives: bool) -> None:
    """Prints a row of the table for each kind of rows, and then what other ways to calibrate would claim."""
    for name, settings in KINDS.items():
        with tempfile.TemporaryDirectory() as directory:
            index = build(case, settings, Path(directory) / "index")
            claims = {kind: ask(index, asked) for kind, asked in queries.items()}
            notice = index.manifest.notice
            assert notice is not None  # the index has enough rows
            for kind, outcome in claims.items():
                right = "" if kind in STRANGERS else f"{outcome.counts.mean():.1%}"
                cells = (case.name, name, f"{notice.threshold:.2f}", kind, right, *outcome.describe())
                print(f"| {' | '.join(cells)} |", flush=True)
            if alternatives:
                counts = {kind: outcome.counts for kind, outcome in claims.items()}
                print_alternatives(index, case, queries, counts)


def main() -> None:
    """Runs the benchmark; the exit status is 1 if one of the cases cannot be prepared."""
    parser = make_parser(__doc__)
    parser.add_argument("--queries", type=int, default=400, help="the most queries of a kind")
    parser.add_argument("--seed", type=int, default=0, help="seed of corpora, trainings and queries")
    parser.add_argument("--alternatives", action="store_true", help="print other ways to calibrate")
    parser.add_argument("--data_dir", type=Path, default=default_cache(), help="keeps corpora and models")
    options = parse_with_names(parser, NOTICE_CASES, "case")
    torch.set_num_threads(1)
    data_dir, failed = options.data_dir.expanduser().absolute(), []
    print("| case | rows | threshold | queries | right | claimed | stated |\n|---|---|---:|---|---:|---|---|")
    for name in options.names:
        try:
            case = load_case(name, data_dir, options.seed)
            queries = make_notice_queries(case, data_dir, options.seed, options.queries)
        except BergsonError as error:
            failed.append(f"{name}: {error}")
            continue
        measure(case, queries, alternatives=options.alternatives)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
