"""A preview of unlearning moves the weights by one step on all documents together, measures, and restores them."""

import math
from pathlib import Path

import pytest
import torch

from bergson_core import AttributionIndex, build_index, preview_unlearning, take_down_document
from bergson_core.errors import BergsonError, Cancelled, DocumentNotFound, IndexCorrupt, InvalidInput, TooLong
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import GradientSpec
from bergson_core.schemas.results import Progress
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.schemas.unlearning.results import UnlearnPreview
from bergson_core.schemas.unlearning.spec import UnlearnSpec, WatchedQuery
from bergson_core.tokens.tokenization import tokenize
from bergson_core.utils.background import run_to_completion
from tests import reference, tiny
from tests.core.helpers import copy_weights, make_spec, query, write_lines

QUERIES = [
    {"prompt": "Person 3 lives in", "completion": " city 1."},
    {"prompt": "Person 3 lives in", "completion": " city 1.", "instead_of": " city 2."},
]
CONTROL = [{"prompt": "Person 5 works", "completion": " for company 2."}]
IDS = ("doc-3", "doc-10", "doc-17")


@pytest.fixture
def opened(index: Path) -> AttributionIndex:
    return AttributionIndex.open(index)


def in_float64(name: str, revision: str | None = None, dtype: str = "float32") -> LanguageModel:
    return load_model(name, revision, "float64")


def test_the_changes_are_those_of_a_step_on_the_sum_of_the_losses_by_plain_autograd(index, monkeypatch):
    monkeypatch.setattr("bergson_core.tokens.batching._CPU_STEP_TOKENS", 24)  # several batches
    opened = AttributionIndex.open(index, load_model=in_float64)
    preview = preview_unlearning(opened, QUERIES, ids=IDS, control=CONTROL, learning_rate=1e-3)
    model, tokenizer = opened.model.model, opened.model.tokenizer
    documents = tokenize(tokenizer, tiny.texts(40), None)
    group = [documents[int(document_id.removeprefix("doc-"))] for document_id in IDS]
    texts = [(QUERIES[0]["prompt"], " city 1."), (QUERIES[0]["prompt"], " city 2.")]
    texts.append((CONTROL[0]["prompt"], CONTROL[0]["completion"]))
    said, other, control = tokenize(tokenizer, *map(list, zip(*texts, strict=True)))
    unlearner = run_to_completion(opened.verifier.fitted_unlearner())

    def log_probabilities() -> list[float]:
        with torch.no_grad():
            return [-float(reference.loss_of(model, text)) for text in (said, other, control, *group)]

    before = log_probabilities()
    model.requires_grad_(True).zero_grad()
    sum(reference.loss_of(model, document) for document in group).backward()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            moment = unlearner.second_moments[name]
            whole = moment[0] if len(moment) == 1 else moment[0][:, None] * moment[1] / moment[0].mean()
            weight += 1e-3 * weight.grad / (whole + 0.01 * whole.mean()).sqrt()
    after = log_probabilities()

    def share(log_p: list[float]) -> float:
        return math.exp(log_p[0]) / (math.exp(log_p[0]) + math.exp(log_p[1]))

    plain, contrast = preview.queries
    assert (plain.before, plain.after) == (
        pytest.approx(before[0], rel=1e-6),
        pytest.approx(after[0], rel=1e-6),
    )
    assert plain.log_probability == pytest.approx(after[0] - before[0], rel=1e-6)
    assert plain.probability == pytest.approx(math.exp(after[0]) - math.exp(before[0]), rel=1e-6)
    assert contrast.before == pytest.approx(before[0] - before[1], rel=1e-6)
    assert contrast.log_probability == pytest.approx(
        (after[0] - after[1]) - (before[0] - before[1]), rel=1e-6
    )
    assert contrast.probability == pytest.approx(share(after) - share(before), rel=1e-6)
    assert preview.control[0].log_probability == pytest.approx(after[2] - before[2], rel=1e-6)
    assert preview.own_log_probability == pytest.approx(sum(after[3:]) - sum(before[3:]), rel=1e-6)
    assert preview.mean == pytest.approx((plain.log_probability + contrast.log_probability) / 2)
    assert preview.control_mean == preview.control[0].log_probability
    assert (preview.documents, preview.left_out, preview.generation) == (3, 0, 1)


