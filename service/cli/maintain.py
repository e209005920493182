"""Commands that change or check an index on disk: `bergson append`, `takedown`, `compact`, `profile`, `checksum`."""

from typing import Annotated

import typer

from bergson_core.errors import IndexCorrupt
from bergson_core.schemas.build import AppendSpec, LongDocuments, OnBadDocument
from bergson_core.schemas.results import Progress
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from service.cli.support.common_options import ExecutorOption, IndexDirectory, dataset_options
from service.cli.support.console import fail, print_document_report, print_message, progress_bar
from service.cli.support.spec_options import OptionOverride, SpecOptions, options_from_specs

NEW_DOCUMENTS_OPTIONS = SpecOptions(
    options={
        "path": OptionOverride(
            "dataset", "The new documents, in columns of the same names as those of the index."
        )
    }
)


def _append_help(field: str) -> str:
    return " ".join((AppendSpec.model_fields[field].description or "").split())


@options_from_specs
def append(
    index: IndexDirectory,
    dataset: Annotated[DatasetSpec, NEW_DOCUMENTS_OPTIONS],
    executor: ExecutorOption = "local",
    long_documents: Annotated[
        LongDocuments | None, typer.Option("--long_documents", help=_append_help("long_documents"))
    ] = None,
    chunk_overlap: Annotated[
        int | None, typer.Option("--chunk_overlap", min=0, help=_append_help("chunk_overlap"))
    ] = None,
    on_bad_document: Annotated[
        OnBadDocument | None, typer.Option("--on_bad_document", help=_append_help("on_bad_document"))
    ] = None,
) -> None:
    """Add documents to an index without running the old ones again; an interrupted append resumes."""
    from bergson_core.executors import open_executor
    from bergson_core.indexing.append import append_documents
    from bergson_core.storage.manifest import read_manifest

    spec = AppendSpec(
        dataset=dataset,
        long_documents=long_documents,
        chunk_overlap=chunk_overlap,
        on_bad_document=on_bad_document,
    )
    before, last = read_manifest(index), Progress()
    with progress_bar() as show:

        def report(progress: Progress) -> None:
            nonlocal last
            last = progress
            show(progress)

        manifest = append_documents(index, spec, report=report, executor=open_executor(executor))
    if manifest == before:
        added = "these documents were added before"
    else:
        added = f"{manifest.rows - before.rows:,} added"
    print_message(f"{index}: {manifest.rows:,} documents, {added}, generation {manifest.generation}")
    print_document_report(last.documents)


def takedown(
    index: IndexDirectory,
    ids: Annotated[list[str], typer.Argument(help="Ids of the documents.", metavar="ID...")],
) -> None:
    """Hide documents from every answer, at once and for good; `bergson compact` removes their bytes."""
    from bergson_core.storage.document_lookup import take_down_document

    for document_id in ids:
        take_down_document(index, document_id)
        print_message(f"{index}: {document_id} is taken down")


def compact(index: IndexDirectory) -> None:
    """Remove the bytes of the documents that were taken down."""
    from bergson_core.indexing.compact import compact_index

    with progress_bar() as show:
        manifest = compact_index(index, report=show)
    print_message(f"{index}: {manifest.rows:,} documents, {manifest.total_bytes() / 2**20:,.1f} MiB")


@options_from_specs
def profile(
    index: IndexDirectory,
    name: Annotated[str, typer.Option(help="Name of the profile, for `bergson query --profile`.")],
    dataset: Annotated[DatasetSpec, dataset_options("dataset", "A sample of the task's queries.")],
    prompt_column: Annotated[
        str, typer.Option("--prompt_column", help="Column with the prompts.")
    ] = "prompt",
    completion_column: Annotated[
        str, typer.Option("--completion_column", help="Column with the completions.")
    ] = "completion",
    mixing: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of the queries in the second moment. By default it is found by matching eigenvalues.",
        ),
    ] = None,
) -> None:
    """Fit a preconditioner to a task from a sample of its queries, without running the corpus again."""
    from bergson_core.attribution.profile_fitting import fit_profile
    from bergson_core.data.dataset import load_dataset_spec

    columns = ColumnsSpec(prompt=prompt_column, completion=completion_column)
    queries = load_dataset_spec(dataset, columns.column_names())
    manifest = fit_profile(index, name, queries, columns, mixing=mixing)
    fitted = manifest.profiles[-1]
    print_message(
        f"{index}: profile {name} was fitted from {fitted.queries:,} queries; "
        f"their share of the second moment is {fitted.mixing:.3g}"
    )


def checksum(index: IndexDirectory) -> None:
    """Read every byte of an index and compare the checksums of its files with the manifest; check its takedowns.

    Opening an index reads only the files that have changed since they were last checked.
    """
    from bergson_core.storage.integrity import find_damaged_files
    from bergson_core.storage.manifest import read_manifest
    from bergson_core.storage.takedown_log import TakedownLog

    manifest = read_manifest(index)
    entries = manifest.all_files().values()
    problems = [reason for _, reason in find_damaged_files(index, entries, reread=True)]
    try:
        TakedownLog(index, manifest.takedowns).read_new_lines()
    except IndexCorrupt as error:
        problems.append(str(error))
    if problems:
        fail("\n".join(problems))
    size = f"{len(entries):,} files, {manifest.total_bytes() / 2**20:,.1f} MiB"
    print_message(f"{index}: {size}, all as they were written")
