"""The score of a result is split by its tokens and by modules, and the parts sum to the score."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from bergson_core import AttributionIndex, build_index, fit_profile
from bergson_core.attribution import token_influence
from bergson_core.attribution.token_influence import split_score_by_position
from bergson_core.errors import InvalidInput
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import GradientSpec, ScoringSpec
from bergson_core.schemas.results import ResultRow
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from bergson_core.search.exact_scores import StoredRow
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.tokenization import Tokens
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
        assert sum(token.influence for token in row.tokens) == pytest.approx(row.score, abs=rounding)


def assert_covers(row: ResultRow) -> None:
    text = row.prompt + (row.completion or "")
    assert "".join(token.token for token in row.tokens) == text
    assert all(text[token.start : token.end] == token.token for token in row.tokens)


@pytest.mark.parametrize(("rows", "normalize", "preconditioner"), SCORING_CASES)
def test_tokens_and_modules_sum_to_the_score(sources, tmp_path, rows, normalize, preconditioner):
    spec = make_spec(
        sources,
        gradients=GradientSpec(projection_dim=4, rows=rows),
        scoring=ScoringSpec(normalize=normalize, preconditioner=preconditioner),
    )
    build_index(spec, tmp_path / "facts", shard_rows=16)
    opened = AttributionIndex.open(tmp_path / "facts")
    rows = results(opened)
    assert_sums(opened, rows)
    for row in rows:
        assert_covers(row)


def test_the_influences_of_tokens_are_those_of_the_definition(index):
    """Computes in float64, without a stored row, the score functional of what each position adds to the row."""
    opened = AttributionIndex.open(index)
    row = results(opened, top_k=1)[0]
    model = load_model(opened.manifest.spec.model, dtype="float64")
    processor = GradientProcessor.load(index / "statistics")
    by_token, whole = (RowCollector(model, processor, per_token=flag) for flag in (True, False))

    def of(collector: RowCollector, tokens: Tokens) -> torch.Tensor:
        (batch,) = iter_batches([tokens], 1000)
        return collector.collect(batch)[0][0]

    document, query_ids = (
        np.array(model.tokenizer(text)["input_ids"])
        for text in (row.prompt, query().prompt + query().completion)
    )
    first = len(model.tokenizer(query().prompt)["input_ids"])
    modules = len(whole.slices)
    root = opened.profiles["default"].query_preconditioner.inverse_root.double()

    def phi(rows: torch.Tensor) -> torch.Tensor:
        return torch.einsum("mij,...mj->...mi", root, rows.unflatten(-1, (modules, -1))).flatten(-2)

    direction = phi(of(whole, Tokens.labelled_from(query_ids, first)))
    tokens = phi(of(by_token, Tokens.labelled_from(document, 1)))
    expected = tokens @ direction / (direction.norm() * tokens.sum(0).norm())
    influences = torch.tensor([token.influence for token in row.tokens], dtype=torch.float64)
    torch.testing.assert_close(influences, expected, rtol=0, atol=2e-3 * expected.abs().max().item())


def test_parts_sum_to_the_score_under_a_fitted_profile_too(sources, tmp_path):
    build_index(make_spec(sources, scoring=ScoringSpec(normalize="block")), tmp_path / "facts", shard_rows=16)
    sample = {"prompt": [f"Person {k} works" for k in range(9)], "completion": [" for company 2."] * 9}
    fit_profile(tmp_path / "facts", "work", Dataset.from_dict(sample), mixing=0.7)
    opened = AttributionIndex.open(tmp_path / "facts")
    rows = results(opened, profile="work")
    assert_sums(opened, rows)
    assert [row.score for row in rows] != [row.score for row in results(opened)]


@pytest.mark.parametrize("rows", ["float16", "sign"])
def test_completions_weights_and_means_are_those_of_the_build(sources, tmp_path, rows):
    """The influences of tokens contain the weight of their document, although an index does not store weights."""
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
    rows = results(opened, prompt="cité 1 is", completion=" number 7")
    assert_sums(opened, rows)
    for row in rows:
        assert row.tokens[-1].end == len(row.prompt + row.completion)
        if row.id == "3":
            assert all(token.influence == 0 for token in row.tokens)


def test_tokens_of_chats_have_no_characters(sources, tmp_path):
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
    rows = results(opened)
    assert_sums(opened, rows)
    text = "".join(token.token for row in rows for token in row.tokens if row.id == "0")
    assert "<user>Person 3 lives where?<assistant>city 1." in text
    assert {token.start for row in rows for token in row.tokens} == {None}


def test_a_document_without_a_gradient_has_parts_of_zero(sources, tmp_path):
    spec = make_spec(
        sources, dataset=None, documents=({"text": "a"}, {"text": "a b c"}), columns=ColumnsSpec()
    )
    build_index(spec, tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    rows = results(opened)
    assert_sums(opened, rows)
    (empty,) = {tuple(token.influence for token in row.tokens) for row in rows if row.id == "0"}
    assert empty == (0.0,)


def test_modules_are_run_a_few_at_a_time_where_memory_is_short(index, monkeypatch):
    opened = AttributionIndex.open(index)
    rows, passes = results(opened), []
    expected = [token.influence for row in rows for token in row.tokens]
    longest = max(len(row.tokens) for row in rows)
    collect, max_numbers = RowCollector.collect, 3 * 16 * longest

    def counted(self, batch):
        passes.append((batch.input_ids.numel() * self.dimensions) if self.per_token else 0)
        return collect(self, batch)

    monkeypatch.setattr(RowCollector, "collect", counted)
    monkeypatch.setattr(token_influence, "MAX_TOKEN_ROW_NUMBERS", max_numbers)
    assert [token.influence for row in results(opened) for token in row.tokens] == pytest.approx(
        expected, abs=1e-6
    )
    assert 0 < max(passes) <= max_numbers


def test_shares_of_signs_stay_bounded_where_positions_cancel_out():
    """Neither of two positions that all but cancel out in a number gets more of its sign than there is."""
    rows = torch.tensor([[[1.0, 2.0, 1.0]], [[-0.999999, 1.0, 1.0]]])
    signs = StoredRow(torch.ones(1, 3), torch.tensor([[1.0, 0.0, 0.0]]))
    parts = split_score_by_position(rows, signs)
    assert parts.sum().item() == pytest.approx(1)
    assert parts.abs().max() < 1.5


def test_a_number_that_no_position_adds_to_is_shared_by_all():
    parts = split_score_by_position(
        torch.zeros(4, 1, 2), StoredRow(torch.tensor([[-1.0, -1.0]]), torch.tensor([[2.0, 0.0]]))
    )
    assert parts.tolist() == [-0.5] * 4


def test_tokens_of_more_than_32_results_are_refused():
    query(top_k=32, include=["tokens"])
    query(top_k=1000, include=["modules"])
    with pytest.raises(InvalidInput, match="a top_k of at most 32 with them, got 33"):
        query(top_k=33, include=["tokens"])


def test_an_index_of_a_training_run_has_no_influences_of_tokens(index):
    opened = AttributionIndex.open(index)
    trained = opened.manifest.model_copy(update={"origin": "training"})
    object.__setattr__(opened.answerer.score_decomposer, "manifest", trained)
    refusal, answer = opened.attribute([query(include=["tokens"]), query(include=["modules"])])
    assert isinstance(refusal, InvalidInput)
    assert "leave `tokens` out" in str(refusal)
    assert answer.results[0].modules
