"""The tokens and the modules of a result say where its score comes from: their parts sum to it."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from bergson_core import AttributionIndex, build_index, fit_profile
from bergson_core.attribution import token_influence
from bergson_core.attribution.token_influence import split_score_by_position
from bergson_core.data.batching import Tokens, iter_batches
from bergson_core.errors import InvalidInput
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import ColumnsSpec, DatasetSpec, GradientSpec, ScoringSpec
from bergson_core.schemas.results import ResultRow
from bergson_core.search.exact_scores import StoredRow
from tests import tiny
from tests.core.helpers import CHAT, CHAT_TEMPLATE, SCORING_CASES, make_spec, query

PARTS = {"include": ["text", "tokens", "modules"]}


def results(opened: AttributionIndex, **changes) -> list[ResultRow]:
    (answer,) = opened.attribute([query(**({"direction": "both", "top_k": 4} | PARTS | changes))])
    return answer.results + answer.opponents


def assert_sums(opened: AttributionIndex, rows: list[ResultRow]) -> None:
    names = [module.name for module in opened.manifest.modules]
    for row in rows:
        assert list(row.modules) == names
        rounding = 1e-5 * sum(map(abs, row.modules.values()))
        assert sum(row.modules.values()) == pytest.approx(row.score, abs=rounding)
        assert sum(one.influence for one in row.tokens) == pytest.approx(row.score, abs=rounding)


def assert_covers(row: ResultRow) -> None:
    text = row.prompt + (row.completion or "")
    assert "".join(one.token for one in row.tokens) == text
    assert all(text[one.start : one.end] == one.token for one in row.tokens)


@pytest.mark.parametrize(("rows", "normalize", "preconditioner"), SCORING_CASES)
def test_tokens_and_modules_sum_to_the_score(sources, tmp_path, rows, normalize, preconditioner):
    spec = make_spec(
        sources,
        gradients=GradientSpec(projection_dim=4, rows=rows),
        scoring=ScoringSpec(normalize=normalize, preconditioner=preconditioner),
    )
    build_index(spec, tmp_path / "facts", shard_rows=16)
    opened = AttributionIndex.open(tmp_path / "facts")
    found = results(opened)
    assert_sums(opened, found)
    for row in found:
        assert_covers(row)


def test_the_parts_of_tokens_are_those_of_the_definition(index):
    """In float64 and without anything stored: the functional of the score, of what each position adds to the row."""
    opened = AttributionIndex.open(index)
    row = results(opened, top_k=1)[0]
    model = load_model(opened.manifest.spec.model, dtype="float64")
    processor = GradientProcessor.load(index / "statistics")
    by_token, whole = (RowCollector(model, processor, per_token=flag) for flag in (True, False))

    def of(collector: RowCollector, tokens: Tokens) -> torch.Tensor:
        (batch,) = iter_batches([tokens], 1000)
        return collector.collect(batch)[0][0]

    document, asked = (
        np.array(model.tokenizer(text)["input_ids"])
        for text in (row.prompt, query().prompt + query().completion)
    )
    first = len(model.tokenizer(query().prompt)["input_ids"])
    layers = len(whole.slices)
    root = opened.profiles["default"].query_preconditioner.inverse_root.double()

    def phi(rows: torch.Tensor) -> torch.Tensor:
        return torch.einsum("mij,...mj->...mi", root, rows.unflatten(-1, (layers, -1))).flatten(-2)

    direction = phi(of(whole, Tokens.labelled_from(asked, first)))
    tokens = phi(of(by_token, Tokens.labelled_from(document, 1)))
    expected = tokens @ direction / (direction.norm() * tokens.sum(0).norm())
    found = torch.tensor([one.influence for one in row.tokens], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 * expected.abs().max().item())


def test_they_sum_under_another_profile_too(sources, tmp_path):
    build_index(make_spec(sources, scoring=ScoringSpec(normalize="block")), tmp_path / "facts", shard_rows=16)
    sample = {"prompt": [f"Person {k} works" for k in range(9)], "completion": [" for company 2."] * 9}
    fit_profile(tmp_path / "facts", "work", Dataset.from_dict(sample), mixing=0.7)
    opened = AttributionIndex.open(tmp_path / "facts")
    found = results(opened, profile="work")
    assert_sums(opened, found)
    assert [row.score for row in found] != [row.score for row in results(opened)]


@pytest.mark.parametrize("rows", ["float16", "sign"])
def test_completions_weights_and_means_are_those_of_the_build(sources, tmp_path, rows):
    """A weight is not kept in the index, and what a token does is multiplied by it all the same."""
    path = tmp_path / "pairs.jsonl"
    pairs = [
        {"q": f"cité {k} is", "a": f" number {k * 7}", "w": weight}
        for k, weight in enumerate((1.0, -2.0, 0.5, 0.0, 3.0))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    spec = make_spec(
        sources,
        dataset=DatasetSpec(path=str(path)),
        columns=ColumnsSpec(prompt="q", completion="a", weight="w"),
        gradients=GradientSpec(projection_dim=4, rows=rows, loss="mean"),
        scoring=ScoringSpec(normalize="none"),
    )
    build_index(spec, tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    found = results(opened, prompt="cité 1 is", completion=" number 7")
    assert_sums(opened, found)
    for row in found:
        assert row.tokens[-1].end == len(row.prompt + row.completion)
        if row.id == "3":
            assert all(one.influence == 0 for one in row.tokens)


def test_tokens_of_chats_have_no_place_in_their_json(sources, tmp_path):
    model = tiny.save_model(tmp_path / "model")
    tokenizer = tiny.tokenizer(tiny.texts(20))
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(model)
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"chat": CHAT[:k]}) + "\n" for k in (2, 4)))
    spec = make_spec(
        sources, model=str(model), dataset=DatasetSpec(path=str(path)), columns=ColumnsSpec(messages="chat")
    )
    build_index(spec, tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    found = results(opened)
    assert_sums(opened, found)
    said = "".join(one.token for row in found for one in row.tokens if row.id == "0")
    assert "<user>Person 3 lives where?<assistant>city 1." in said
    assert {one.start for row in found for one in row.tokens} == {None}


def test_a_document_without_a_gradient_has_parts_of_zero(sources, tmp_path):
    spec = make_spec(
        sources, dataset=None, documents=({"text": "a"}, {"text": "a b c"}), columns=ColumnsSpec()
    )
    build_index(spec, tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    found = results(opened)
    assert_sums(opened, found)
    (empty,) = {tuple(one.influence for one in row.tokens) for row in found if row.id == "0"}
    assert empty == (0.0,)


def test_modules_are_run_a_few_at_a_time_where_memory_is_short(index, monkeypatch):
    opened = AttributionIndex.open(index)
    rows, passes = results(opened), []
    expected = [one.influence for row in rows for one in row.tokens]
    longest = max(len(row.tokens) for row in rows)
    collect, at_once = RowCollector.collect, 3 * 16 * longest

    def counted(self, batch):
        passes.append((batch.input_ids.numel() * self.dimensions) if self.per_token else 0)
        return collect(self, batch)

    monkeypatch.setattr(RowCollector, "collect", counted)
    monkeypatch.setattr(token_influence, "MAX_TOKEN_ROW_NUMBERS", at_once)
    assert [one.influence for row in results(opened) for one in row.tokens] == pytest.approx(
        expected, abs=1e-6
    )
    assert 0 < max(passes) <= at_once


def test_shares_of_signs_stay_bounded_where_positions_cancel_out():
    """Two positions that all but cancel out in a number: neither gets more of its sign than there is."""
    rows = torch.tensor([[[1.0, 2.0, 1.0]], [[-0.999999, 1.0, 1.0]]])
    signs = StoredRow(torch.ones(1, 3), torch.tensor([[1.0, 0.0, 0.0]]))
    found = split_score_by_position(rows, signs)
    assert found.sum().item() == pytest.approx(1)
    assert found.abs().max() < 1.5


def test_a_number_that_no_position_adds_to_is_shared_by_all():
    found = split_score_by_position(
        torch.zeros(4, 1, 2), StoredRow(torch.tensor([[-1.0, -1.0]]), torch.tensor([[2.0, 0.0]]))
    )
    assert found.tolist() == [-0.5] * 4


def test_tokens_of_many_rows_are_refused():
    query(top_k=32, include=["tokens"])
    query(top_k=1000, include=["modules"])
    with pytest.raises(InvalidInput, match="a top_k of at most 32 with them, got 33"):
        query(top_k=33, include=["tokens"])


def test_what_a_training_run_did_has_no_tokens(index):
    opened = AttributionIndex.open(index)
    trained = opened.manifest.model_copy(update={"origin": "training"})
    object.__setattr__(opened.answerer.score_decomposer, "manifest", trained)
    refused, answered = opened.attribute([query(include=["tokens"]), query(include=["modules"])])
    assert isinstance(refused, InvalidInput)
    assert "leave `tokens` out" in str(refused)
    assert answered.results[0].modules
