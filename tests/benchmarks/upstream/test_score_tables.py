"""Tables of scores by EleutherAI's bergson, for which a small script stands here."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.models.cases import Case
from benchmarks.upstream.agreement import largest_deviation
from benchmarks.upstream.environment import Upstream
from benchmarks.upstream.methods import METHODS
from benchmarks.upstream.score_tables import ScoreTable, make_scores, read_scores, table_directory, why_not
from bergson_core.errors import InvalidInput
from bergson_core.models.language_model import as_language_model
from bergson_core.tokens.tokenization import Tokens
from tests import tiny
from tests.benchmarks.helpers import make_tiny_corpus

FAKE = Upstream((sys.executable, str(Path(__file__).with_name("fake_command_line.py"))), {"bergson": "0"})
BROKEN = Upstream((sys.executable, "-c", "import sys; sys.exit('out of luck')"), {"bergson": "0"})


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A case of a random model with seven documents and three queries, the first token of which is their prompt."""
    rng = np.random.default_rng(0)
    model = as_language_model(
        tiny.model("gpt2", dtype=torch.float32).requires_grad_(False), tiny.tokenizer(), sha256="0"
    )
    texts = [Tokens.labelled_from(rng.integers(1, tiny.VOCABULARY, size=5 + k), 1) for k in range(10)]
    queries = [Tokens.labelled_from(text.ids, 3) for text in texts[7:]]
    return Case("tiny", "gpt2", make_tiny_corpus(), tmp_path, tmp_path, tmp_path, model, texts[:7], queries)


def label_sums(texts: list[Tokens]) -> np.ndarray:
    return np.array([text.ids[text.labels].sum() for text in texts])


def test_a_table_has_a_row_for_each_query_and_a_column_for_each_document_in_their_order(
    case: Case, tmp_path: Path
) -> None:
    table = make_scores(case, tmp_path, "trackstar_p16", FAKE)
    np.testing.assert_array_equal(
        table.scores, np.outer(label_sums(case.queries), label_sums(case.documents))
    )
    assert table.modules == ("h.0.attn.c_attn", "h.0.mlp.c_fc")
    assert table.title == "TrackStar, p = 16"
    assert table.versions == {"bergson": "0"}
    assert table.seconds > 0
    assert table.cpu_seconds > 0
    assert 0 < table.peak_gib < 4


def test_only_labelled_tokens_count(case: Case, tmp_path: Path) -> None:
    table = make_scores(case, tmp_path, "trackstar_p16", FAKE)
    whole = replace(case, queries=[Tokens.labelled_from(query.ids, 1) for query in case.queries])
    assert (make_scores(whole, tmp_path, "trackstar_p16", FAKE).scores > table.scores).all()


def test_a_table_is_made_once_and_can_then_be_read_without_bergson(case: Case, tmp_path: Path) -> None:
    assert read_scores(case, tmp_path) == {}
    table = make_scores(case, tmp_path, "trackstar_p16", FAKE)
    again = make_scores(case, tmp_path, "trackstar_p16", BROKEN)
    assert again.seconds == table.seconds
    tables = read_scores(case, tmp_path)
    assert list(tables) == ["trackstar_p16"]
    np.testing.assert_array_equal(tables["trackstar_p16"].scores, table.scores)


def test_a_table_of_another_model_document_or_setting_is_another_table(case: Case, tmp_path: Path) -> None:
    others = [
        replace(case, model=replace(case.model, sha256="1")),
        replace(case, documents=case.documents[::-1]),
        replace(case, queries=case.queries[:2]),
        replace(case, model=replace(case.model, max_tokens=32)),
    ]
    paths = {table_directory(other, tmp_path, "trackstar_p16") for other in (case, *others)}
    paths.add(table_directory(case, tmp_path, "trackstar_p16", queries=1))
    paths.add(table_directory(case, tmp_path, "trackstar_p32"))
    assert len(paths) == 7


def test_a_high_score_of_magic_means_that_a_document_helps(case: Case, tmp_path: Path) -> None:
    table = make_scores(case, tmp_path, "magic", FAKE, queries=2)
    end_token = case.model.tokenizer.eos_token_id  # type: ignore[union-attr]
    expected = np.outer(label_sums(case.queries[:2]), label_sums(case.documents) + end_token)
    np.testing.assert_array_equal(table.scores, expected)


def test_the_first_queries_can_be_taken_alone(case: Case, tmp_path: Path) -> None:
    whole = make_scores(case, tmp_path, "trackstar_p16", FAKE)
    part = make_scores(case, tmp_path, "trackstar_p16", FAKE, queries=2)
    np.testing.assert_array_equal(part.scores, whole.scores[:2])


def test_a_run_that_fails_is_quoted_and_leaves_no_table(case: Case, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"ended with status 1: out of luck"):
        make_scores(case, tmp_path, "trackstar_p16", BROKEN)
    assert read_scores(case, tmp_path) == {}


def test_a_run_that_leaves_out_a_document_leaves_no_table(case: Case, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="without a score"):
        make_scores(case, tmp_path, "ekfac", FAKE)
    assert read_scores(case, tmp_path) == {}


def test_methods_that_do_not_fit_are_named_with_the_reason(case: Case) -> None:
    assert {why_not(case, name) for name in METHODS} == {None}
    pretrained = replace(case, kind="smollm2", queries=case.queries * 40_000)
    reasons = {name: why_not(pretrained, name) for name in METHODS}
    assert "GiB" in str(reasons["ekfac"])
    assert "training" in str(reasons["magic"])
    assert reasons["trackstar_p16"] is None


def test_inner_products_are_compared_with_those_of_autograd(case: Case) -> None:
    modules = ("h.1.attn.c_proj", "h.0.mlp.c_fc")
    model = case.model.model
    weights = [model.get_submodule(f"transformer.{name}").weight for name in modules]
    rows = []
    for text in (*case.queries, *case.documents):
        ids = torch.from_numpy(text.ids)
        labels = torch.where(torch.from_numpy(text.labels), ids, -100)
        for weight in weights:
            weight.requires_grad_(True)  # type: ignore[operator]
        loss = cross_entropy(model(ids[None]).logits[0, :-1], labels[1:], reduction="sum")
        gradients = torch.autograd.grad(loss, weights)  # type: ignore[arg-type]
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    products = torch.stack(rows[:3]) @ torch.stack(rows[3:]).T
    table = ScoreTable("", products.numpy(), modules, 0, 0, 0, {}, [])
    assert largest_deviation(case, table) < 1e-5
    assert largest_deviation(case, replace(table, scores=table.scores[:, ::-1].copy())) > 0.1
