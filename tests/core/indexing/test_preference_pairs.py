"""An index of preference pairs is built, resumed, extended, queried, verified and taken down from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bergson_core import AttributionIndex, append_documents, build_index
from bergson_core.errors import Cancelled, ColumnNotFound, InvalidInput, TooLong
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.indexing.compact import compact_index
from bergson_core.indexing.estimation.trial_build import run_trial_build
from bergson_core.models.loading import load_model
from bergson_core.models.tracking.selection import select_modules
from bergson_core.schemas.build import AppendSpec, BuildSpec
from bergson_core.storage.document_lookup import find_document, take_down_document
from bergson_core.storage.manifest import read_manifest
from bergson_core.tokens.tokenization import tokenize
from tests import reference
from tests.core.helpers import file_hashes, stop_after, write_rows

PROMPT, CHOSEN, REJECTED = "Person {} lives in", " city {}.", " company {} or so."


def row(number: int, **changes: object) -> dict[str, Any]:
    return {
        "id": f"p-{number}",
        "prompt": PROMPT.format(number % 7),
        "chosen": CHOSEN.format(number % 5),
        "rejected": REJECTED.format(number % 3),
        "source": "a" if number % 2 else "b",
    } | changes


ROWS = [row(number) for number in range(40)]
COLUMNS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "id": "id", "metadata": ["source"]}


def pair_spec(sources: Path, directory: Path, rows: list[dict] | None = None, **changes: Any) -> BuildSpec:
    settings: dict[str, Any] = {
        "model": str(sources / "model"),
        "dataset": write_rows(directory, *(ROWS if rows is None else rows)),
        "columns": COLUMNS,
        "gradients": {"projection_dim": 4},
    }
    return BuildSpec.model_validate(settings | changes)


@pytest.fixture(scope="module")
def pairs(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pairs")
    build_index(pair_spec(sources, directory), directory / "facts", shard_rows=16)
    return directory / "facts"


@pytest.fixture(scope="module")
def opened(pairs: Path) -> AttributionIndex:
    return AttributionIndex.open(pairs)


def naive_rows(
    sources: Path, rows: list[dict], processor: GradientProcessor, margins: list[float], beta: float = 0.1
) -> torch.Tensor:
    """Rows [n, m, d] by autograd of the loss of DPO, in float64, normalized and projected by the processor."""
    loaded = load_model(str(sources / "model"), dtype="float64")
    model, modules = loaded.model, select_modules(loaded.model)
    collected = []
    for values, margin in zip(rows, margins, strict=True):
        texts = tokenize(loaded.tokenizer, [values["prompt"]] * 2, [values["chosen"], values["rejected"]])
        model.requires_grad_(True).zero_grad()
        log_p = [-reference.loss_of(model, text) for text in texts]
        (-torch.nn.functional.logsigmoid(beta * (log_p[0] - log_p[1] - margin))).backward()
        blocks = []
        for name, tracked in modules.items():
            gradient = processor.normalizers[name].apply(reference.weight_gradient(tracked.module, False))
            blocks.append(reference.project(gradient, name, processor.projection_dim or 0))
        collected.append(torch.stack(blocks))
    return torch.stack(collected)


def assert_scores_are_of_autograd(
    index: AttributionIndex, rows: list[dict], margins: list[float], sources: Path, beta: float = 0.1
) -> None:
    """Asserts that the scores of an index are those of rows by autograd."""
    expected = naive_rows(sources, rows, index.processor, margins, beta)
    query = naive_query(sources, index.processor)
    scores = torch.nn.functional.cosine_similarity(expected.flatten(1), query.flatten()[None], dim=1)
    answer = index.query("Person 3 lives in", " city 1.", top_k=len(rows))
    for result in answer.results or ():
        number = int(result.id.removeprefix("p-"))
        assert result.score == pytest.approx(scores[number].item(), abs=5e-3)


def naive_query(sources: Path, processor: GradientProcessor) -> torch.Tensor:
    loaded = load_model(str(sources / "model"), dtype="float64")
    tokens = tokenize(loaded.tokenizer, ["Person 3 lives in"], [" city 1."])
    gradients = reference.gradients(
        loaded.model.requires_grad_(True), list(select_modules(loaded.model)), tokens
    )
    return torch.stack(
        [
            reference.project(
                processor.normalizers[name].apply(gradient[0]), name, processor.projection_dim or 0
            )
            for name, gradient in gradients.items()
        ]
    )


def test_scores_are_those_of_the_gradients_of_dpo(sources: Path, tmp_path: Path) -> None:
    spec = pair_spec(sources, tmp_path, scoring={"preconditioner": False})
    build_index(spec, tmp_path / "facts")
    assert_scores_are_of_autograd(AttributionIndex.open(tmp_path / "facts"), ROWS, [0.0] * len(ROWS), sources)


def test_scores_with_log_probabilities_of_a_reference_and_another_beta(sources: Path, tmp_path: Path) -> None:
    rows = [row(number, rc=-3.0 - number / 4, rr=-5.5 + number / 4) for number in range(20)]
    columns = COLUMNS | {"ref_chosen_logps": "rc", "ref_rejected_logps": "rr"}
    settings = {
        "gradients": {"projection_dim": 4, "preference_beta": 0.7},
        "scoring": {"preconditioner": False},
    }
    build_index(pair_spec(sources, tmp_path, rows, columns=columns, **settings), tmp_path / "facts")
    index = AttributionIndex.open(tmp_path / "facts")
    assert_scores_are_of_autograd(index, rows, [values["rc"] - values["rr"] for values in rows], sources, 0.7)


def test_results_and_documents_show_both_completions(pairs: Path, opened: AttributionIndex) -> None:
    answer = opened.query("Person 3 lives in", " city 1.", top_k=3)
    for result in answer.results or ():
        values = ROWS[int(result.id.removeprefix("p-"))]
        assert (result.prompt, result.completion, result.rejected) == (
            values["prompt"],
            values["chosen"],
            values["rejected"],
        )
    document = find_document(pairs, "p-7")
    assert (document["completion"], document["rejected"]) == (ROWS[7]["chosen"], ROWS[7]["rejected"])
    assert document["loss"] == pytest.approx(np.log(2), abs=1)


def test_tokens_of_both_sequences_sum_to_the_score(opened: AttributionIndex) -> None:
    for rescore in (None, 5):
        answer = opened.query(
            "Person 3 lives in", " city 1.", top_k=3, include=["text", "tokens"], rescore=rescore
        )
        for result in answer.results or ():
            tokens = result.tokens or []
            assert sum(token.influence for token in tokens) == pytest.approx(result.score, abs=1e-4)
            for sequence, completion in (("chosen", result.completion), ("rejected", result.rejected)):
                own = [token for token in tokens if token.sequence == sequence]
                assert "".join(token.token for token in own) == f"{result.prompt}{completion}"


def test_a_filter_and_a_takedown_go_by_pair(sources: Path, tmp_path: Path) -> None:
    build_index(pair_spec(sources, tmp_path), tmp_path / "facts")
    take_down_document(tmp_path / "facts", "p-3")
    index = AttributionIndex.open(tmp_path / "facts")
    answer = index.query("Person 3 lives in", " city 1.", top_k=40, filter={"source": "a"})
    assert {result.id for result in answer.results or ()} == {f"p-{k}" for k in range(1, 40, 2)} - {"p-3"}
    compact_index(tmp_path / "facts")
    document = find_document(tmp_path / "facts", "p-4")
    assert (document["rejected"], document["is_chat"]) == (ROWS[4]["rejected"], False)


def test_a_pair_is_verified_by_a_step_on_its_loss(opened: AttributionIndex) -> None:
    answer = opened.query(
        "Person 3 lives in", " city 1.", top_k=3, direction="both", verify={"top": 2, "controls": 2}
    )
    assert answer.verification is not None and len(answer.verification.controls) == 2
    assert all(result.verified is not None for result in (answer.results or [])[:2])


def test_an_append_continues_with_pairs(sources: Path, tmp_path: Path) -> None:
    build_index(pair_spec(sources, tmp_path), tmp_path / "facts")
    append_documents(tmp_path / "facts", AppendSpec(documents=(row(50), row(51))))
    index = AttributionIndex.open(tmp_path / "facts")
    answer = index.query("Person 1 lives in", " city 0.", top_k=42, include=["text", "tokens"][:1])
    found = {result.id: result.rejected for result in answer.results or ()}
    assert found["p-50"] == row(50)["rejected"] and len(found) == 42


def test_a_build_that_was_stopped_gives_the_same_rows(sources: Path, tmp_path: Path) -> None:
    spec = pair_spec(sources, tmp_path)
    build_index(spec, tmp_path / "whole", shard_rows=8)
    with pytest.raises(Cancelled):
        build_index(spec, tmp_path / "resumed", shard_rows=8, report=stop_after(20))
    build_index(spec, tmp_path / "resumed", shard_rows=8)
    assert file_hashes(tmp_path / "resumed") == file_hashes(tmp_path / "whole")


def test_an_estimate_counts_the_tokens_of_both_sequences(sources: Path, tmp_path: Path) -> None:
    estimate = run_trial_build(pair_spec(sources, tmp_path), tmp_path / "trial", lambda _: None, 40)
    manifest = build_index(pair_spec(sources, tmp_path), tmp_path / "facts")
    assert estimate.tokens == sum(shard.tokens for shard in manifest.shards)
    assert estimate.documents == 40


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "directory"])
def test_every_kind_of_file_gives_the_same_pairs(sources: Path, tmp_path: Path, suffix: str) -> None:
    from datasets import Dataset

    from tests.core.helpers import read_records, save_dataset

    rows = [row(number, rc=-1.5, rr=-2.0 - number) for number in range(4)]
    path = save_dataset(Dataset.from_list(rows), tmp_path, suffix)
    columns = BuildSpec.model_validate(
        {
            "model": "m",
            "dataset": {"path": path},
            "columns": COLUMNS | {"ref_chosen_logps": "rc", "ref_rejected_logps": "rr"},
        }
    ).columns
    for values, record in zip(rows, read_records(path, columns), strict=True):
        assert record.pair is not None
        assert (record.pair.prompt, record.pair.chosen, record.pair.rejected) == (
            values["prompt"],
            values["chosen"],
            values["rejected"],
        )
        assert record.pair.reference_margin == pytest.approx(values["rc"] - values["rr"])


CHAT = [{"role": "user", "content": "Where does person 3 live?"}]
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("In city 1.", "Nowhere."))
BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "the same twice": (row(1, rejected=row(1)["chosen"]), "the same as 'rejected'; expected two different"),
    "an empty rejected": (row(1, rejected=""), "column 'rejected' is empty; expected a completion"),
    "an empty chosen": (row(1, chosen=""), "column 'chosen' is empty"),
    "a missing rejected": (row(1, rejected=None), "column 'rejected' is null or missing"),
    "a number": (row(1, chosen=3), "column 'chosen' is int, expected text or a list of messages"),
    "text beside a chat": (
        row(1, rejected=[*CHAT, BAD]),
        "expected both as texts, or both as lists of messages",
    ),
    "a chat after a text": (row(1, chosen=[GOOD], rejected=[BAD]), "prompt is text"),
    "no message": (row(1, prompt=CHAT, chosen=["x"], rejected=[BAD]), "column 'chosen' is not a chat"),
    "a user at the end": (
        row(1, prompt=CHAT, chosen=[GOOD, *CHAT], rejected=[BAD]),
        "expected one of the assistant",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
@pytest.mark.parametrize("inline", [False, True])
def test_a_bad_pair_is_an_error_that_names_row_and_column(
    case: str, inline: bool, sources: Path, tmp_path: Path
) -> None:
    bad, message = BAD_ROWS[case]
    source = {"dataset": None, "documents": [row(0), bad]} if inline else {}
    with pytest.raises(InvalidInput, match=message) as error:
        build_index(pair_spec(sources, tmp_path, [row(0), bad], **source), tmp_path / "facts")
    assert "row 1" in str(error.value)


def test_a_bad_pair_can_be_left_out(sources: Path, tmp_path: Path) -> None:
    rows = [*ROWS[:5], row(5, rejected=""), row(6, chosen="The", rejected="The")]
    manifest = build_index(pair_spec(sources, tmp_path, rows, on_bad_document="skip"), tmp_path / "facts")
    assert (manifest.rows, manifest.documents.left_out) == (5, 2)


def test_a_missing_column_is_an_error(sources: Path, tmp_path: Path) -> None:
    rows = [{"id": "x", "prompt": "a", "chosen": " b"}]
    with pytest.raises(ColumnNotFound, match="'rejected'"):
        build_index(pair_spec(sources, tmp_path, rows), tmp_path / "facts")


def test_a_pair_is_as_long_as_its_longest_sequence(sources: Path, tmp_path: Path) -> None:
    long = row(1, rejected=" a long text" * 30)
    with pytest.raises(TooLong, match="document 'p-1'"):
        build_index(pair_spec(sources, tmp_path, [row(0), long]), tmp_path / "facts")
    just = [
        row(k, chosen=" a" * 20, rejected=" b" * 20) for k in range(3)
    ]  # together more than the context of 64
    assert build_index(pair_spec(sources, tmp_path, just), tmp_path / "facts").rows == 3
    assert AttributionIndex.open(tmp_path / "facts").query("Person", " a", top_k=3).results


def test_without_a_prompt_it_is_what_both_begin_with(sources: Path, tmp_path: Path) -> None:
    columns = {name: value for name, value in COLUMNS.items() if name != "prompt"}
    whole = [
        {
            "id": r["id"],
            "source": "a",
            "chosen": r["prompt"] + r["chosen"],
            "rejected": r["prompt"] + r["rejected"],
        }
        for r in ROWS
    ]
    build_index(pair_spec(sources, tmp_path, whole, columns=columns), tmp_path / "implicit")
    build_index(pair_spec(sources, tmp_path), tmp_path / "explicit")
    document = find_document(tmp_path / "implicit", "p-3")
    assert (document["prompt"], document["completion"]) == (ROWS[3]["prompt"], ROWS[3]["chosen"])
    indexes = [AttributionIndex.open(tmp_path / name) for name in ("implicit", "explicit")]
    results = [index.query("Person 3 lives in", " city 1.", top_k=40).results or [] for index in indexes]
    scores = [{result.id: result.score for result in rows} for rows in results]
    assert scores[0] == pytest.approx(scores[1], abs=2e-3)


def test_the_collector_of_an_index_of_pairs_serves_plain_queries_too(opened: AttributionIndex) -> None:
    first = opened.query("Person 3 lives in", " city 1.", top_k=5)
    opened.query("Person 3 lives in", " city 1.", top_k=2, include=["tokens"])
    again = opened.query("Person 3 lives in", " city 1.", top_k=5)
    assert [result.score for result in first.results or ()] == [
        result.score for result in again.results or ()
    ]
    assert isinstance(opened.collector, RowCollector)


def test_the_manifest_says_what_the_pairs_are(pairs: Path) -> None:
    columns = read_manifest(pairs).spec.columns
    assert (columns.prompt, columns.chosen, columns.rejected) == ("prompt", "chosen", "rejected")
    assert json.loads((pairs / "manifest.json").read_text())["spec"]["gradients"]["preference_beta"] == 0.1
