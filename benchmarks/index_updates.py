"""Seconds of an append of a hundredth of an index, of a takedown and of a compaction, compared with the build.

    python -m benchmarks.index_updates [--documents 20000] [--share 0.01] [--rows float16]

The index is that of a GPT-NeoX of 80,000 parameters over documents of two sentences. The appends get the model from
memory; the build loads it, in about a tenth of a second. One append keeps the search as it was measured, the other
measures it again, which happens each time that an index has grown by a tenth since it was measured.
"""

import tempfile
from pathlib import Path

from benchmarks.support.command_line import make_parser
from benchmarks.support.random_models import save_tiny_model
from benchmarks.support.text_files import write_sentence_pairs
from benchmarks.support.timing import measure_seconds
from bergson_core import AttributionIndex, append_documents, build_index, compact_index, take_down_document
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import AppendSpec, BuildSpec, GradientSpec
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec

GROWTH_MEASURED_AGAIN = 0.1
"""Growth of an index after which an append measures the search again."""


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument(
        "--share", type=float, default=0.01, help="documents of an append, of those of the build"
    )
    parser.add_argument("--rows", default="float16", help="how the index stores a row's numbers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        index, count = root / "index", options.documents
        model_path = save_tiny_model(root / "model")
        documents_path = write_sentence_pairs(root, count)
        spec = BuildSpec(
            model=str(model_path),
            dataset=DatasetSpec(path=str(documents_path)),
            columns=ColumnsSpec(id="id"),
            gradients=GradientSpec(rows=options.rows),
        )
        build_seconds = measure_seconds(build_index, spec, index)
        print(f"build of {count:,} documents {build_seconds:8.2f} s", flush=True)

        model = load_model(str(model_path), None, spec.dtype)

        def measure_append(size: int, name: str) -> float:
            path = write_sentence_pairs(root / name, size, id_prefix=name)
            append = AppendSpec(dataset=DatasetSpec(path=str(path)))
            return measure_seconds(append_documents, index, append, load_model=lambda *_: model)

        few = round(options.share * count)
        kept_seconds = measure_append(few, "first")
        # With these documents, the index has almost the size at which the search is measured again.
        measure_append(max(1, round(GROWTH_MEASURED_AGAIN * count) - few - few // 2), "growth")
        measured_seconds = measure_append(few, "second")
        for name, seconds in (("search kept", kept_seconds), ("search measured again", measured_seconds)):
            share = seconds / build_seconds
            print(f"append of {few:,}, {name:<22}{seconds:6.2f} s, {share:6.1%} of the build")
        takedown_seconds = measure_seconds(take_down_document, index, "doc-7")
        print(f"takedown {1e3 * takedown_seconds:.1f} ms")
        print(f"compaction of one shard {measure_seconds(compact_index, index):.2f} s")
        opening_seconds = measure_seconds(AttributionIndex.open, index, load_model=lambda *_: model)
        print(f"opening with the model in memory {1e3 * opening_seconds:.0f} ms")


if __name__ == "__main__":
    main()
