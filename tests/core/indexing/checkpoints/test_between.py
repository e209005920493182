"""Why the later of two checkpoints says a completion: scores over the checkpoints that the steps between began from."""

from pathlib import Path

import pytest
import torch

from bergson_core import AttributionIndex, AttributionQuery, build_index, influence_totals
from bergson_core.attribution.corpus_scores import score_corpus
from bergson_core.errors import InvalidInput
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import BuildSpec, GradientSpec, ScoringSpec
from bergson_core.tokens.tokenization import tokenize
from tests import reference
from tests.core.helpers import make_spec
from tests.core.indexing.checkpoints.test_checkpoint_scores import (
    COMPLETION,
    PROMPT,
    P,
    scores_at_checkpoint,
)

RANGES = {(0, 1): [0], (1, 2): [1], (0, 2): [0, 1], (0, -1): [0, 1], (-2, -1): [1]}
"""`between` → the checkpoints that a score is the mean over."""


@pytest.fixture(scope="module", params=["row", "block", "none"])
def plain_spec(request: pytest.FixtureRequest, sources: Path, run: list[str]) -> BuildSpec:
    return make_spec(
        sources,
        model=run[-1],
        models=run,
        dtype="float64",
        gradients=GradientSpec(projection_dim=P, normalizer="none"),
        scoring=ScoringSpec(normalize=request.param, preconditioner=False),
    )


def test_a_score_is_the_mean_over_the_checkpoints_before_the_later_one(
    plain_spec: BuildSpec, run: list[str], tmp_path: Path
) -> None:
    build_index(plain_spec, tmp_path / "index", shard_rows=16)
    index = AttributionIndex.open(tmp_path / "index")
    normalize = plain_spec.scoring.normalize
    at = torch.stack([scores_at_checkpoint(path, n, plain_spec, normalize) for n, path in enumerate(run)])
    for between, numbers in RANGES.items():
        answer = index.query(PROMPT, COMPLETION, top_k=40, between=between)
        scores = {row.id: row.score for row in answer.results or ()}
        got = torch.tensor([scores[f"doc-{k}"] for k in range(40)], dtype=torch.float64)
        tolerance = 2e-3 * float(at.abs().max())
        torch.testing.assert_close(got, at[numbers].mean(0), rtol=2e-3, atol=tolerance)
        query = AttributionQuery(prompt=PROMPT, completion=COMPLETION)
        table = score_corpus(index, [query], between=between).read_all()
        torch.testing.assert_close(
            torch.tensor(table["score"].to_pylist()).double(), got, rtol=1e-4, atol=1e-6
        )


def test_totals_are_sums_of_the_scores_between_the_checkpoints(checkpoint_index: Path) -> None:
    index = AttributionIndex.open(checkpoint_index)
    question = {"prompt": PROMPT, "completion": COMPLETION, "by": "source", "threshold": 0}
    for between in (None, (0, 1), (-2, -1)):
        answer = index.query(PROMPT, COMPLETION, top_k=40, between=between)
        totals = influence_totals(index, question | {"between": between})
        assert totals.sum == pytest.approx(sum(row.score for row in answer.results or ()), abs=1e-3)
        for group in totals.groups:
            low, high = group.interval
            assert low < group.sum < high
    with pytest.raises(InvalidInput, match="between"):
        influence_totals(index, question | {"between": (1, 7)})


def test_the_answer_tells_what_the_checkpoints_make_of_the_completion(
    checkpoint_index: Path, run: list[str]
) -> None:
    index = AttributionIndex.open(checkpoint_index)
    expected = []
    for directory in run:
        model = load_model(directory, dtype="float64")
        (tokens,) = tokenize(model.tokenizer, [PROMPT], [COMPLETION], label_end=False)
        expected.append(float(reference.loss_of(model.model, tokens)))
    for earlier, later in ((0, 1), (0, 2), (1, 2)):
        answer = index.query(PROMPT, COMPLETION, between=(earlier, later))
        assert answer.query.losses_between == pytest.approx((expected[earlier], expected[later]), rel=1e-5)
        assert answer.query.loss == pytest.approx(expected[2], rel=1e-5)
        warned = "not_learned" in {warning.code for warning in answer.warnings}
        assert warned == (expected[later] >= expected[earlier])
        assert answer.notice is None
        assert {row.strength for row in answer.results or ()} == {None}, "no threshold was calibrated for it"
    assert index.query(PROMPT, COMPLETION).query.losses_between is None


def test_ranges_are_answered_beside_each_other_and_compose(checkpoint_index: Path) -> None:
    index = AttributionIndex.open(checkpoint_index)
    asked = {"prompt": PROMPT, "completion": COMPLETION, "top_k": 5, "direction": "both"}
    queries = [AttributionQuery(**asked, between=between) for between in (None, (0, 1), (0, 2), (0, 1))]
    together = index.attribute(queries)
    for query, answer in zip(queries, together, strict=True):
        (alone,) = index.attribute([query])
        assert [row.id for row in answer.results] == [row.id for row in alone.results]
        assert [row.score for row in answer.results] == pytest.approx([row.score for row in alone.results])
    composed = index.query(
        PROMPT,
        COMPLETION,
        between=(0, 1),
        instead_of=" city 2.",
        direction="both",
        filter={"source": "wiki"},
        include=["modules", "tokens", "metadata"],
        verify={"top": 1, "controls": 1},
        top_k=3,
    )
    for row in (*composed.results, *composed.opponents):
        assert row.metadata["source"] == "wiki"
        assert sum(row.modules.values()) == pytest.approx(row.score, abs=1e-5)
        assert sum(token.influence for token in row.tokens) == pytest.approx(row.score, abs=1e-5)
        assert all(value == 0 for name, value in row.modules.items() if not name.startswith("checkpoint-0."))


@pytest.mark.parametrize(
    ("between", "message"),
    [
        ((0, 3), "checkpoints 0 to 2; there is no 3"),
        ((-4, 1), "there is no -4"),
        ((1, 1), "an earlier and a later checkpoint, got 1 and 1"),
        ((-1, 0), "got 2 and 0"),
    ],
)
def test_checkpoints_that_there_are_not_are_refused(
    checkpoint_index: Path, between: tuple[int, int], message: str
) -> None:
    index = AttributionIndex.open(checkpoint_index)
    query = AttributionQuery(prompt=PROMPT, completion=COMPLETION)
    with pytest.raises(InvalidInput, match=message):
        index.query(PROMPT, COMPLETION, between=between)
    with pytest.raises(InvalidInput, match=message):
        score_corpus(index, [query], between=between)


def test_an_index_of_one_model_and_queries_with_their_own_ranges_are_refused(
    index: Path, checkpoint_index: Path
) -> None:
    with pytest.raises(InvalidInput, match="built with `models`; this one has one model"):
        AttributionIndex.open(index).query(PROMPT, COMPLETION, between=(0, -1))
    query = AttributionQuery(prompt=PROMPT, completion=COMPLETION, between=(0, 1))
    with pytest.raises(InvalidInput, match="query 0 has its own checkpoints"):
        score_corpus(AttributionIndex.open(checkpoint_index), [query])
