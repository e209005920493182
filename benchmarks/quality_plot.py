"""Plots quality over bytes, for each kind of rows, from the numbers of `benchmarks.quality`.

    python -m benchmarks.quality_plot ~/.cache/bergson/benchmarks/quality/CASE.json docs/quality.svg

It needs matplotlib, which the extra [plots] installs.
"""

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.support.command_line import make_parser

LINES = {
    "kfac, not projected, row, all": "-",
    "kfac, float16, row, all": "-",
    "kfac, sign, block, all": "-",
    "kfac, sign, block, mlp": "-",
    "kfac, sign, block, down": "-",
    "adafactor, not projected, row, all": "--",
    "adafactor, float16, C, row, all": "--",
    "adafactor, sign, C, block, all": "--",
}
"""Name of a method without its p → style of its line."""


def collect_points(methods: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Returns the points (bytes of a row, thresholded LDS) of each line, by the name of its methods without p."""
    points: dict[str, list[tuple[int, float]]] = {}
    for name, measured in methods.items():
        kind = re.sub(r" p = \d+,", "", name)
        if kind in LINES and "lds_thresholded" in measured:
            points.setdefault(kind, []).append((measured["row_bytes"], measured["lds_thresholded"]["mean"]))
    return points


def main() -> None:
    """Writes the plot as SVG."""
    parser = make_parser(__doc__)
    parser.add_argument("numbers", type=Path, help="JSON file of a case")
    parser.add_argument("plot", type=Path, help="SVG file to write")
    options = parser.parse_args()
    import matplotlib as mpl  # pyright: ignore[reportMissingImports]

    mpl.use("svg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    mpl.rcParams |= {"svg.hashsalt": "bergson", "svg.fonttype": "none"}
    figure, axes = pyplot.subplots(figsize=(8, 5))
    results = json.loads(options.numbers.read_text())
    for kind, points in collect_points(results["methods"]).items():
        row_bytes, lds = zip(*sorted(points), strict=True)
        axes.plot(row_bytes, lds, LINES[kind], marker="s" if "sign" in kind else "o", label=kind)
    axes.axhline(
        results["methods"]["BM25"]["lds_thresholded"]["mean"], color="grey", linestyle=":", label="BM25"
    )
    axes.set_xscale("log")
    axes.set_xlabel("bytes of a document")
    axes.set_ylabel("linear datamodelling score, thresholded")
    axes.set_title(results["case"])
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(options.plot, metadata={"Date": None})


if __name__ == "__main__":
    main()
