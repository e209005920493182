"""Random changes of indexes under random faults, compared after each step with a model in memory.

The state machines and the changes that they make are in `tests/faults/state_machine`.
"""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.faults.state_machine.changes import (
    Append,
    Build,
    Callbacks,
    Change,
    Compact,
    FitProfile,
    TakeDown,
)
from tests.faults.state_machine.comparing import require_equal_files
from tests.faults.state_machine.deaths import WRITTEN_SHARES, Death, run_and_die
from tests.faults.state_machine.documents import Document, Sources
from tests.faults.state_machine.index_machine import IndexMachine
from tests.faults.state_machine.index_model import read_state
from tests.faults.state_machine.reference_scores import ReferenceScores
from tests.faults.state_machine.service_machine import WEB_PROCESSES, WORKERS, ServiceMachine
from tests.faults.support.system import System

PROMISE = "after any sequence of changes and faults, answers are those of the documents that are visible"


def run_machine(
    make_machine: Callable[[], RuleBasedStateMachine], *, examples: int, steps: int, is_random: bool
) -> None:
    """Runs a state machine so many times with so many steps.

    Args:
        make_machine: Makes a new machine.
        examples: Number of machines.
        steps: Number of steps of each of them.
        is_random: Whether FAULTS_SEED decides what is drawn; otherwise it is always the same.
    """
    if is_random:
        make_machine = seed(os.environ.get("FAULTS_SEED", "0"))(make_machine)
    run_state_machine_as_test(
        cast("type[RuleBasedStateMachine]", make_machine),  # a function will do
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=not is_random,
            deadline=None,
            database=None,
            phases=(Phase.generate,),  # a failure shows its steps, and is not made shorter
            suppress_health_check=(
                HealthCheck.too_slow,
                HealthCheck.data_too_large,
                HealthCheck.filter_too_much,
            ),
        ),
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ReferenceScores:
    directory = tmp_path_factory.mktemp("reference")
    sources = Sources(directory)
    sources.write()
    return ReferenceScores(sources, directory)


CHANGES = (Build(0), Append((Document(9), Document(10), Document(1, 1))), Compact(), FitProfile("people"))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: type(change).__name__)
def test_a_change_that_is_killed_at_any_write_is_made_or_not_and_leaves_nothing_once_it_is_made_again(
    tmp_path: Path, change: Change, seeded: random.Random, long_form: bool, record: Callable[..., None]
) -> None:
    sources, base = Sources(tmp_path, shard_rows=3), tmp_path / "base"
    sources.write()
    if not isinstance(change, Build):
        Build(0).run(base, sources)
        TakeDown("doc-1").run(base, sources)

    def copy_base(name: str) -> Path:
        return shutil.copytree(base, tmp_path / name) if base.exists() else tmp_path / name

    undisturbed, before = copy_base("undisturbed"), read_state(base)
    change.run(undisturbed, sources, key="job")
    write, kills = 1, 0
    while True:
        index = copy_base(f"killed-{write}")
        death = Death(write, seeded.choice(WRITTEN_SHARES))
        if not run_and_die(death, change.run, index, sources, Callbacks(), "job"):
            break
        assert read_state(index) in (before, read_state(undisturbed))
        change.run(index, sources, key="job")
        require_equal_files(index, undisturbed, f"{change} died at {death}")
        shutil.rmtree(index)
        write, kills = write + (1 if long_form else seeded.randrange(15, 40)), kills + 1
    record(promise="a process that is killed at a write costs nothing", runs=kills, kills=kills)
    assert kills


def test_indexes_are_what_the_changes_made_of_them_whatever_was_killed(
    tmp_path: Path, reference: ReferenceScores, long_form: bool, record: Callable[..., None]
) -> None:
    sources, numbers, tally = Sources(tmp_path, shard_rows=3), count(), Counter[str]()
    sources.write()

    def make_machine() -> IndexMachine:
        directory = tmp_path / f"machine-{next(numbers)}"
        directory.mkdir()
        return IndexMachine(directory, sources, reference, tally)

    run_machine(make_machine, examples=60 if long_form else 2, steps=20, is_random=long_form)
    record(promise=PROMISE, runs=tally["changes"], kills=tally["kills"])


@pytest.mark.e2e
def test_the_service_shows_what_its_jobs_made_of_the_indexes_whatever_was_killed(
    start_system: Callable[..., System],
    tmp_path: Path,
    reference: ReferenceScores,
    long_form: bool,
    record: Callable[..., None],
) -> None:
    system = start_system(max_deliveries=1000)  # so that no job is given up, however many workers are killed
    sources, numbers, tally = Sources(tmp_path), count(), Counter[str]()
    sources.write()
    for _ in range(WEB_PROCESSES):
        system.start_web()
    for _ in range(WORKERS):
        system.start_worker()

    def make_machine() -> ServiceMachine:
        return ServiceMachine(system, sources, reference, f"machine-{next(numbers)}", tally)

    examples, steps = (40, 30) if long_form else (2, 12)
    run_machine(make_machine, examples=examples, steps=steps, is_random=long_form)
    record(promise=PROMISE, runs=tally["changes"], kills=tally["kills"])
