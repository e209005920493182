"""Paths on the command line: `~` is the home directory in every one, and none is empty."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bergson_core.errors import BergsonError
from service.cli import app
from service.cli.query import _parse_messages
from service.cli.support.service_options import apply_settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home directory, which is not the working directory."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    for name in ("DATA_DIR", "ALLOWED_ROOTS"):
        monkeypatch.setenv(f"BERGSON_{name}", "")  # Put back what a command sets.
    return tmp_path / "home"


def run(line: str) -> Result:
    return CliRunner().invoke(app, line.split())


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("query ~/facts --prompt a", "facts"),
        ("info ~/facts", "facts"),
        ("checksum ~/facts", "facts"),
        ("compact ~/facts", "facts"),
        ("takedown ~/facts a", "facts"),
        ("list ~/facts", "facts"),
        ("relocate ~/facts --dataset=~/data", "facts"),
        ("self_influence ~/facts --output=~/no/scores.csv", "no"),
        ("self_influence ~/facts --output=~/scores.csv", "facts"),
    ],
)
def test_the_home_directory_stands_for_a_tilde_that_the_shell_left(line: str, path: str, home: Path) -> None:
    result = run(line)
    assert isinstance(result.exception, BergsonError)
    assert str(home / path) in str(result.exception)


def test_an_index_below_a_tilde_is_built_in_the_home_directory(home: Path) -> None:
    (home / "facts").write_text("in the way")
    result = run("~/facts --model ~/model --dataset ~/data.jsonl")
    assert str(home / "facts") in str(result.exception)


def test_data_and_keys_are_in_the_home_directory_where_a_tilde_says_so(home: Path) -> None:
    assert run("keys create ada --scope read --data_dir=~/data").exit_code == 0
    assert (home / "data" / "keys.json").is_file()


def test_messages_are_read_from_the_home_directory(home: Path) -> None:
    (home / "chat.json").write_text(json.dumps([{"role": "user", "content": "Hi"}]))
    assert _parse_messages("~/chat.json")[0]["content"] == "Hi"


@pytest.mark.parametrize(
    "line",
    [
        ("relocate", "facts", "--model", ""),
        ("relocate", "facts", "--model="),
        ("query", "", "--prompt", "a"),
        ("list", ""),
        ("", "--model", "m", "--dataset", "d"),
        ("keys", "list", "--data_dir", ""),
    ],
)
def test_an_empty_path_is_not_the_working_directory(line: tuple[str, ...], home: Path) -> None:
    result = CliRunner().invoke(app, line)
    assert result.exit_code != 0
    assert "expected a path, got an empty text" in result.stderr + str(result.exception)


def test_allowed_directories_are_separated_as_in_the_setting(home: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (home / name).mkdir()
    settings = apply_settings(allow=[Path(f"{home}/a:~/b"), Path("../home/c")])
    assert settings.readable_roots == (home / "a", home / "b", home / "c")


@pytest.mark.parametrize("allowed", ["missing", "~/missing", ".:missing", "missing:.", "file"])
def test_a_directory_to_allow_has_to_exist(allowed: str, home: Path) -> None:
    Path("file").touch()
    result = run(f"worker --allow={allowed}")
    assert isinstance(result.exception, BergsonError)
    name = str(home / "missing") if "~" in allowed else str(Path.cwd() / allowed.strip(".:"))
    assert str(result.exception).startswith(f"--allow: no directory at {name}")
