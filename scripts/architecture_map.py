"""Draws docs/architecture.svg: the folders in the order of their imports, and the ways of a build and of a query.

Folders, their order and their sentences come from the code: from the import-linter contracts in pyproject.toml and from
the first line of each folder's `__init__.py`. Each stop on a way names a function and the stop that calls it; that the
function exists and that its caller imports it is checked. So the picture cannot go stale.
"""

import ast
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

import grimp

ROOT: Final = Path(__file__).parent.parent
PACKAGES: Final = ("service", "worker", "bergson_core")


@dataclass(frozen=True)
class Stop:
    """A function on a way.

    `caller` is the number of the stop that calls it, by default the stop before. It is 0 where a message in Redis or an
    interface leads there, and no import.
    """

    function: str
    label: str
    caller: int | None = None


@dataclass(frozen=True)
class Way:
    """What a request does, from its route to the disk."""

    title: str
    colour: str
    stops: tuple[Stop, ...]


@dataclass(frozen=True)
class Folder:
    """A folder of a package, with the first sentence of its docstring."""

    package: str
    name: str
    sentence: str

    @property
    def module(self) -> str:
        return f"{self.package}.{self.name}"


WAYS: Final = (
    Way(
        "A build: POST /index",
        "#1d4ed8",
        (
            Stop("service.routes.indexes.build_index", "body checked"),
            Stop("service.queue.jobs.JobBroker.submit", "job queued in Redis"),
            Stop("worker.queue.job_queue.WorkerQueue.take_job", "job leased", caller=0),
            Stop("worker.process.job_handlers.run_build", "paths checked", caller=0),
            Stop("bergson_core.indexing.build.build_index", "stages in order"),
            Stop("bergson_core.models.loading.load_model", "safetensors loaded", caller=5),
            Stop("bergson_core.data.documents.load_documents", "documents read", caller=5),
            Stop("bergson_core.gradients.processor_fitting.fit_normalizers", "statistics", caller=5),
            Stop("bergson_core.gradients.row_collector.RowCollector.collect", "rows projected", caller=5),
            Stop("bergson_core.shards.shard_writer.ShardWriter.write", "shards written", caller=5),
            Stop("bergson_core.search.measuring.recall.measure_recall", "recall measured", caller=5),
            Stop("bergson_core.indexing.publish.publish_index", "manifest renamed", caller=5),
        ),
    ),
    Way(
        "A query: POST /attribute",
        "#c2410c",
        (
            Stop("service.routes.attribute.attribute", "body checked"),
            Stop("service.http.query_handler.QueryHandler.answer", "key, cache"),
            Stop("service.queue.broker.Broker.ask", "query queued in Redis"),
            Stop("worker.queue.query_queue.QueryQueue.take", "micro-batch taken", caller=0),
            Stop("worker.process.query_loop.QueryLoop.run_once", "index in memory", caller=0),
            Stop("bergson_core.attribution.answering.QueryAnswerer.answer", "tokenised"),
            Stop("bergson_core.gradients.row_collector.collect_rows", "one backward pass", caller=6),
            Stop("bergson_core.search.local_searcher.LocalSearcher.search", "candidates found", caller=0),
            Stop("bergson_core.search.exact_scores.ExactScorer.module_scores", "exact scores"),
            Stop("bergson_core.storage.document_table.read_document", "texts of the best", caller=8),
        ),
    ),
)


