"""What it takes to rescore candidates by their whole gradients, and how often the first ten results change.

    python -m benchmarks.exact_scores [--rescore 50 200] [--queries 100] [--people 400] [--index DIR --texts FILE]

The queries are those of the demo's corpus. For another index, `--index` is its directory, and `--texts` a JSONL file
with the prompt and the completion of each query. "ms a candidate" is the time that rescoring takes, divided by the
candidates; "same ten" is the share of the ten results that are among the ten best by the scores of the index, and
"same first" the share of queries whose first result stays the first. "beyond" is the share of queries one of whose ten
results was not among the best half of the candidates: where it is large, more candidates would change more.
`--quick` asks 10 queries of a corpus of 40 people.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.support.command_line import make_parser
from benchmarks.support.demo_model import add_demo_options, load_demo
from bergson_core import AttributionIndex, build_index
from bergson_core.demo.synthetic_facts import write_corpus
from bergson_core.errors import BergsonError
from bergson_core.schemas.build import BuildSpec, GradientSpec, ScoringSpec
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import Answer
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec

Texts = Sequence[tuple[str, str]]
"""Prompt and completion of each query."""
KINDS: dict[str, dict[str, Any]] = {
    "adafactor, float16, p = 16, row": {},
    "kfac, sign, p = 32, block": {
        "gradients": GradientSpec(normalizer="kfac", rows="sign", projection_dim=32),
        "scoring": ScoringSpec(normalize="block", preconditioner=False),
    },
    "adam, float16, p = 16, row": {"gradients": GradientSpec(normalizer="adam")},
}
TOP_K = 10


def answer(index: AttributionIndex, prompt: str, completion: str, rescore: int | None, top_k: int) -> Answer:
    """Returns the answer to a query."""
    query = AttributionQuery(prompt=prompt, completion=completion, rescore=rescore, top_k=top_k, include=())
    (outcome,) = index.attribute([query])
    if isinstance(outcome, BergsonError):
        raise outcome
    return outcome


def print_changes(name: str, index: AttributionIndex, texts: Texts, rescore: int) -> None:
    """Prints a row of the table: what rescoring so many candidates takes and changes."""
    times, shared, same_first, beyond = [], [], [], []
    for prompt, completion in texts:
        plain = [row.id for row in answer(index, prompt, completion, None, rescore).results or ()]
        rescored = answer(index, prompt, completion, rescore, TOP_K)
        assert rescored.rescored is not None
        ids = [row.id for row in rescored.results or ()]
        times.append(rescored.timing_ms.rescore / rescored.rescored.candidates)
        shared.append(len({*ids} & {*plain[:TOP_K]}) / len(ids))
        same_first.append(ids[0] == plain[0])
        beyond.append(not {*ids} <= {*plain[: rescore // 2]})
    cells = (
        name,
        str(rescore),
        f"{statistics.median(times):.2f}",
        *(f"{100 * statistics.mean(values):.0f} %" for values in (shared, same_first, beyond)),
    )
    print(f"| {' | '.join(cells)} |", flush=True)


def iter_demo_indexes(options: Any) -> Iterator[tuple[str, AttributionIndex, Texts]]:
    """Yields indexes of the demo's corpus, of several kinds of rows, with its queries."""
    demo = load_demo(options)
    texts = [(query.prompt, query.completion) for query in demo.corpus.queries]
    with tempfile.TemporaryDirectory() as directory:
        write_corpus(demo.corpus, directory)
        for number, (name, settings) in enumerate(KINDS.items()):
            spec = BuildSpec(
                model=str(demo.model_path),
                dataset=DatasetSpec(path=f"{directory}/documents.jsonl"),
                columns=ColumnsSpec(id="id"),
                **settings,
            )
            build_index(spec, Path(directory) / str(number))
            yield name, AttributionIndex.open(Path(directory) / str(number)), texts


def read_texts(path: Path) -> Texts:
    """Returns the prompts and completions of a JSONL file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["prompt"], row["completion"]) for row in rows]


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    add_demo_options(parser)
    parser.add_argument("--rescore", type=int, nargs="+", default=[50, 200], help="numbers of candidates")
    parser.add_argument("--queries", type=int, default=100, help="queries of each index, the first ones")
    parser.add_argument("--index", type=Path, help="directory of an index to ask instead of the demo's")
    parser.add_argument("--texts", type=Path, help="JSONL file of the queries for this index")
    parser.add_argument("--quick", action="store_true", help="a small corpus and few queries")
    options = parser.parse_args()
    if (options.index is None) != (options.texts is None):
        parser.error("expected both --index and --texts, or neither")
    if options.quick:
        options.people, options.queries, options.rescore = 40, 10, [20]
    if options.index is None:
        indexes = iter_demo_indexes(options)
    else:
        indexes = iter(
            [(options.index.name, AttributionIndex.open(options.index), read_texts(options.texts))]
        )
    print("| index | candidates | ms a candidate | same ten | same first | beyond |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, index, texts in indexes:
        for rescore in options.rescore:
            print_changes(name, index, texts[: options.queries], rescore)


if __name__ == "__main__":
    main()
