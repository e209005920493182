"""Makes corpora and prints a table of them: `python -m benchmarks.corpora [NAME ...] [--seed 0] [--data_dir DIR]`.

Each corpus is saved in the data directory. Its tokens are those of a byte-level BPE tokenizer that is fitted to its
documents. "Copied" is the share of the queries whose completion stands word for word in a document.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.corpora.corpus import Corpus
from benchmarks.corpora.registry import CORPORA, VOCABULARY, default_cache
from benchmarks.support.command_line import make_parser, parse_with_names
from bergson_core.demo.training import fit_tokenizer
from bergson_core.errors import BergsonError

COLUMNS = "corpus | documents | tokens | mean | longest | queries | with gold | copied | sha256 | source"


def describe(corpus: Corpus) -> Sequence[str]:
    """Returns a row of the table."""
    texts = [document.text for document in corpus.documents]
    lengths = [len(ids) for ids in fit_tokenizer(texts, VOCABULARY)(texts)["input_ids"]]
    gold = corpus.gold_ids()
    copied = sum(any(query.completion.strip() in text for text in texts) for query in corpus.queries)
    numbers = (len(texts), sum(lengths), round(sum(lengths) / len(texts)), max(lengths), len(corpus.queries))
    return (
        corpus.name,
        *(f"{number:,}" for number in numbers),
        f"{sum(map(bool, gold.values())):,}",
        f"{copied / len(corpus.queries):.0%}",
        corpus.sha256()[:16],
        corpus.source,
    )


def main() -> None:
    """Makes the chosen corpora, or all; the exit status is 1 if one of them cannot be made."""
    parser = make_parser(__doc__)
    parser.add_argument("--seed", type=int, default=0, help="chooses documents, queries and wordings")
    parser.add_argument("--data_dir", type=Path, default=default_cache(), help="keeps corpora and downloads")
    options = parse_with_names(parser, CORPORA, "corpus")
    failed = []
    print(f"| {COLUMNS} |\n|{'---|' * (COLUMNS.count('|') + 1)}")
    for name in options.names:
        try:
            corpus = CORPORA[name](options.data_dir, options.seed)
        except BergsonError as error:
            failed.append(f"{name}: {error}")
            continue
        corpus.save(options.data_dir / "corpora")
        print(f"| {' | '.join(describe(corpus))} |", flush=True)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
