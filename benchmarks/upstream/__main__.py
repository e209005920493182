"""Runs EleutherAI's bergson on cases: `python -m benchmarks.upstream [CASE ...] [--methods METHOD ...] [--output DIR]`.

    gradient_dot, gradient_cosine    inner products and cosines of whole gradients
    trackstar_p16, trackstar_p32     its TrackStar: unit norm, mixed autocorrelation; no second moments of an
                                     optimizer, which it reads from a checkpoint and which the cases do not keep
    trackstar_p16_unmixed, _p32_…    the same with the autocorrelation of the documents alone
    ekfac, ekfac_little_damping      EK-FAC with its default damping, and with that of our K-FAC
    shampoo                          Shampoo with corrected eigenvalues
    ekfac_cg                         EK-FAC refined with conjugate gradients, on the first queries
    magic                            MAGIC, on the first queries

Prints a table for each case. Tables of scores are kept in the data directory, and so is the environment that bergson
is installed into. Inner products are compared with plain autograd.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks.corpora.registry import default_cache
from benchmarks.models.cases import CASES, Case, load_case
from benchmarks.support.command_line import make_parser, parse_with_names
from benchmarks.upstream.agreement import largest_deviation
from benchmarks.upstream.environment import VERSION, Upstream, install_upstream
from benchmarks.upstream.methods import METHODS
from benchmarks.upstream.score_tables import make_scores, why_not
from bergson_core.errors import BergsonError

COLUMNS = "case | method | queries | seconds | CPU seconds | peak GiB"
INNER_PRODUCTS = "gradient_dot"
LARGEST_DEVIATION = 1e-3


def run_case(case: Case, upstream: Upstream, options: argparse.Namespace) -> list[str]:
    """Runs the chosen methods on a case, prints a row for each, and returns what has failed."""
    failed = []
    for name in options.methods:
        title = METHODS[name].title
        if reason := why_not(case, name):
            print(f"| {case.name} | {title} | none: {reason} | | | |", flush=True)
            continue
        try:
            table = make_scores(case, options.data_dir, name, upstream, options.queries)
        except BergsonError as error:
            failed.append(f"{case.name}, {name}: {error}")
            continue
        costs = f"{table.seconds:.0f} | {table.cpu_seconds:.0f} | {table.peak_gib:.1f}"
        counts = f"{len(table.scores)} of {len(case.queries)}"
        print(f"| {case.name} | {title} | {counts} | {costs} |", flush=True)
        deviation = largest_deviation(case, table) if name == INNER_PRODUCTS else 0
        if deviation > LARGEST_DEVIATION:
            failed.append(f"{case.name}: inner products are {deviation:.1e} away from autograd's")
        if options.output and len(table.scores) == len(case.queries):
            options.output.mkdir(parents=True, exist_ok=True)
            np.save(options.output / f"bergson {VERSION}, {title}.npy", table.scores)
    return failed


def main() -> None:
    """Runs the chosen methods on the chosen cases, or all; the exit status is 1 if one of them fails."""
    parser = make_parser(__doc__)
    parser.add_argument("--methods", nargs="+", metavar="METHOD", default=list(METHODS), choices=METHODS)
    parser.add_argument("--queries", type=int, help="take only the first queries")
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpora and of the trainings")
    parser.add_argument("--data_dir", type=Path, default=default_cache(), help="keeps all that is expensive")
    parser.add_argument(
        "--output", type=Path, help="directory for scores [q, n] of all queries, as TITLE.npy"
    )
    options = parse_with_names(parser, CASES, "case")
    failed = []
    upstream = install_upstream(options.data_dir)
    print(", ".join(f"{name} {version}" for name, version in upstream.versions.items()))
    print(f"\n| {COLUMNS} |\n|{'---|' * (COLUMNS.count('|') + 1)}")
    for name in options.names:
        try:
            case = load_case(name, options.data_dir, options.seed)
        except BergsonError as error:
            failed.append(f"{name}: {error}")
            continue
        failed += run_case(case, upstream, options)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
