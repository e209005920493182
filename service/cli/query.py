"""`bergson query` asks an index on disk which training samples made the model say a completion."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from bergson_core.errors import BergsonError, InvalidInput
from bergson_core.schemas.query import MAX_RESCORED, MAX_VERIFIED, AttributionQuery
from bergson_core.schemas.results import Answer
from service.cli.support.common_options import PROFILE_HELP, ExecutorOption, IndexDirectory
from service.cli.support.console import (
    FORMAT_HELP,
    OutputFormat,
    console,
    print_csv,
    print_json,
    print_message,
    print_warning,
)
from service.cli.support.result_tables import (
    module_influences,
    results_as_rows,
    results_table,
    token_influences,
    verification_table,
)
from service.cli.support.spec_options import OptionOverride, SpecOptions, options_from_specs


def _parse_filter(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInput(
            f'--filter is not JSON ({error}); expected for example {{"source": ["wiki"]}}'
        ) from None


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
        "span": OptionOverride(type=str | None, parse=_parse_span, extra={"metavar": "START:END"}),
        "messages": OptionOverride(
            intro="A JSON file, or JSON text.",
            type=str | None,
            parse=_parse_messages,
            extra={"metavar": "FILE|JSON"},
        ),
        "filter": OptionOverride(
            intro="A JSON object.", type=str | None, parse=_parse_filter, extra={"metavar": "JSON"}
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
) -> None:
    """Find the training samples that made the model say a completion."""
    from bergson_core.attribution.index import AttributionIndex
    from bergson_core.executors import open_executor

    output_format = "json" if as_json else output_format
    if output_format != "json" and {"tokens", "modules"} & set(spec.include):
        # A table of the parts of scores is of no use without the documents that they are parts of.
        spec = spec.model_copy(update={"include": tuple(dict.fromkeys(("text", *spec.include)))})
    opened = AttributionIndex.open(index, partial=spec.partial, executor=open_executor(executor))
    (answer,) = opened.attribute([spec])
    if isinstance(answer, BergsonError):
        raise answer
    if output_format == "json":
        name = Path(os.path.abspath(index)).name  # of the directory, also for `.`
        print_json(answer.model_copy(update={"index": name}).model_dump(mode="json"))
    elif output_format == "csv":
        print_csv(*results_as_rows(answer))
    else:
        _print_answer(answer)
    for warning in answer.warnings:
        meant = "" if warning.suggestion is None else f"; probably meant: {warning.suggestion!r}"
        print_warning(f"{warning.detail}{meant}")


def _print_answer(answer: Answer) -> None:
    if answer.query.generated:
        print_message(f"the model says: {answer.query.completion!r}")
    console.print(f"loss of the completion: {answer.query.loss:.3f} nats over {answer.query.n_tokens} tokens")
    for title, rows in (("proponents", answer.results), ("opponents", answer.opponents)):
        if rows is not None:
            console.print(results_table(title, rows))
            for row in rows:
                for influences in (token_influences(row), module_influences(row)):
                    if influences is not None:
                        console.print(Text.assemble((f"{row.id} ", "bold"), influences))
    if answer.rescored is not None:
        rescored = answer.rescored
        print_message(f"{rescored.exact} of {rescored.candidates} candidates have exact scores")
    if answer.verification is not None:
        rows = [*(answer.results or ()), *(answer.opponents or ())]
        console.print(verification_table(rows, answer.verification))
    for note in (answer.notice, "damaged shards of the index were left out" if answer.partial else None):
        if note is not None:
            print_message(note)
