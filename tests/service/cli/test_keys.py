"""`bergson keys`: a key is printed once, listed without its secret, and revoked by its name."""

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from bergson_core.errors import InvalidInput
from service.auth.api_keys import KeyFile
from service.cli import app


@pytest.fixture(autouse=True)
def _data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERGSON_DATA_DIR", str(tmp_path))


def keys(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments], env={"COLUMNS": "160"})


def test_a_key_is_all_that_create_prints_and_does_what_it_was_made_for(tmp_path: Path) -> None:
    limits = ("--rate", "100/minute", "--concurrent", "4", "--expires", "30", "--without-text")
    made = keys("create", "ada", "--scope", "write", "--index", "facts-*", "--index", "news", *limits)
    assert made.exit_code == 0, made.output
    found = KeyFile(tmp_path).find(made.stdout.strip())
    assert found is not None and found.expires_at is not None
    assert (found.name, found.scope, found.indexes) == ("ada", "write", ("facts-*", "news"))
    assert (found.rate, found.concurrent, found.text) == ("100/minute", 4, False)
    assert found.expires_at - found.created_at == pytest.approx(30 * 24 * 3600, abs=1)


def test_keys_are_listed_without_their_secrets_until_they_are_revoked() -> None:
    assert "no keys" in keys("list").stdout
    secret = keys("create", "ada", "--scope", "read", "--rate", "5/second").stdout.strip().split("_", 2)[2]
    listed = keys("list").stdout
    assert "ada" in listed and "5/second" in listed and secret not in listed
    assert keys("revoke", "ada").stdout == "ada is revoked\n"
    assert "ada" not in keys("list").stdout
    assert isinstance(keys("revoke", "ada").exception, InvalidInput)


@pytest.mark.parametrize(
    "wrong", [("--scope", "root"), ("--concurrent", "0"), ("--expires", "0"), ("--rate", "x")]
)
def test_a_key_that_makes_no_sense_is_not_made(tmp_path: Path, wrong: tuple[str, str]) -> None:
    assert keys("create", "ada", "--scope", "read", *wrong).exit_code != 0
    assert KeyFile(tmp_path).read() is None
