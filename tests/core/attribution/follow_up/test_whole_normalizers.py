"""An index of whitened rows fits the roots of whole gradients again when they are first asked for."""

import math
import time
from pathlib import Path

import pytest
import torch

from bergson_core import AttributionIndex, append_documents, build_index, take_down_document
from bergson_core.attribution.follow_up import whole_normalizers
from bergson_core.errors import InvalidInput
from bergson_core.gradients.normalizers.normalizers import KfacNormalizer
from bergson_core.gradients.processor_fitting import fit_processor_from_batches
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import AppendSpec
from bergson_core.schemas.results import Answer
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.tokenization import tokenize
from bergson_core.utils.background import run_to_completion
from tests import tiny
from tests.core.helpers import make_spec, query

KFAC = {"projection_dim": 4, "normalizer": "kfac", "rows": "sign"}
DOCUMENTS = 40


def in_float64(name: str, revision: str | None = None, dtype: str = "float32") -> LanguageModel:
    return load_model(name, revision, "float64")


@pytest.fixture
def facts(sources, tmp_path) -> Path:
    """An index of K-FAC-whitened rows."""
    build_index(make_spec(sources, gradients=KFAC), tmp_path / "facts", shard_rows=16)
    return tmp_path / "facts"


def rescore(opened: AttributionIndex, until: float = math.inf, on_step=lambda: None) -> Answer:
    asked = query(rescore=8, top_k=8)
    (plain,) = opened.attribute([asked.for_search()])
    return run_to_completion(opened.follow_up(asked, plain, rescore_until=until), on_step)


def test_the_roots_are_those_that_the_build_would_have_fitted(facts):
    opened = AttributionIndex.open(facts, load_model=in_float64)
    answer = rescore(opened)
    assert (answer.rescored.candidates, answer.rescored.exact) == (8, 8)
    model = opened.model
    documents = tokenize(model.tokenizer, tiny.texts(DOCUMENTS), None)
    expected = fit_processor_from_batches(
        model, opened.collector.modules, iter_batches(documents, 64), opened.manifest.spec.gradients
    )
    fitted = opened.rescorer.whole_normalizers.processor
    assert list(fitted.normalizers) == list(expected.normalizers)
    for name, normalizer in fitted.normalizers.items():
        assert isinstance(normalizer, KfacNormalizer)
        for part, tensor in normalizer.tensors().items():
            torch.testing.assert_close(
                tensor, expected.normalizers[name].tensors()[part], rtol=1e-5, atol=1e-7
            )


def test_what_was_fitted_is_kept_when_there_is_no_time_for_the_rest(facts, monkeypatch):
    opened = AttributionIndex.open(facts)
    assert rescore(opened, until=0).rescored.exact == 0
    assert opened.rescorer.whole_normalizers._fitting is None, "nothing is begun that nobody waits for"
    now = 0.0

    def tick() -> float:
        nonlocal now
        now += 1.0
        return now

    exact = []
    monkeypatch.setattr(time, "time", tick)
    while not exact or exact[-1] == 0:
        now = 0.0
        exact.append(rescore(opened, until=6).rescored.exact)
        assert len(exact) < 100
    assert len(exact) > 2


def test_two_queries_that_need_the_roots_at_the_same_time_both_get_them(facts):
    opened = AttributionIndex.open(facts)
    others: list[int] = []

    def ask_another() -> None:
        if len(others) < 3:
            others.append(-1)
            others[others.index(-1)] = rescore(opened).rescored.exact

    assert rescore(opened, on_step=ask_another).rescored.exact == 8
    assert others == [8, 8, 8]


def test_documents_that_were_taken_down_or_appended_are_not_in_the_sample(facts, monkeypatch):
    append_documents(
        facts, AppendSpec(documents=({"id": "new", "text": "Person 1", "source": "x", "number": 1},))
    )
    for number in (3, 20):
        take_down_document(facts, f"doc-{number}")
    samples = []
    original = whole_normalizers.choose_sample

    def record(*arguments):
        samples.append(original(*arguments))
        return samples[-1]

    monkeypatch.setattr(whole_normalizers, "choose_sample", record)
    opened = AttributionIndex.open(facts)
    assert rescore(opened).rescored.exact == 8
    texts = [text for number, text in enumerate(tiny.texts(DOCUMENTS)) if number not in (3, 20)]
    expected = tokenize(opened.model.tokenizer, texts, None)
    (sample,) = samples
    assert [tokens.ids.tolist() for tokens in sample] == [tokens.ids.tolist() for tokens in expected]


def test_roots_that_do_not_fit_into_memory_are_refused_with_their_size(facts, monkeypatch):
    monkeypatch.setattr(whole_normalizers, "free_memory_bytes", lambda device: 2**10)
    (refused,) = AttributionIndex.open(facts).attribute([query(rescore=8)])
    assert isinstance(refused, InvalidInput)
    assert "leave `rescore` out" in str(refused)
