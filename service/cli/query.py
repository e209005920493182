"""`bergson query` asks which training samples made the model say a completion: an index on disk, or a service."""

import json
import logging
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from bergson_core.errors import BergsonError, IndexNotFound, InvalidInput
from bergson_core.schemas.build import ExecutorName
from bergson_core.schemas.query import MAX_RESCORED, MAX_VERIFIED, AttributionQuery
from bergson_core.schemas.results import Answer
from service.cli.support.answer_output import print_side_by_side, print_warnings, print_whole_answer
from service.cli.support.common_options import (
    PROFILE_HELP,
    EscapeFormulasOption,
    ExecutorOption,
    IndexDirectory,
    OverwriteOption,
    parse_between,
    parse_filter,
    require_output,
)
from service.cli.support.console import (
    FORMAT_HELP,
    OutputFormat,
    console,
    error_console,
    print_message,
)
from service.cli.support.spec_options import OptionOverride, SpecOptions, options_from_specs


def _parse_span(text: str) -> tuple[int, int]:
    start, separator, end = text.partition(":")
    if not (separator and start.isdecimal() and end.isdecimal()):
        raise InvalidInput(
            f"--span: expected START:END, characters of the completion counted from 0, got {text!r}"
        )
    return int(start), int(end)


def _parse_messages(text: str) -> Any:
    """Returns the messages that `--messages` gives, as JSON text or as the name of a file with it."""
    is_file = not text.lstrip().startswith("[")
    try:
        return json.loads(Path(os.path.expanduser(text)).read_text(encoding="utf-8") if is_file else text)
    except OSError as error:
        raise InvalidInput(
            f"--messages: {text} cannot be read ({error.strerror}); expected a JSON file, or JSON that begins with ["
        ) from None
    except ValueError as error:
        raise InvalidInput(
            f"--messages: {text if is_file else 'the value'} is not JSON ({error}); expected for example "
            '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]'
        ) from None


QUERY_OPTIONS = SpecOptions(
    options={
        "profile": OptionOverride(help=PROFILE_HELP),
        "behaviour": OptionOverride(type=str | None, extra={"metavar": "NAME"}),
        "instead_of_behaviour": OptionOverride(type=str | None, extra={"metavar": "NAME"}),
        "span": OptionOverride(type=str | None, parse=_parse_span, extra={"metavar": "START:END"}),
        "between": OptionOverride(type=str | None, parse=parse_between, extra={"metavar": "EARLIER:LATER"}),
        "messages": OptionOverride(
            intro="A JSON file, or JSON text.",
            type=str | None,
            parse=_parse_messages,
            extra={"metavar": "FILE|JSON"},
        ),
        "filter": OptionOverride(
            intro="A JSON object.", type=str | None, parse=parse_filter, extra={"metavar": "JSON"}
        ),
        "rescore": OptionOverride(extra={"min": 1, "max": MAX_RESCORED}),
        "verify": OptionOverride(
            intro="Number of results to verify.",
            type=int | None,
            parse=lambda top: {"top": top},
            extra={"min": 1, "max": MAX_VERIFIED},
        ),
    },
    constants={"index": "index"},  # A query of the service names its index; here the index is a directory.
)


@options_from_specs
def query(
    index: IndexDirectory,
    spec: Annotated[AttributionQuery, QUERY_OPTIONS],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the answer as JSON, as the service returns it.")
    ] = False,
    output_format: Annotated[OutputFormat, typer.Option("--format", help=FORMAT_HELP)] = "table",
    executor: ExecutorOption = "local",
    url: Annotated[
        str | None,
        typer.Option(
            help="Address of a running service to ask instead, such as http://127.0.0.1:8000. INDEX is then the name "
            "of one of its indexes. It has the model in memory, which this command otherwise loads first."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write the results to this .jsonl, .csv or .parquet file instead of printing them, a row for each; no "
            "text is cut. It is written whole or not at all."
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    escape_formulas: EscapeFormulasOption = False,
    link: Annotated[
        bool,
        typer.Option(
            "--link", help="With --url: have the service keep the answer, and print the address of its link."
        ),
    ] = False,
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="Another index to ask the same, side by side: a directory, or a name with --url. Repeatable.",
            metavar="INDEX",
        ),
    ] = None,
    together: Annotated[
        bool,
        typer.Option(
            help="With --verify: also unlearn all verified results of a direction at once, and random groups of as "
            "many documents."
        ),
    ] = False,
) -> None:
    """Find the training samples that made the model say a completion."""
    output_format = "json" if as_json else output_format
    if output is not None:
        _require_output(output, output_format, overwrite)
    if together:
        spec = _with_together(spec)
    if output_format != "json" and {"tokens", "modules"} & set(spec.include):
        # A table of the parts of scores is of no use without the documents that they are parts of.
        spec = spec.model_copy(update={"include": tuple(dict.fromkeys(("text", *spec.include)))})
    if link and url is None:
        raise InvalidInput("--link: only a service keeps links: expected --url with --link")
    if url is not None and executor != "local":
        raise InvalidInput(
            f"--executor {executor} is for an index on disk: expected either --executor or --url"
        )
    if also:
        if output is not None or link or output_format == "csv":
            raise InvalidInput(
                "--also: several answers are printed as tables or JSON: expected no --output, --link or CSV with --also"
            )
        answers = _ask_all([str(index), *also], spec, url, executor)
        print_side_by_side(answers, as_json=output_format == "json")
        return
    answer = (
        _ask_directory(index, spec, executor)
        if url is None
        else _ask_service(url, str(index), spec, keep=link)
    )
    if output is not None:
        _write_results(answer, output, overwrite=overwrite, escape_formulas=escape_formulas)
    elif output_format == "csv":
        _print_csv(answer, escape_formulas)
    else:
        print_whole_answer(answer, as_json=output_format == "json")
    print_warnings(answer)