def test_a_preview_of_one_document_is_what_verification_says_of_it(opened):
    (answer,) = opened.attribute([query(verify={"top": 1, "controls": 0})])
    row = answer.results[0]
    asked = {"prompt": query().prompt, "completion": query().completion}
    preview = preview_unlearning(opened, [asked], ids=[row.id])
    assert preview.learning_rate == answer.verification.learning_rate
    assert preview.queries[0].log_probability == pytest.approx(row.verified.log_probability)
    assert preview.queries[0].probability == pytest.approx(row.verified.probability)
    assert preview.own_log_probability == pytest.approx(row.verified.own_log_probability)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_are_the_models_own_whenever_progress_is_reported_and_afterwards(
    index, monkeypatch, dtype
):
    monkeypatch.setattr("bergson_core.tokens.batching._CPU_STEP_TOKENS", 12)
    opened = AttributionIndex.open(
        index, load_model=lambda name, revision, _: load_model(name, revision, dtype)
    )
    before, stages = copy_weights(opened.model.model), []

    def check(progress: Progress) -> None:
        stages.append(progress.stage)
        assert all(
            torch.equal(weight, before[name]) for name, weight in copy_weights(opened.model.model).items()
        )
        assert progress.total == 0 or progress.done <= progress.total

    preview_unlearning(opened, QUERIES, ids=IDS, control=CONTROL, report=check)
    check(Progress())
    assert {"read", "statistics", "gradients", "measure"} < set(stages)
    assert stages.count("measure") > 2, "texts are measured in batches"
    assert not any(
        weight.requires_grad or weight.grad is not None for weight in opened.model.model.parameters()
    )


def test_queries_are_answered_in_between_as_they_are_without_a_preview(opened):
    (expected,) = opened.attribute([query(verify={"top": 1, "controls": 1})])
    answers = []

    def ask(progress: Progress) -> None:
        if progress.stage == "measure":
            answers.extend(opened.attribute([query(verify={"top": 1, "controls": 1})]))

    alone = preview_unlearning(opened, QUERIES, ids=IDS)
    assert preview_unlearning(opened, QUERIES, ids=IDS, report=ask) == alone
    assert answers
    for answer in answers:
        assert (answer.results, answer.verification) == (expected.results, expected.verification)


@pytest.mark.parametrize("stage", ["read", "statistics", "gradients", "measure"])
def test_a_preview_that_is_stopped_leaves_nothing_behind(opened, stage):
    before = copy_weights(opened.model.model)

    def stop(progress: Progress) -> None:
        if progress.stage == stage:
            raise Cancelled("stopped by the test")

    with pytest.raises(Cancelled):
        preview_unlearning(opened, QUERIES, ids=IDS, report=stop)
    assert all(torch.equal(weight, before[name]) for name, weight in copy_weights(opened.model.model).items())
    assert not any(
        weight.requires_grad or weight.grad is not None for weight in opened.model.model.parameters()
    )
    assert preview_unlearning(opened, QUERIES, ids=IDS).documents == 3


def test_a_filter_chooses_all_documents_that_meet_it(opened):
    numbers = [number for number in range(40) if 5 <= number < 9]
    chosen = preview_unlearning(opened, QUERIES, filter={"number": {"gte": 5, "lt": 9}})
    by_ids = preview_unlearning(opened, QUERIES, ids=[f"doc-{number}" for number in numbers])
    assert chosen == by_ids
    assert chosen.documents == 4


