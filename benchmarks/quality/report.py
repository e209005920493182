"""Writes what was measured of an experiment: a Markdown table, and a JSON file of every number and its interval.

Beside each measure of each method, it gives the quotient to whole gradients with K-FAC (`of_kfac`), and the difference
to BM25 (`over_bm25`), both on the same draws; and the differences of pairs of methods that differ in one choice.
"""

import json
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from benchmarks.quality.experiments import Experiment
from benchmarks.quality.interventions import REMOVAL, TAIL_PATCH, UNLEARNING
from benchmarks.quality.measures import ANTI, ANTI_LAST, LDS, LDS_THRESHOLDED, MRR, RECALL, Measured
from benchmarks.quality.methods import BM25, REFERENCE, Method
from benchmarks.quality.paired_bootstrap import Resampled
from benchmarks.quality.rescoring import FIRST_KEPT
from bergson_core.utils.atomic_files import write_atomically
from bergson_core.version import __version__

COLUMNS: Final[Mapping[str, str]] = {
    LDS: "LDS",
    LDS_THRESHOLDED: "LDS, thresholded",
    MRR: "MRR",
    RECALL: "Recall@10",
    ANTI: "anti in first 10",
    ANTI_LAST: "anti in last 10",
    FIRST_KEPT: "first 10 kept",
    REMOVAL: "removal, nats",
    TAIL_PATCH: "tail-patch, nats",
    UNLEARNING: "unlearning, nats",
}
"""Name of a measure → heading of its column."""
BUDGETS: Final = (256, 512, 1024, 2048, 4096, 8192, 16384)
"""Bytes of a document that the best rows are chosen for."""
CHOICES: Final = (
    (", row, ", ", block, "),
    (", mlp", ", all"),
    (", down", ", all"),
    (", block by agreement, ", ", block, "),
    (", block by shrunk, ", ", block, "),
    (", sign, ", ", float16, "),
    (", bits2, ", ", sign, "),
    (", C, ", ", "),
)
"""Pairs of choices that are compared, where two methods differ in nothing else."""