def _with_together(spec: AttributionQuery) -> AttributionQuery:
    """Returns the query with the step on all verified results at once."""
    if spec.verify is None:
        raise InvalidInput("--together: expected also --verify, the number of results to unlearn")
    return spec.model_copy(update={"verify": spec.verify.model_copy(update={"together": True})})


def _ask_all(
    indexes: Sequence[str], spec: AttributionQuery, url: str | None, executor: ExecutorName
) -> list[Answer]:
    """Returns the answers of several indexes. Raises the first error that one of them meets."""
    _require_each_once([os.path.realpath(index) for index in indexes] if url is None else indexes, indexes)
    if url is None:
        return [_ask_directory(Path(index), spec, executor) for index in indexes]
    from service.client import Client

    logging.getLogger("service.client").addHandler(logging.NullHandler())
    fields = spec.model_dump(mode="json", exclude={"index"}, exclude_defaults=True)
    with Client(url) as client:
        outcomes = client.attribute_indexes(indexes, **fields)
    for outcome in outcomes:
        if isinstance(outcome, BergsonError):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Answer)]


def _require_each_once(places: Sequence[str], indexes: Sequence[str]) -> None:
    """Raises `InvalidInput` if two of the indexes are at the same place: one directory, or one name of a service."""
    for number, place in enumerate(places):
        if (first := places.index(place)) != number:
            again, as_first = indexes[number], indexes[first]
            how = "again" if again == as_first else f"which is the directory of {as_first!r}"
            raise InvalidInput(f"--also: expected each index once, got {again!r} {how}")


def _ask_directory(index: Path, spec: AttributionQuery, executor: ExecutorName) -> Answer:
    """Returns the answer of an index on disk, whose model is loaded for it."""
    from bergson_core.attribution.index import AttributionIndex
    from bergson_core.executors import open_executor

    opened = AttributionIndex.open(index, partial=spec.partial, executor=open_executor(executor))
    (answer,) = opened.attribute([spec])
    if isinstance(answer, BergsonError):
        raise answer
    return answer.model_copy(update={"index": Path(os.path.abspath(index)).name})  # also for `.`


def _ask_service(url: str, index: str, spec: AttributionQuery, *, keep: bool) -> Answer:
    """Returns the answer of the service at `url`. If the service is to keep it, the link is printed."""
    from service.client import Client

    # The client logs the warnings of an answer, which are printed here.
    logging.getLogger("service.client").addHandler(logging.NullHandler())
    fields = spec.model_dump(mode="json", exclude={"index"}, exclude_defaults=True)
    with Client(url) as client:
        if not keep:
            return client.attribute(index, **fields)
        link = client.make_link(index, **fields)
    until = datetime.fromtimestamp(link.expires_at, UTC).isoformat(timespec="minutes")
    error_console.print(
        f"link: {url.rstrip('/')}/links/{link.id} until {until}", markup=False, soft_wrap=True
    )
    if link.answer is None:
        raise IndexNotFound(f"the index {index!r} was deleted before its answer was printed")
    return link.answer


def _require_output(output: Path, output_format: OutputFormat, overwrite: bool) -> None:
    """Checks that the results can be written, before the query is answered."""
    from bergson_core.utils.table_writer import TABLE_SUFFIXES

    if output_format != "table":
        raise InvalidInput(
            f"--format {output_format} is for printed results: expected either --format or --output"
        )
    require_output(output, TABLE_SUFFIXES, overwrite=overwrite)


def _write_results(answer: Answer, output: Path, *, overwrite: bool, escape_formulas: bool) -> None:
    """Writes the results to a file, and prints what the file does not have."""
    from bergson_core.schemas.answer_parts.result_tables import spread_columns
    from bergson_core.utils.table_writer import write_table

    table = answer.to_table()
    if output.suffix == ".csv":
        table = spread_columns(table)
    count = write_table(table, output, overwrite=overwrite, escape_formulas=escape_formulas)
    print_message(f"{output}: {count:,} results")
    if answer.query.generated:
        print_message(f"the model says: {answer.query.completion!r}")
    if answer.notice is not None:
        print_message(answer.notice)


def _print_csv(answer: Answer, escape_formulas: bool) -> None:
    from bergson_core.schemas.answer_parts.result_tables import spread_columns
    from bergson_core.utils.table_writer import write_csv

    write_csv(spread_columns(answer.to_table()).to_reader(), console.file, escape_formulas=escape_formulas)
