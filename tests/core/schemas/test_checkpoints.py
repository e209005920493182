"""Which checkpoints a build may name, and how."""

from typing import Any

import pytest

from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.build_parts.checkpoints import split_revision
from bergson_core.storage.locations import locate_sources

DATASET = {"dataset": {"path": "documents.jsonl"}}


def test_the_last_checkpoint_is_the_model() -> None:
    spec = BuildSpec(models=["org/run@step1", "org/run@step2"], **DATASET)
    assert (spec.model, spec.revision, spec.checkpoints) == ("org/run", "step2", 2)
    assert BuildSpec.model_validate_json(spec.model_dump_json()) == spec
    assert BuildSpec(model="a", **DATASET).checkpoints == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/run@step1", ("org/run", "step1")),
        ("run@main", ("run", "main")),
        ("org/run", ("org/run", None)),
        ("/runs/a@b", ("/runs/a@b", None)),
        ("./run@b", ("./run@b", None)),
        ("a/b/c@d", ("a/b/c@d", None)),
    ],
)
def test_a_revision_follows_the_id_of_a_hub_model(name: str, expected: tuple[str, str | None]) -> None:
    assert split_revision(name) == expected


def test_local_checkpoints_have_absolute_paths_and_hub_ids_keep_their_revisions(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "step-2").mkdir()
    located = locate_sources(BuildSpec(models=["org/run@step1", "./step-2"], **DATASET))
    assert located.models == ("org/run@step1", str(tmp_path / "step-2"))
    assert located.model == located.models[-1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "model: required"),
        ({"models": []}, "model: required"),
        ({"models": ["a"]}, "at least 2 checkpoints"),
        ({"models": ["a", "b", "a"]}, "checkpoint 2: expected each checkpoint once"),
        ({"models": ["a", ""]}, "checkpoint 1: expected 1 to"),
        ({"models": [f"run-{k}" for k in range(33)]}, "at most 32"),
        ({"models": ["a", "b"], "model": "c"}, "either `model` or `models`"),
        ({"models": ["a", "b"], "model": "b", "revision": "main"}, "id@revision"),
        ({"models": ["a", "b"], "columns": {"chosen": "c", "rejected": "r"}}, "weighed by one model"),
        ({"models": ["a", "b"], "device_map": "auto"}, "take turns on one device"),
        ({"models": ["a", "b"], "gradients": {"optimizer_state": "x.pt", "normalizer": "adam"}}, "alone"),
    ],
)
def test_what_checkpoints_do_not_compose_with_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        BuildSpec(**DATASET, **fields)


def test_a_build_of_one_model_has_the_fingerprint_that_it_had() -> None:
    """Indexes of earlier releases are recognised by it."""
    spec = BuildSpec(model="gpt2", **DATASET)
    assert spec.fingerprint() == spec.model_copy(update={"models": ()}).fingerprint()
    assert spec.fingerprint() != BuildSpec(models=["a", "gpt2"], **DATASET).fingerprint()
