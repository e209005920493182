"""What it costs to append one hundredth to an index, beside its build; and to take down and compact.

    python -m benchmarks.appending [--documents 20000] [--share 0.01]

The index is that of a GPT-NeoX of about a million parameters (benchmarks.memory) over short documents, opened once the
model is in memory: what both load is not counted. The search is measured again by the append, or not (`--measured`).
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.memory import make_model, make_sources
from bergson_core import AttributionIndex, append_documents, build_index, compact_index, take_down_document
from bergson_core.indexing import append, build
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import AppendSpec, BuildSpec, ColumnsSpec, DatasetSpec, GradientSpec
from bergson_core.schemas.query import AttributionQuery


def timed(call: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    """Seconds that the call takes."""
    started = time.perf_counter()
    call(*arguments, **options)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--rows", default="float16")
    options = parser.parse_args()
    loaded = cache(load_model)
    build.load_model = loaded
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        model, output, few = make_model(root), root / "index", round(options.share * options.documents)
        loaded(str(model), None, "float32")
        documents = DatasetSpec(path=str(make_sources(root, options.documents)))
        settings = GradientSpec(rows=options.rows)
        spec = BuildSpec(
            model=str(model), dataset=documents, columns=ColumnsSpec(id="id"), gradients=settings
        )
        seconds = timed(build_index, spec, output)
        print(f"build of {options.documents:,} documents {seconds:8.2f} s")

        def appended(first: int) -> float:
            lines = (root / f"documents-{options.documents}.jsonl").read_text().splitlines()[:few]
            new = [json.loads(line) | {"id": f"doc-{first + k}"} for k, line in enumerate(lines)]
            return timed(append_documents, output, AppendSpec(documents=tuple(new)), load_model=loaded)

        for what, factor in (("search kept", append._MEASURED_FOR), ("search measured again", 0.0)):
            append._MEASURED_FOR = factor
            took = appended(options.documents + few * (factor == 0))
            print(f"append of {few:,}, {what:<22}{took:6.2f} s, {100 * took / seconds:5.1f} % of the build")
        print(f"takedown {1e3 * timed(take_down_document, output, 'doc-7'):.1f} ms")
        print(f"compaction of one shard {timed(compact_index, output):.2f} s")
        opened = timed(AttributionIndex.open, output, load_model=loaded)
        print(f"opening, the model in memory {1e3 * opened:.0f} ms")
        query = AttributionQuery(index="index", prompt="Ada was born in", completion=" Rome")
        print(f"{len(AttributionIndex.open(output, load_model=loaded).attribute([query]))} answer")


if __name__ == "__main__":
    main()