def test_the_id_of_a_document_that_was_cut_stands_for_all_of_its_chunks(sources, tmp_path):
    write_lines(
        tmp_path / "long.jsonl",
        {"text": "the city 3 is large and " * 8, "id": "a"},
        {"text": "b c d", "id": "b"},
    )
    spec = make_spec(
        sources,
        dataset={"path": str(tmp_path / "long.jsonl")},
        columns=ColumnsSpec(id="id"),
        gradients=GradientSpec(projection_dim=4, max_tokens=16),
        long_documents="chunk",
    )
    build_index(spec, tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    chunks = [id for id in opened.shards[0].documents["id"].to_pylist() if id.startswith("a#")]
    assert len(chunks) > 1
    whole = preview_unlearning(opened, QUERIES, ids=["a"])
    assert whole.documents == len(chunks)
    assert whole == preview_unlearning(opened, QUERIES, ids=chunks)
    assert preview_unlearning(opened, QUERIES, ids=chunks[:1]).documents == 1


def test_unlearning_what_states_a_fact_lowers_it_more_than_a_control_query(opened):
    text = tiny.texts(40)[3]
    asked = {"prompt": text[:8], "completion": text[8:]}
    preview = preview_unlearning(opened, [asked], ids=["doc-3"], control=CONTROL)
    assert preview.mean < 0
    assert preview.mean < preview.control_mean


def test_documents_without_a_gradient_are_left_out_and_counted(sources, tmp_path):
    spec = make_spec(
        sources,
        dataset=None,
        documents=({"text": "a"}, {"text": "a b c"}, {"text": "d e f"}),
        columns=ColumnsSpec(),
    )
    build_index(spec, tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    preview = preview_unlearning(opened, QUERIES, ids=["0", "1"])
    assert (preview.documents, preview.left_out) == (1, 1)
    assert preview.queries == preview_unlearning(opened, QUERIES, ids=["1"]).queries
    with pytest.raises(InvalidInput, match="none of the 1 documents has a gradient"):
        preview_unlearning(opened, QUERIES, ids=["0"])


def test_a_step_that_breaks_the_model_gives_nulls_and_is_undone(opened):
    before = copy_weights(opened.model.model)
    preview = preview_unlearning(opened, QUERIES, ids=IDS, learning_rate=1e38)
    assert preview.queries[0].before is not None
    assert preview.queries[0].log_probability is None
    assert (preview.mean, preview.own_log_probability) == (None, None)
    assert UnlearnPreview.model_validate_json(preview.model_dump_json()) == preview
    assert all(torch.equal(weight, before[name]) for name, weight in copy_weights(opened.model.model).items())


def test_documents_that_were_taken_down_are_neither_named_nor_met(sources, tmp_path):
    build_index(make_spec(sources), tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    take_down_document(tmp_path / "facts", "doc-3")
    with pytest.raises(DocumentNotFound, match="'doc-3', or it was taken down"):
        preview_unlearning(opened, QUERIES, ids=IDS)
    assert preview_unlearning(opened, QUERIES, filter={"number": {"gte": 3, "lt": 6}}).documents == 2


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"ids": ["doc-1", "none", "nor this"]}, DocumentNotFound, "no document 'none', 'nor this'"),
        ({"ids": ["doc-1"] * 2}, InvalidInput, "ids.1: expected each document once, got 'doc-1'"),
        ({"ids": []}, InvalidInput, "ids: expected at least 1"),
        ({"ids": None}, InvalidInput, "either `ids` or `filter`, got neither"),
        ({"filter": {"number": 1}}, InvalidInput, "either `ids` or `filter`, got both"),
        ({"ids": None, "filter": {"number": 99}}, InvalidInput, "no document of the index meets it"),
        ({"ids": None, "filter": {"colour": 1}}, InvalidInput, "no metadata column 'colour'"),
        ({"ids": None, "filter": {"number": "x"}}, InvalidInput, "holds whole numbers|expected"),
        ({"max_documents": 2}, InvalidInput, "3 documents are to be unlearned together; expected at most 2"),
        ({"queries": []}, InvalidInput, "queries: expected at least 1"),
        ({"queries": [{"prompt": "a"}]}, InvalidInput, "queries.0.completion: expected a completion"),
        ({"queries": [{"completion": "a"}]}, InvalidInput, "queries.0.prompt: expected a prompt"),
        ({"queries": [{"prompt": "a", "completion": " b", "top_k": 3}]}, InvalidInput, "no such field"),
        ({"queries": QUERIES[:1] * 257}, InvalidInput, "at most 256"),
        ({"control": QUERIES[1:]}, InvalidInput, "control.0: .*got the same as queries.1"),
        ({"control": []}, InvalidInput, "control: expected at least 1"),
        ({"queries": [QUERIES[0], {"prompt": "a " * 99, "completion": " b"}]}, TooLong, "^queries.1: "),
        ({"control": [{"prompt": "a " * 99, "completion": " b"}]}, TooLong, "^control.0: "),
        ({"control": [{"prompt": "", "completion": "a"}]}, InvalidInput, "^control.0: nothing to attribute"),
        ({"queries": [{"prompt": "a", "completion": " b", "instead_of": " b"}]}, InvalidInput, "instead_of"),
        ({"learning_rate": 0}, InvalidInput, "learning_rate: expected more than 0"),
    ],
)
def test_a_bad_preview_is_refused_before_anything_is_computed(opened, monkeypatch, fields, error, message):
    monkeypatch.delattr("bergson_core.attribution.verification.Verifier.fitted_unlearner")
    arguments = {"queries": QUERIES, "ids": IDS} | fields
    with pytest.raises(error, match=message):
        preview_unlearning(opened, **arguments)


def test_an_index_of_a_training_run_and_one_with_damaged_shards_are_refused(opened, monkeypatch):
    monkeypatch.setattr(
        opened.verifier, "_manifest", opened.manifest.model_copy(update={"origin": "training"})
    )
    with pytest.raises(InvalidInput, match="no preview of unlearning"):
        preview_unlearning(opened, QUERIES, ids=IDS)
    monkeypatch.undo()
    object.__setattr__(opened.searcher, "damaged", {"00000": "a file is missing"})
    with pytest.raises(IndexCorrupt, match="00000"):
        preview_unlearning(opened, QUERIES, ids=IDS)


def test_a_spec_comes_back_from_json_as_it_was():
    spec = UnlearnSpec(ids=IDS, queries=QUERIES, control=CONTROL)
    assert UnlearnSpec.model_validate_json(spec.model_dump_json()) == spec
    assert isinstance(spec.queries[0], WatchedQuery)
    assert issubclass(DocumentNotFound, BergsonError)
