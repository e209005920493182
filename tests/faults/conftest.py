"""Fixtures of the tests of faults.

`make test` runs them in a short form of a minute and a half, without the tests that are marked `long`: each of them
tries at other moments what a test of the short form tries too. `make faults` sets FAULTS=long, which runs them whole,
in half an hour. What is random is drawn from a seed, FAULTS_SEED (0 by default), so that a run can be repeated.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.faults.support.figures import Figures, add_up, format_table
from tests.faults.support.system import System

IS_LONG_FORM: Final = os.environ.get("FAULTS") == "long"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the tests that are marked `long` to the long form."""
    if not IS_LONG_FORM:
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def long_form() -> bool:
    """Whether the tests run whole (FAULTS=long) instead of in the short form."""
    return IS_LONG_FORM


@pytest.fixture
def seeded(request: pytest.FixtureRequest) -> random.Random:
    """A generator of random numbers for this test, from FAULTS_SEED and the name of the test."""
    seed = f"{os.environ.get('FAULTS_SEED', '0')}/{request.node.name}"
    print(f"seed: {seed}")
    return random.Random(seed)


@pytest.fixture
def start_system(tmp_path: Path, require: Callable[..., str]) -> Iterator[Callable[..., System]]:
    """`start_system(**settings)` starts Redis, for a system below tmp_path whose processes the test starts.

    All processes end with the test.
    """
    with ExitStack() as stack:

        def start(**settings: object) -> System:
            return stack.enter_context(System(tmp_path, require("redis-server"), **settings))

        yield start


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`record(promise="…", runs=…, kills=…, lost=…)` puts figures into the table that ends the run.

    A test records them before its last assertion, so that they are in the table also if it fails.
    """

    def add(**figures: object) -> None:
        request.node.user_properties.append(Figures(**figures).to_property())  # pyright: ignore[reportArgumentType]

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what docs/reliability.md quotes."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    figures = add_up(entry for report in reports for entry in report.user_properties)
    if figures:
        terminalreporter.section("promises put to the test")
        for line in format_table(figures):
            terminalreporter.write_line(line)
