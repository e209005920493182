"""Answers to a query on the terminal: what was asked, tables of results, notes and warnings."""

from collections.abc import Sequence

from rich.text import Text

from bergson_core.schemas.results import Answer, QueryEcho
from service.cli.support.console import console, print_json, print_message, print_warning
from service.cli.support.result_tables import (
    module_influences,
    results_table,
    token_influences,
    verification_table,
)


def print_side_by_side(answers: Sequence[Answer], *, as_json: bool) -> None:
    """Prints the answers of several indexes, one below the other, or as a list in JSON."""
    if as_json:
        print_json([answer.model_dump(mode="json") for answer in answers])
    for answer in answers:
        if not as_json:
            print_message(f"index {answer.index}")
            _print_answer(answer)
        print_warnings(answer)


def print_whole_answer(answer: Answer, *, as_json: bool) -> None:
    """Prints an answer as tables, or as JSON."""
    if as_json:
        print_json(answer.model_dump(mode="json"))
    else:
        _print_answer(answer)


def print_warnings(answer: Answer) -> None:
    """Prints what was probably not meant about the query, on standard error."""
    for warning in answer.warnings:
        meant = "" if warning.suggestion is None else f"; probably meant: {warning.suggestion!r}"
        print_warning(f"{warning.detail}{meant}")


def _print_query(query: QueryEcho) -> None:
    if query.generated:
        print_message(f"the model says: {query.completion!r}")
    if query.behaviour is not None:
        print_message(f"behaviour {query.behaviour}: mean loss {query.loss:.3f} nats a query")
    else:
        tokens = "1 token" if query.n_tokens == 1 else f"{query.n_tokens} tokens"
        console.print(f"loss of the completion: {query.loss:.3f} nats over {tokens}")
    if query.instead_of_behaviour is not None:
        print_message(
            f"minus that of {query.instead_of_behaviour}: mean loss {query.instead_of_loss:.3f} nats a query"
        )
    if query.instead_of is not None:
        print_message(f"loss of {query.instead_of!r}: {query.instead_of_loss:.3f} nats")


def _print_answer(answer: Answer) -> None:
    _print_query(answer.query)
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
