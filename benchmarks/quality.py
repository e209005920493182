"""What each choice finds on the demo's corpus: retrieval of the documents that state a fact, and bytes of a row.

    python -m benchmarks.quality [--projection_dims 8 16 32 64] [--people 400] [--data_dir ~/.cache/bergson/demo]

The model is the demo's (trained here where it is not there yet), and the rows go through the same code as an index:
fitted normalizers, projection, float16 or sign, preconditioner, normalisation. Scores are those of every document,
without a search in between. Sign rows keep only the signs of L G Rᵀ: the score is ⟨query block / its length, signs⟩,
summed over layers. C has p⁴ numbers a layer: at p = 64 it takes a minute and more a layer on two cores.
"""

import argparse
import itertools
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from bergson_core.batching import BUDGET_TOKENS, Tokens, batches, tokenize
from bergson_core.codecs import CODECS
from bergson_core.collect import RowCollector, collect_in_order
from bergson_core.demo_model import train_demo_model
from bergson_core.evaluate import Retrieval, bm25_rankings, random_rankings, retrieval
from bergson_core.facts import Corpus, make_corpus
from bergson_core.fitting import fit, sample_numbers
from bergson_core.layers import select
from bergson_core.mixing import matching_mixing
from bergson_core.models import LanguageModel, load_model
from bergson_core.preconditioners import Preconditioner, SecondMoment
from bergson_core.search import features
from bergson_core.specs import GradientSpec, Normalize, Normalizer, RowKind

DEPTH = 100
DAMPING = 0.1
NORMALIZERS: tuple[Normalizer, ...] = ("none", "adafactor", "adam", "kfac")


class Rows:
    """Rows of the documents (`raw`: before they were kept) and of the queries [., m, d] under one processor, and C^-½.

    `C` is of the documents, `C mixed` of them and the queries, by the rule of TrackStar, whose λ is `mixing`.
    """

    def __init__(
        self, model: LanguageModel, documents: list[Tokens], queries: list[Tokens], settings: GradientSpec
    ) -> None:
        sample = [
            documents[number]
            for number in sample_numbers(len(documents), settings.sample_size, settings.seed)
        ]
        processor = fit(model, select(model.model), batches(sample, BUDGET_TOKENS), settings)
        collector = RowCollector(model, processor)
        self.layers = len(collector.slices)

        def collect(tokens: list[Tokens]) -> Tensor:
            rows, _ = collect_in_order(collector, tokens, BUDGET_TOKENS)
            return torch.from_numpy(rows).reshape(len(tokens), self.layers, -1)

        self.queries = collect(queries)
        self.raw = collect(documents)
        self.documents = kept("float16", self.raw)
        of_documents, of_queries = second_moment(self.documents), second_moment(self.queries)
        self.mixing = matching_mixing(of_queries, of_documents)
        mixed = self.mixing * of_queries + (1 - self.mixing) * of_documents
        self.roots: dict[str, Preconditioner | None] = {
            "": None,
            ", C": Preconditioner.fit(of_documents, 1, DAMPING),
            ", C mixed": Preconditioner.fit(mixed, 1, DAMPING),
        }

    def scores(self, root: Preconditioner | None, normalize: Normalize) -> Tensor:
        """Scores [q, n] from float16 rows."""
        return scores(self.documents, self.queries, root, normalize)

    def sign_scores(self, root: Preconditioner | None) -> Tensor:
        """Scores [q, n] from one bit a number, where C^-½ goes before the sign."""
        asked, _ = features(self.queries, root, "block")
        signs = kept("sign", root.apply(self.documents) if root else self.documents)
        return asked @ signs.flatten(1).mT


def scores(documents: Tensor, queries: Tensor, root: Preconditioner | None, normalize: Normalize) -> Tensor:
    """Scores [q, n]."""
    return features(queries, root, normalize)[0] @ features(documents, root, normalize)[0].mT


def second_moment(rows: Tensor) -> Tensor:
    moment = SecondMoment(*rows.shape[1:])
    moment.add(rows)
    return moment.total.double() / len(rows)


def kept(kind: RowKind, rows: Tensor) -> Tensor:
    """Rows [n, m, d] as they come back from disk."""
    blocks, scales = CODECS[kind].encode(rows)
    return CODECS[kind].decode(blocks.numpy(), scales.numpy(), rows.shape[2])


def measure(scores: Tensor, corpus: Corpus) -> Retrieval:
    best = scores.topk(DEPTH, dim=1).indices.tolist()
    rankings = {
        query.id: [corpus.documents[k].id for k in row]
        for query, row in zip(corpus.queries, best, strict=True)
    }
    return retrieval(rankings, corpus.gold())


def line(name: str, size: str, found: Retrieval) -> str:
    return (
        f"| {name} | {size} | {found.mrr:.3f} | {found.recall_at_10:.3f} | {found.strict_recall_at_10:.3f} |"
    )


def arguments(description: str) -> argparse.ArgumentParser:
    """What the benchmarks on the demo's corpus take."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--projection_dims", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--normalizers", nargs="+", choices=NORMALIZERS, default=NORMALIZERS)
    parser.add_argument("--people", type=int, default=400)
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "bergson" / "demo",
    )
    return parser


def demo(options: argparse.Namespace) -> tuple[Corpus, LanguageModel, list[Tokens], list[Tokens]]:
    """(the corpus, the model that knows it, tokens of its documents, tokens of its queries)."""
    corpus = make_corpus(options.people, seed=0)
    directory = options.data_dir.expanduser() / f"people-{options.people}-seed-0" / "model"
    train_demo_model(corpus, directory)
    model = load_model(str(directory))
    assert model.tokenizer is not None  # load_model always gives one
    documents = tokenize(model.tokenizer, [document.text for document in corpus.documents], None)
    asked = corpus.queries
    queries = tokenize(model.tokenizer, [one.prompt for one in asked], [one.completion for one in asked])
    return corpus, model, documents, queries


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    corpus, model, documents, queries = demo(options)
    asked = corpus.queries

    print(f"{len(documents):,} documents, {len(queries):,} queries, the top {DEPTH} of each")
    print("| rows | bytes | MRR | Recall@10 | strict recall@10 |\n|---|---:|---:|---:|---:|")
    print(line("BM25", "", retrieval(bm25_rankings(corpus.documents, asked, DEPTH), corpus.gold())))
    print(line("random order", "", retrieval(random_rankings(corpus.documents, asked, DEPTH), corpus.gold())))
    for p, kind in itertools.product(options.projection_dims, options.normalizers):
        rows = Rows(model, documents, queries, GradientSpec(projection_dim=p, normalizer=kind))
        numbers = rows.layers * p * p
        print(f"p = {p}, {kind}: λ {rows.mixing:.2f}", file=sys.stderr)
        for with_c, root in rows.roots.items():
            for normalize in ("none", "row", "block"):
                name = f"p = {p}, {kind}, float16{with_c}, {normalize}"
                print(line(name, f"{2 * numbers:,}", measure(rows.scores(root, normalize), corpus)))
            name = f"p = {p}, {kind}, sign{with_c}"
            print(line(name, f"{numbers // 8:,}", measure(rows.sign_scores(root), corpus)), flush=True)


if __name__ == "__main__":
    main()
