"""Training again on parts of the data: by our own loop and by a command, kept, resumed, and clear where it fails."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bergson_core.data.batching import Tokens, tokenize
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.retraining import (
    BuiltInTrainer,
    CommandTrainer,
    check_command,
    losses_after_retraining,
    random_subsets,
)
from bergson_core.models.forward_backward import document_losses
from bergson_core.models.loading import load_model
from bergson_core.schemas.training import TrainingSchedule
from tests import tiny

TEXTS = tiny.texts(12)
SHORT = TrainingSchedule(batch_size=4, epochs=1, least_steps=6, learning_rate=1e-2)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trainer(model: Path) -> BuiltInTrainer:
    tokenizer = load_model(str(model)).tokenizer
    assert tokenizer is not None
    return BuiltInTrainer(str(model), tokenize(tokenizer, TEXTS, None), SHORT, False, "0" * 64)


def queries(trainer: BuiltInTrainer) -> list[Tokens]:
    return [replace(one, labels=np.arange(len(one.ids)) >= 3) for one in trainer.documents[:3]]


def all_but(number: int) -> np.ndarray:
    return np.arange(len(TEXTS)) != number


def test_a_run_is_the_same_again_and_another_without_a_document_or_with_another_seed(trainer, tmp_path):
    asked = queries(trainer)
    parts, seeds = [all_but(3), all_but(3), all_but(4), all_but(3)], [0, 0, 0, 1]
    first = losses_after_retraining(trainer, parts[:1], seeds[:1], asked, tmp_path / "once")
    losses = losses_after_retraining(trainer, parts, seeds, asked, tmp_path / "again")
    np.testing.assert_array_equal(losses[0], first[0])
    assert len(list((tmp_path / "again").iterdir())) == 3, "the same run is kept once"
    assert len({tuple(row) for row in losses.tolist()}) == 3


def test_training_lowers_the_loss_of_what_is_kept_in_it(trainer, model, tmp_path):
    asked, untrained = queries(trainer), load_model(str(model))
    before = document_losses(untrained, asked)
    assert (losses_after_retraining(trainer, [all_but(11)], [0], asked, tmp_path) < before).all()
    scratch = replace(trainer, scratch=True)
    assert (losses_after_retraining(scratch, [all_but(11)], [0], asked, tmp_path) != before).all()


def test_what_is_known_is_not_computed_again_and_other_settings_are_other_runs(
    trainer, tmp_path, monkeypatch
):
    asked, part = queries(trainer), [all_but(0)]
    known = losses_after_retraining(trainer, part, [0], asked, tmp_path)
    monkeypatch.setattr(BuiltInTrainer, "run", lambda *_: pytest.fail("was computed again"))
    np.testing.assert_array_equal(losses_after_retraining(trainer, part, [0], asked, tmp_path), known)
    for other in (replace(trainer, sha256="1" * 64), replace(trainer, schedule=replace(SHORT, epochs=2))):
        with pytest.raises(pytest.fail.Exception):
            losses_after_retraining(other, part, [0], asked, tmp_path)
    with pytest.raises(pytest.fail.Exception):
        losses_after_retraining(trainer, part, [0], asked[:2], tmp_path)


def test_runs_side_by_side_give_what_they_give_one_by_one(trainer, tmp_path):
    parts, told = random_subsets(len(TEXTS), 3, 0.5, seed=0), []
    asked = queries(trainer)
    together = losses_after_retraining(
        trainer, parts, [1, 2, 3], asked, tmp_path / "2", processes=2, told=lambda *now: told.append(now)
    )
    np.testing.assert_array_equal(
        together, losses_after_retraining(trainer, parts, [1, 2, 3], asked, tmp_path / "1")
    )
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


COPY = f"""{sys.executable} -c "
import json, shutil, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
if len(rows) == 11: sys.exit('eleven is too few')
shutil.copytree(sys.argv[3], sys.argv[2])
" {{dataset}} {{output}} MODEL"""


def test_a_command_gets_the_documents_and_leaves_a_model(trainer, model, tmp_path):
    rows = [{"id": str(k), "text": text} for k, text in enumerate(TEXTS)]
    command = CommandTrainer(COPY.replace("MODEL", str(model)), rows)
    half = np.arange(12) < 6
    losses = losses_after_retraining(command, [half], [0], queries(trainer), tmp_path)
    np.testing.assert_allclose(losses[0], document_losses(load_model(str(model)), queries(trainer)))


def test_runs_that_fail_are_named_with_their_last_words_and_the_others_are_kept(trainer, model, tmp_path):
    rows = [{"text": text} for text in TEXTS]
    command = CommandTrainer(COPY.replace("MODEL", str(model)), rows)
    parts = [np.arange(12) < 6, all_but(0), np.arange(12) < 7]
    with pytest.raises(InvalidInput, match=r"1 of 3 training runs failed, .* run 1: .*eleven is too few"):
        losses_after_retraining(command, parts, [0, 0, 0], queries(trainer), tmp_path)
    kept = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    assert [len(one) for one in kept] == [3, 3]


def test_a_command_that_leaves_no_model_or_is_none_is_an_error(trainer, tmp_path):
    half = [np.arange(12) < 6]
    for command, says in [
        ("true {dataset} {output}", "no model directory"),
        ("no-such-program", "cannot be run"),
    ]:
        with pytest.raises(InvalidInput, match=says):
            losses_after_retraining(CommandTrainer(command, [{}] * 12), half, [0], queries(trainer), tmp_path)
    with pytest.raises(InvalidInput, match=r"has no \{output\}"):
        check_command("python train.py {dataset}")


def test_random_parts_keep_their_share_and_are_seeded():
    parts = random_subsets(100, 5, 0.3, seed=1)
    assert [int(part.sum()) for part in parts] == [30] * 5
    assert all((a == b).all() for a, b in zip(parts, random_subsets(100, 5, 0.3, seed=1), strict=True))
    assert any((a != b).any() for a, b in zip(parts, random_subsets(100, 5, 0.3, seed=2), strict=True))
