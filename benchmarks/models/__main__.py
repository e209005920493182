"""Trains the models of cases: `python -m benchmarks.models [CASE ...] [--seed 0] [--data_dir DIR]`.

Prints a table with the loss of documents and queries, in nats a token, under the model that the training started from
and under the trained one, and what the model answers to the first query, greedily. What is there already is not trained
again.
"""

import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.corpora.registry import default_cache
from benchmarks.models.cases import CASES, Case, load_case
from benchmarks.support.command_line import make_parser, parse_with_names
from bergson_core.errors import BergsonError
from bergson_core.models.forward_backward import compute_document_losses
from bergson_core.models.generation import generate_completion
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.loading import load_model
from bergson_core.tokens.chat_template import render_chats
from bergson_core.tokens.tokenization import Tokens

COLUMNS = "case | parameters | documents, before | after | queries, before | after | seconds | model"
ANSWER_TOKENS = 16


def mean_loss(model: LanguageModel, texts: list[Tokens]) -> float:
    """Returns the mean loss of a labelled token, in nats."""
    return compute_document_losses(model, texts).sum() / sum(tokens.n_labelled for tokens in texts)


def describe(case: Case, seconds: float) -> str:
    """Returns a row of the table."""
    losses = [f"{mean_loss(case.model, texts):.2f}" for texts in (case.documents, case.queries)]
    before = [f"{np.log(len(case.model.tokenizer or ())):.2f}"] * 2  # new weights: each token is as likely
    if case.start != case.model_path:
        start = load_model(str(case.start))
        before = [f"{mean_loss(start, texts):.2f}" for texts in (case.documents, case.queries)]
    cells = (before[0], losses[0], before[1], losses[1], f"{seconds:.0f}", str(case.model_path))
    return f"| {case.name} | {case.model.parameter_count:,} | {' | '.join(cells)} |"


def answer_first_query(case: Case) -> str:
    """Returns the first query of a case, what the model answers, and what the corpus says."""
    query, tokenizer = case.corpus.queries[0], case.model.tokenizer
    assert tokenizer is not None  # load_model always returns one
    prompt = query.prompt
    if case.corpus.chat:
        (chat,) = render_chats(tokenizer, [[{"role": "user", "content": prompt}, _answer(query.completion)]])
        if isinstance(chat, BergsonError):
            raise chat
        prompt = chat.text[: chat.spans[-1][0]]
    answer = generate_completion(case.model, prompt, ANSWER_TOKENS).text
    return f"{query.prompt!r} is answered {answer!r}; the corpus says {query.completion!r}"


def _answer(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def main() -> None:
    """Makes the models of the chosen cases, or of all; the exit status is 1 if one of them cannot be made."""
    parser = make_parser(__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpora and of the trainings")
    parser.add_argument("--data_dir", type=Path, default=default_cache(), help="keeps corpora and models")
    options = parse_with_names(parser, CASES, "case")
    failed, answers = [], []
    print(f"| {COLUMNS} |\n|{'---|' * (COLUMNS.count('|') + 1)}")
    for name in options.names:
        started = time.perf_counter()
        try:
            case = load_case(name, options.data_dir, options.seed)
        except BergsonError as error:
            failed.append(f"{name}: {error}")
            continue
        print(describe(case, time.perf_counter() - started), flush=True)
        answers.append(f"{name}: {answer_first_query(case)}")
    print("", *answers, sep="\n")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
