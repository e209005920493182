"""Models are trained on a corpus once, and can be trained again on a part of it."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.corpora.registry import CORPORA
from benchmarks.models import smollm2
from benchmarks.models.cases import CASES
from benchmarks.models.fine_tuning import FineTuner, fine_tune
from benchmarks.models.small_models import train_small_model
from bergson_core.errors import ModelNotFound
from bergson_core.models.loading import load_model
from bergson_core.schemas.training import TrainingSchedule
from tests.benchmarks.helpers import make_tiny_corpus

TINY = TrainingSchedule(batch_size=2, epochs=1, least_steps=2)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small_model(make_tiny_corpus(), "llama", tmp_path_factory.mktemp("cache"), TINY)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_small_model_is_trained_once_and_has_seven_or_four_modules_a_layer(
    architecture: str, tmp_path: Path
) -> None:
    steps: list[int] = []
    arguments = make_tiny_corpus(), architecture, tmp_path, TINY
    path = train_small_model(*arguments, progress=lambda step, *_: steps.append(step))
    assert train_small_model(*arguments, progress=lambda step, *_: steps.append(step)) == path
    assert steps == [1, 2]
    assert train_small_model(*arguments, seed=1) != path
    assert len(load_model(str(path)).select_modules()) == 2 * {"gpt2": 4, "llama": 7}[architecture]


def test_full_fine_tuning_changes_the_weights_and_adapters_refer_to_the_model(
    start: Path, tmp_path: Path
) -> None:
    corpus = make_tiny_corpus(chat=True)
    full, lora = (fine_tune(corpus, start, tmp_path, rank, TINY) for rank in (None, 2))
    assert fine_tune(corpus, start, tmp_path, 2, TINY) == lora
    before, after, adapted = (load_model(str(path)) for path in (start, full, lora))
    assert not torch.equal(next(before.model.parameters()), next(after.model.parameters()))
    assert adapted.adapter_base == str(start)
    assert all("lora" in name for name in adapted.select_modules())


@pytest.mark.parametrize("rank", [None, 2])
def test_a_fine_tuned_model_is_trained_again_on_a_subset_in_the_same_way(
    rank: int | None, start: Path
) -> None:
    documents, _ = make_tiny_corpus().tokenize(load_model(str(start)).tokenizer)  # pyright: ignore[reportArgumentType]
    tuner = FineTuner(str(start), documents, TINY, "sha256", rank)
    half, whole = np.array([True, True, False, False]), np.ones(4, dtype=bool)
    weights = [
        torch.cat([weight.flatten() for weight in tuner.train(subset, 3).model.parameters()])
        for subset in (half, half, whole)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_machine_without_the_pretrained_model_gets_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(smollm2, "distribution", missing)
    with pytest.raises(ModelNotFound, match="make quality"):
        smollm2.prepare_smollm2(tmp_path)


def test_every_case_is_of_a_corpus_that_exists() -> None:
    assert {corpus for corpus, _ in CASES.values()} == set(CORPORA)