def folders() -> dict[str, list[list[Folder]]]:
    """Returns, for each package, the rows of its folders from the top of the imports to the bottom."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = {
        contract["containers"][0]: contract["layers"] for contract in contracts if contract.get("containers")
    }
    return {
        package: [
            row
            for layer in layers[package]
            if (row := [_folder(package, name) for name in _names(layer) if (ROOT / package / name).is_dir()])
        ]
        for package in PACKAGES
    }


def single_files(package: str) -> list[str]:
    """Returns the names of the files that lie in the package itself."""
    return sorted(path.name for path in (ROOT / package).glob("*.py") if path.stem != "__init__")


def folder_tables() -> str:
    """Returns the tables of folders that CONTRIBUTING.md shows, in Markdown."""
    lines: list[str] = []
    for package, rows in folders().items():
        docstring = _docstring(ROOT / package / "__init__.py")
        lines += [f"**`{package}/`** {docstring}", "", "| folder or file | what is in it |", "|---|---|"]
        lines += [f"| `{folder.name}/` | {folder.sentence} |" for row in rows for folder in row]
        lines += [f"| `{name}` | {_docstring(ROOT / package / name)} |" for name in single_files(package)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def architecture_svg() -> str:
    """Returns the picture. Raises ValueError where a way names what the code does not have."""
    imports = grimp.build_graph(*PACKAGES, cache_dir=None)
    for way in WAYS:
        _check(way, imports)
    return _Drawing(folders()).svg()


def _names(layer: str) -> list[str]:
    return [name.strip() for name in layer.split("|")]


def _folder(package: str, name: str) -> Folder:
    return Folder(package, name, _docstring(ROOT / package / name / "__init__.py"))


def _docstring(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    if not docstring:
        raise ValueError(f"{path} has no docstring; expected a sentence on what its files have in common")
    return docstring.partition("\n")[0]


def _check(way: Way, imports: grimp.ImportGraph) -> None:
    modules = [_module_of(stop.function) for stop in way.stops]
    for number, (stop, module) in enumerate(zip(way.stops, modules, strict=True), start=1):
        caller = number - 1 if stop.caller is None else stop.caller
        if caller and not imports.chain_exists(modules[caller - 1], module):
            raise ValueError(
                f"{way.title}: {modules[caller - 1]} does not import {module}, which has {stop.label!r}"
            )


def _module_of(function: str) -> str:
    """Returns the module that defines a function or method. Raises ValueError where there is none."""
    parts = function.split(".")
    for length in range(len(parts) - 1, 0, -1):
        path = ROOT.joinpath(*parts[:length]).with_suffix(".py")
        if path.is_file():
            if not _defines(ast.parse(path.read_text("utf-8")).body, parts[length:]):
                break
            return ".".join(parts[:length])
    raise ValueError(
        f"there is no {function}; the ways in scripts/architecture_map.py name functions of the code"
    )


def _defines(body: Sequence[ast.stmt], names: Sequence[str]) -> bool:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == names[0]:
            return len(names) == 1 or _defines(node.body, names[1:])
    return False


class _Drawing:
    """The picture: a column of folders, and beside it a line for each way with its stops."""

    width, margin, box_width = 1180, 24, 500
    way_left, way_width = 572, 288

    def __init__(self, packages: dict[str, list[list[Folder]]]) -> None:
        self._parts: list[str] = []
        self._middle: dict[str, float] = {}
        """Vertical middle of each folder, by module."""
        self._height = self._place(packages)
        for number, way in enumerate(WAYS):
            self._draw_way(way, self.way_left + number * self.way_width)

    def svg(self) -> str:
        style = (
            "text{font-family:ui-sans-serif,system-ui,'DejaVu Sans',sans-serif;font-size:12px;fill:#1f2937}"
            ".name{font-weight:700;font-size:13px}.package{font-weight:700;font-size:15px}"
            ".sentence{fill:#4b5563;font-size:11px}.way{font-weight:700;font-size:13px}.number{fill:#fff;font-size:10px;"
            "font-weight:700;text-anchor:middle}"
        )
        title = "The folders in the order of their imports, and the ways of a build and of a query"
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self._height:g}" role="img">',
                f"<title>{title}</title>",
                f"<style>{style}</style>",
                f'<rect width="{self.width}" height="{self._height:g}" fill="#fff"/>',
                *self._parts,
                "</svg>\n",
            ]
        )

    def _place(self, packages: dict[str, list[list[Folder]]]) -> float:
        """Draws packages and folders from the top down; returns where they end."""
        y: float = self.margin + 34
        for package, rows in packages.items():
            top = y
            y += 30
            boxes: list[str] = []
            for row in rows:
                height = max(self._box_height(folder, len(row)) for folder in row)
                width = (self.box_width - 8 * (len(row) - 1)) / len(row)
                for place, folder in enumerate(row):
                    left = self.margin + 12 + place * (width + 8)
                    boxes += self._box(folder, left, y, width, height)
                    self._middle[folder.module] = y + height / 2
                y += height + 7
            y += 12
            boxes.append(
                f'<text class="sentence" x="{self.margin + 21}" y="{y:g}">{", ".join(single_files(package))}</text>'
            )
            y += 10
            label = escape(f"{package}/")
            self._parts += [
                f'<rect x="{self.margin}" y="{top:g}" width="{self.width - 2 * self.margin}" height="{y - top:g}" '
                'rx="8" fill="#f8fafc" stroke="#cbd5e1"/>',
                f'<text class="package" x="{self.margin + 12}" y="{top + 20:g}">{label}</text>',
                *boxes,
            ]
            y += 14
        return y + 10

    def _lines(self, folder: Folder, neighbours: int) -> list[str]:
        return textwrap.wrap(folder.sentence.replace("`", ""), 80 // neighbours)

    def _box_height(self, folder: Folder, neighbours: int) -> float:
        return 24 + 14 * len(self._lines(folder, neighbours)) + 4

    def _box(self, folder: Folder, left: float, top: float, width: float, height: float) -> Iterator[str]:
        neighbours = round(self.box_width / width)
        yield (
            f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="5" fill="#fff" '
            'stroke="#94a3b8"/>'
        )
        yield f'<text class="name" x="{left + 9:g}" y="{top + 17:g}">{escape(folder.name)}/</text>'
        for number, line in enumerate(self._lines(folder, neighbours)):
            yield f'<text class="sentence" x="{left + 9:g}" y="{top + 33 + 14 * number:g}">{escape(line)}</text>'

    def _draw_way(self, way: Way, left: float) -> None:
        places = self._stop_places(way)
        self._parts.append(
            f'<text class="way" x="{left - 8:g}" y="{self.margin + 14}" style="fill:{way.colour}">'
            f"{escape(way.title)}</text>"
        )
        points = " ".join(f"{left:g},{y:g}" for y in sorted(places))
        self._parts.append(
            f'<polyline points="{points}" fill="none" stroke="{way.colour}" stroke-width="3" stroke-linecap="round"/>'
        )
        for number, (stop, y) in enumerate(zip(way.stops, places, strict=True), start=1):
            function = stop.function.rpartition(".")[2]
            self._parts += [
                f'<circle cx="{left:g}" cy="{y:g}" r="9" fill="{way.colour}"/>',
                f'<text class="number" x="{left:g}" y="{y + 3.5:g}">{number}</text>',
                f'<text x="{left + 16:g}" y="{y + 4:g}">{escape(function)}: {escape(stop.label)}</text>',
            ]

    def _stop_places(self, way: Way) -> list[float]:
        """Returns the height of each stop: those of one folder stand below each other around its middle."""
        modules = [_folder_of(stop, self._middle) for stop in way.stops]
        places = []
        for number, module in enumerate(modules):
            count, before = modules.count(module), modules[:number].count(module)
            places.append(self._middle[module] + 21 * (before - (count - 1) / 2))
        return places


def _folder_of(stop: Stop, middles: dict[str, Any]) -> str:
    module = ".".join(stop.function.split(".")[:2])
    if module not in middles:
        raise ValueError(f"{stop.function} lies in no folder; expected one of {', '.join(middles)}")
    return module
