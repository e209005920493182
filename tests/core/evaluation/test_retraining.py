"""Retraining on subsets of the documents, by the built-in loop and by a command: losses are stored, runs resumed."""

import json
import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bergson_core.errors import InvalidInput
from bergson_core.evaluation.retraining import losses_after_retraining, random_subsets
from bergson_core.evaluation.trainers import BuiltInTrainer, CommandTrainer, require_placeholders
from bergson_core.models.forward_backward import compute_document_losses
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.loading import load_model
from bergson_core.schemas.training import TrainingSchedule
from bergson_core.tokens.tokenization import Tokens, tokenize
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
    """The first three documents, of which the first three tokens are a prompt."""
    return [replace(document, labels=np.arange(len(document.ids)) >= 3) for document in trainer.documents[:3]]


def all_but(number: int) -> np.ndarray:
    """The mask of the subset that leaves one document out."""
    return np.arange(len(TEXTS)) != number


def test_losses_depend_on_subset_and_seed_and_are_the_same_when_computed_again(trainer, tmp_path):
    query_tokens = queries(trainer)
    subsets, seeds = [all_but(3), all_but(3), all_but(4), all_but(3)], [0, 0, 0, 1]
    first = losses_after_retraining(trainer, subsets[:1], seeds[:1], query_tokens, tmp_path / "once")
    losses = losses_after_retraining(trainer, subsets, seeds, query_tokens, tmp_path / "again")
    np.testing.assert_array_equal(losses[0], first[0])
    assert len(list((tmp_path / "again").iterdir())) == 3, "equal runs share a file"
    assert len({tuple(row) for row in losses.tolist()}) == 3


def test_training_lowers_the_losses_of_its_documents(trainer, model, tmp_path):
    query_tokens, untrained = queries(trainer), load_model(str(model))
    before = compute_document_losses(untrained, query_tokens)
    assert (losses_after_retraining(trainer, [all_but(11)], [0], query_tokens, tmp_path) < before).all()
    scratch = replace(trainer, scratch=True)
    assert (losses_after_retraining(scratch, [all_but(11)], [0], query_tokens, tmp_path) != before).all()


def test_stored_losses_are_used_again_only_for_equal_settings_and_queries(trainer, tmp_path, monkeypatch):
    query_tokens, subsets = queries(trainer), [all_but(0)]
    losses = losses_after_retraining(trainer, subsets, [0], query_tokens, tmp_path)
    monkeypatch.setattr(BuiltInTrainer, "train", lambda *_: pytest.fail("was computed again"))
    np.testing.assert_array_equal(
        losses_after_retraining(trainer, subsets, [0], query_tokens, tmp_path), losses
    )
    for other in (replace(trainer, sha256="1" * 64), replace(trainer, schedule=replace(SHORT, epochs=2))):
        with pytest.raises(pytest.fail.Exception):
            losses_after_retraining(other, subsets, [0], query_tokens, tmp_path)
    with pytest.raises(pytest.fail.Exception):
        losses_after_retraining(trainer, subsets, [0], query_tokens[:2], tmp_path)


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
    np.testing.assert_allclose(losses[0], compute_document_losses(load_model(str(model)), queries(trainer)))


@dataclass(frozen=True)
class EitherTrainer:
    """Trains with the command for the seed 0, and with the loop for other seeds."""

    loop: BuiltInTrainer
    command: CommandTrainer

    def cache_key(self) -> dict[str, Any]:
        return {"loop": self.loop.cache_key(), "command": self.command.cache_key()}

    def train(self, subset: np.ndarray, seed: int) -> LanguageModel:
        return (self.loop if seed else self.command).train(subset, seed)


@pytest.mark.filterwarnings("error:resource_tracker")  # The pool starts this process too.
def test_runs_in_several_processes_give_the_losses_of_runs_in_one(trainer, model, tmp_path, monkeypatch):
    """The processes import nothing of the working directory, but a command may."""
    (tmp_path / "mine").mkdir()
    for name in ("multiprocessing", "pickle", "socket"):
        (tmp_path / "mine" / f"{name}.py").write_text("raise SystemExit('a stray file was imported')")
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    script = tmp_path / "train.py"
    script.write_text(
        "import os, shutil, sys\nassert 'PYTHONSAFEPATH' not in os.environ\nshutil.copytree(*sys.argv[2:])\n"
    )
    command = CommandTrainer(
        f"{sys.executable} {script} {{dataset}} {model} {{output}}", [{"text": text} for text in TEXTS]
    )
    either, subsets, progress = EitherTrainer(trainer, command), random_subsets(len(TEXTS), 4, 0.5, 0), []
    run = partial(losses_after_retraining, either, subsets, [0, 0, 1, 2], queries(trainer))
    together = run(tmp_path / "2", processes=2, on_run=lambda *counts: progress.append(counts))
    assert "PYTHONSAFEPATH" not in os.environ
    np.testing.assert_array_equal(together, run(tmp_path / "1"))
    assert progress == [(done, 4) for done in range(5)]


def test_the_error_quotes_the_first_failed_run_and_the_losses_of_the_others_are_stored(
    trainer, model, tmp_path
):
    rows = [{"text": text} for text in TEXTS]
    command = CommandTrainer(COPY.replace("MODEL", str(model)), rows)
    subsets = [np.arange(12) < 6, all_but(0), np.arange(12) < 7]
    with pytest.raises(InvalidInput, match=r"1 of 3 training runs failed, .* run 1: .*eleven is too few"):
        losses_after_retraining(command, subsets, [0, 0, 0], queries(trainer), tmp_path)
    stored = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    assert [len(losses) for losses in stored] == [3, 3]


def test_a_command_that_leaves_no_model_or_does_not_exist_is_an_error(trainer, tmp_path):
    half = [np.arange(12) < 6]
    for command, message in [
        ("true {dataset} {output}", "no model directory"),
        ("no-such-program", "cannot be run"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            losses_after_retraining(CommandTrainer(command, [{}] * 12), half, [0], queries(trainer), tmp_path)
    with pytest.raises(InvalidInput, match=r"has no \{output\}"):
        require_placeholders("python train.py {dataset}")


def test_random_subsets_have_their_share_of_the_documents_and_are_seeded():
    subsets = random_subsets(100, 5, 0.3, seed=1)
    assert [int(subset.sum()) for subset in subsets] == [30] * 5
    assert all((a == b).all() for a, b in zip(subsets, random_subsets(100, 5, 0.3, seed=1), strict=True))
    assert any((a != b).any() for a, b in zip(subsets, random_subsets(100, 5, 0.3, seed=2), strict=True))
