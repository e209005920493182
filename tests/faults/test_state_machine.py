"""Random changes of indexes under random faults, compared after each step with a model in memory.

The state machines and the changes that they make are in `tests/faults/state_machine`.
"""

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.faults.state_machine.documents import Sources
from tests.faults.state_machine.index_machine import IndexMachine
from tests.faults.state_machine.reference_scores import ReferenceScores
from tests.faults.state_machine.service_machine import WEB_PROCESSES, WORKERS, ServiceMachine
from tests.faults.support.system import System


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
            suppress_health_check=tuple(HealthCheck),
        ),
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ReferenceScores:
    directory = tmp_path_factory.mktemp("reference")
    sources = Sources(directory)
    sources.write()
    return ReferenceScores(sources, directory)


def test_indexes_are_what_the_changes_made_of_them_whatever_was_killed(
    tmp_path: Path, reference: ReferenceScores, long_form: bool
) -> None:
    sources, numbers = Sources(tmp_path, shard_rows=3), count()
    sources.write()

    def make_machine() -> IndexMachine:
        directory = tmp_path / f"machine-{next(numbers)}"
        directory.mkdir()
        return IndexMachine(directory, sources, reference)

    run_machine(make_machine, examples=100 if long_form else 6, steps=25, is_random=long_form)


@pytest.mark.e2e
def test_the_service_shows_what_its_jobs_made_of_the_indexes_whatever_was_killed(
    start_system: Callable[..., System], tmp_path: Path, reference: ReferenceScores, long_form: bool
) -> None:
    system = start_system(max_deliveries=1000)
    sources = Sources(tmp_path)
    sources.write()
    for _ in range(WEB_PROCESSES):
        system.start_web()
    for _ in range(WORKERS):
        system.start_worker()
    numbers = count()

    def make_machine() -> ServiceMachine:
        return ServiceMachine(system, sources, reference, f"machine-{next(numbers)}")

    run_machine(
        make_machine, examples=40 if long_form else 3, steps=30 if long_form else 12, is_random=long_form
    )
