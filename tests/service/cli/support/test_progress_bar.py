"""The progress bar names a stage when it begins."""

import io

import pytest
from rich.console import Console

from bergson_core.schemas.results import Progress
from service.cli.support import console
from service.cli.support.console import progress_bar

NAMED = [
    Progress(stage="load"),
    Progress(stage="gradients", total=512),
    Progress(stage="preconditioner"),
    Progress(stage="measure", unit="queries"),
]


def show(monkeypatch: pytest.MonkeyPatch, reports: list[Progress], *, terminal: bool) -> str:
    """Returns what is printed until the last of these reports has been shown."""
    output = io.StringIO()
    fake = Console(file=output, force_terminal=terminal, width=120, color_system=None)
    monkeypatch.setattr(console, "error_console", fake)
    with progress_bar() as callback:
        for progress in reports:
            callback(progress)
    return output.getvalue()


@pytest.mark.parametrize("count", range(1, len(NAMED) + 1))
def test_a_terminal_shows_a_stage_before_anything_of_it_is_done(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    output = show(monkeypatch, NAMED[:count], terminal=True)
    for progress in NAMED[:count]:
        assert progress.stage in output


def test_a_stage_that_is_over_is_shown_as_done(monkeypatch: pytest.MonkeyPatch) -> None:
    output = show(monkeypatch, NAMED[:2], terminal=True)
    last = output.rpartition("load")[2].splitlines()[0]
    assert "1/1" in last


def test_other_outputs_have_only_stages_that_count_something(monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(monkeypatch, [NAMED[0]], terminal=False) == ""
    output = show(monkeypatch, [*NAMED, Progress(stage="done", done=512, total=512)], terminal=False)
    assert "gradients" in output
    assert not any(name in output for name in ("load", "measure", "done"))
