"""`bergson append`, `takedown`, `compact`: change an index on disk; `bergson verify`: read every byte of it."""

from pathlib import Path
from typing import Annotated

import typer

from bergson_core.schemas.build import AppendSpec, DatasetSpec
from service.cli.support.output import fail, help_text, print_message, progress_bar
from service.cli.support.spec_options import ExecutorOption

IndexPath = Annotated[Path, typer.Argument(help="Directory of the index.")]


def append(
    index: IndexPath,
    dataset: Annotated[
        str,
        typer.Option(
            help=f"The new samples, in columns named as the index's. {help_text(DatasetSpec, 'path')}"
        ),
    ],
    split: Annotated[str, typer.Option(help=help_text(DatasetSpec, "split"))] = "train",
    subset: Annotated[str | None, typer.Option(help=help_text(DatasetSpec, "subset"))] = None,
    streaming: Annotated[bool, typer.Option("--streaming", help=help_text(DatasetSpec, "streaming"))] = False,
    executor: ExecutorOption = "local",
) -> None:
    """Add documents to an index; the old ones are not run again. A stopped append resumes."""
    source = DatasetSpec(path=dataset, split=split, subset=subset, streaming=streaming)
    spec = AppendSpec(dataset=source)
    from bergson_core.executors import open_executor
    from bergson_core.indexing.append import append_documents
    from bergson_core.storage.manifest import read_manifest

    before = read_manifest(index)
    with progress_bar() as show:
        manifest = append_documents(index, spec, report=show, executor=open_executor(executor))
    added = f"{manifest.rows - before.rows:,} added" if manifest != before else "these were added before"
    print_message(f"{index}: {manifest.rows:,} documents, {added}, generation {manifest.generation}")


def takedown(
    index: IndexPath,
    ids: Annotated[list[str], typer.Argument(help="Ids of the documents.", metavar="ID...")],
) -> None:
    """Hide documents from every answer, at once and for good; `bergson compact` removes their bytes."""
    from bergson_core.storage.document_lookup import take_down_document

    for one in ids:
        take_down_document(index, one)
        print_message(f"{index}: {one} is taken down")


def compact(index: IndexPath) -> None:
    """Remove the bytes of the documents that were taken down."""
    from bergson_core.indexing.compact import compact_index as compact_index

    with progress_bar() as show:
        manifest = compact_index(index, report=show)
    print_message(f"{index}: {manifest.rows:,} documents, {manifest.total_bytes() / 2**20:,.1f} MiB")


def verify(index: IndexPath) -> None:
    """Read every byte of an index and compare it with the manifest; opening reads only what has changed."""
    from bergson_core.storage.integrity import find_damaged_files
    from bergson_core.storage.manifest import read_manifest

    manifest = read_manifest(index)
    entries = manifest.all_files().values()
    if wrong := find_damaged_files(index, entries, again=True):
        fail("\n".join(found for _, found in wrong))
    size = f"{len(entries):,} files, {manifest.total_bytes() / 2**20:,.1f} MiB"
    print_message(f"{index}: {size}, all as they were written")