@dataclass
class Results:
    """What was measured of an experiment so far.

    Attributes:
        experiment: The experiment.
        methods: The methods without their scores, in the order in which they were measured.
        measured: What was measured of each method.
        seconds: Seconds of each part.
    """

    experiment: Experiment
    methods: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    measured: dict[str, dict[str, Resampled]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, method: Method, measured: Measured) -> None:
        """Adds what was measured of a method."""
        self.methods[method.name] = method.group, method.row_bytes
        self.measured[method.name] = dict(measured)

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Writes the table and the JSON file, and returns their paths."""
        directory.mkdir(parents=True, exist_ok=True)
        name = self.experiment.case.name
        markdown, numbers = directory / f"{name}.md", directory / f"{name}.json"
        write_atomically(markdown, self.markdown().encode())
        write_atomically(numbers, (json.dumps(self.as_json(), indent=1) + "\n").encode())
        return markdown, numbers

    def as_json(self) -> dict[str, Any]:
        """Returns everything as JSON; a number that is not finite is null."""
        return {
            **describe_experiment(self.experiment),
            "seconds": {part: round(seconds, 1) for part, seconds in self.seconds.items()},
            "methods": {
                name: {"group": group, "row_bytes": size, **self._numbers(name)}
                for name, (group, size) in self.methods.items()
            },
            "comparisons": [
                {"method": name, "beside": other, "measure": measure, **_as_json(difference)}
                for name, other, measure, difference in self.iter_comparisons()
            ],
        }

    def iter_comparisons(self) -> Iterator[tuple[str, str, str, Resampled]]:
        """Yields (method, other method, measure, difference) of methods that differ in one choice."""
        for new, old in CHOICES:
            for name in self.methods:
                other = name.replace(new, old)
                if other == name or other not in self.measured:
                    continue
                for measure in (LDS, LDS_THRESHOLDED, MRR):
                    if measure in self.measured[name] and measure in self.measured[other]:
                        difference = self.measured[name][measure] - self.measured[other][measure]
                        yield name, other, measure, difference

    def markdown(self) -> str:
        """Returns the tables of methods by group, and that of comparisons."""
        facts = describe_experiment(self.experiment)
        corpus, model = facts["corpus"], facts["model"]
        lines = [
            f"# {facts['case']}",
            "",
            f"{corpus['documents']:,} documents and {corpus['queries']:,} queries of {corpus['name']} "
            f"({corpus['source']}, sha256 {corpus['sha256'][:16]}); {model['kind']} of {model['parameters']:,} "
            f"parameters (sha256 {model['sha256'][:16]}), loss of the queries {model['query_loss']:.2f} nats a token; "
            f"{facts['runs']} models trained again on halves; seed {facts['seed']}. {facts['machine']}, "
            f"{facts['date']}, {sum(self.seconds.values()):.0f} s. ± is half of the 95 % interval.",
        ]
        measures = [
            measure for measure in COLUMNS if any(measure in found for found in self.measured.values())
        ]
        for group in dict.fromkeys(group for group, _ in self.methods.values()):
            lines += ["", f"## {group.capitalize()}", "", *self._table(group, measures)]
        lines += [
            "",
            "## Best rows within so many bytes, chosen on this corpus",
            "",
            *self._best_within_budgets(),
        ]
        lines += [
            "",
            "## Differences",
            "",
            "| method | beside | measure | difference |",
            "|---|---|---|---:|",
        ]
        lines += [
            f"| {name} | {other} | {COLUMNS[measure]} | {bracketed(difference)} |"
            for name, other, measure, difference in self.iter_comparisons()
        ]
        return "\n".join(lines) + "\n"

    def _best_within_budgets(self) -> Iterator[str]:
        yield "| at most | method | bytes | LDS, thresholded | of whole kfac | over BM25 |"
        yield "|---:|---|---:|---:|---:|---:|"
        for budget in BUDGETS:
            affordable = [
                name
                for name, (_, size) in self.methods.items()
                if size is not None and size <= budget and self._has(name, LDS_THRESHOLDED)
            ]
            if not affordable:
                continue
            best = max(affordable, key=lambda name: self.measured[name][LDS_THRESHOLDED].value)
            cells = (
                f"{budget:,}",
                best,
                f"{self.methods[best][1]:,}",
                plus_minus(self.measured[best][LDS_THRESHOLDED]),
                self._beside(best, REFERENCE, LDS_THRESHOLDED, Resampled.__truediv__),
                self._beside(best, BM25, LDS_THRESHOLDED, Resampled.__sub__),
            )
            yield f"| {' | '.join(cells)} |"

    def _table(self, group: str, measures: list[str]) -> Iterator[str]:
        headings = [COLUMNS[measure] for measure in measures]
        relative = LDS_THRESHOLDED if LDS_THRESHOLDED in measures else MRR
        headings += [f"{COLUMNS[relative]} of whole kfac", f"{COLUMNS[relative]} over BM25"]
        headings += ["removal of BM25"] if REMOVAL in measures else []
        yield f"| method | bytes | {' | '.join(headings)} |"
        yield f"|---|{'---:|' * (len(headings) + 1)}"
        for name, (own_group, size) in self.methods.items():
            if own_group != group:
                continue
            measured = self.measured[name]
            cells = ["" if size is None else f"{size:,}"]
            cells += [plus_minus(measured[key]) if key in measured else "" for key in measures]
            cells.append(self._beside(name, REFERENCE, relative, Resampled.__truediv__))
            cells.append(self._beside(name, BM25, relative, Resampled.__sub__))
            if REMOVAL in measures:
                cells.append(self._beside(name, BM25, REMOVAL, Resampled.__truediv__))
            yield f"| {name} | {' | '.join(cells)} |"

    def _beside(
        self, name: str, other: str, measure: str, compare: Callable[[Resampled, Resampled], Resampled]
    ) -> str:
        """Returns the cell that compares a method with another one, empty if one of them was not measured."""
        if not self._has(name, measure) or not self._has(other, measure):
            return ""
        return bracketed(compare(self.measured[name][measure], self.measured[other][measure]))

    def _numbers(self, name: str) -> dict[str, Any]:
        numbers: dict[str, Any] = {}
        for measure, resampled in self.measured[name].items():
            numbers[measure] = _as_json(resampled)
            if self._has(REFERENCE, measure):
                numbers[measure]["of_kfac"] = _as_json(resampled / self.measured[REFERENCE][measure])
            if self._has(BM25, measure):
                numbers[measure]["over_bm25"] = _as_json(resampled - self.measured[BM25][measure])
                numbers[measure]["of_bm25"] = _as_json(resampled / self.measured[BM25][measure])
        return numbers

    def _has(self, method: str, measure: str) -> bool:
        return measure in self.measured.get(method, {})


def describe_experiment(experiment: Experiment) -> dict[str, Any]:
    """Returns what the numbers of an experiment depend on."""
    case = experiment.case
    return {
        "case": case.name,
        "quick": experiment.settings.quick,
        "corpus": {
            "name": case.corpus.name,
            "source": case.corpus.source,
            "sha256": case.corpus.sha256(),
            "documents": len(case.documents),
            "queries": len(case.queries),
        },
        "model": {
            "kind": case.kind,
            "sha256": case.model.sha256,
            "parameters": case.model.parameter_count,
            "query_loss": experiment.query_loss(),
        },
        "runs": len(experiment.losses),
        "seed": experiment.settings.seed,
        "versions": {
            "bergson-service": __version__,
            **{name: version(name) for name in ("torch", "transformers", "numpy", "bm25s", "tokenizers")},
            "python": platform.python_version(),
        },
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def _processor() -> str:
    """Returns the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _as_json(resampled: Resampled) -> dict[str, Any]:
    return {
        name: value if math.isfinite(value) else None for name, value in asdict(resampled.interval()).items()
    }


def plus_minus(resampled: Resampled) -> str:
    """Returns a number and half of its interval, as a cell of a table."""
    interval = resampled.interval()
    return f"{interval.mean:.3f} ±{(interval.high - interval.low) / 2:.3f}"


def bracketed(resampled: Resampled) -> str:
    """Returns a number and its interval, as a cell of a table."""
    interval = resampled.interval()
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
