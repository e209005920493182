"""`bergson keys` prints a key once, lists keys without their secrets, and revokes a key by its name."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bergson_core.errors import InvalidInput
from service.auth.api_keys import KeyFile
from service.cli import app


@pytest.fixture(autouse=True)
def _data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERGSON_DATA_DIR", str(tmp_path))


def keys(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments], env={"COLUMNS": "160"})


def test_create_prints_only_the_key_which_has_the_rights_that_were_given(tmp_path: Path) -> None:
    limits = ("--rate", "100/minute", "--concurrent", "4", "--expires", "30", "--without-text")
    created = keys("create", "ada", "--scope", "write", "--index", "facts-*", "--index", "news", *limits)
    assert created.exit_code == 0, created.output
    key = KeyFile(tmp_path).find(created.stdout.strip())
    assert key is not None and key.expires_at is not None
    assert (key.name, key.scope, key.indexes) == ("ada", "write", ("facts-*", "news"))
    assert (key.rate, key.concurrent, key.text) == ("100/minute", 4, False)
    assert key.expires_at - key.created_at == pytest.approx(30 * 24 * 3600, abs=1)


def test_create_says_where_the_key_counts_and_warns_if_that_place_is_new(tmp_path: Path) -> None:
    created = keys("create", "ada", "--scope", "read")
    assert f"The key is in {tmp_path / 'keys.json'} and counts for services" in created.stderr
    assert "warning" not in created.stderr
    elsewhere = keys("create", "ada", "--scope", "read", "--data_dir", str(tmp_path / "elsewhere"))
    assert f"warning: {tmp_path / 'elsewhere'} did not exist and was created" in elsewhere.stderr
    assert KeyFile(tmp_path / "elsewhere").find(elsewhere.stdout.strip()) is not None
    again = keys("create", "bob", "--scope", "read", "--data_dir", str(tmp_path / "elsewhere"))
    assert "warning" not in again.stderr


def test_keys_are_listed_without_their_secrets_until_they_are_revoked() -> None:
    assert "no keys" in keys("list").stdout
    secret = keys("create", "ada", "--scope", "read", "--rate", "5/second").stdout.strip().split("_", 2)[2]
    listed = keys("list").stdout
    assert "ada" in listed and "5/second" in listed and secret not in listed
    assert keys("revoke", "ada").stdout == "ada is revoked\n"
    assert "ada" not in keys("list").stdout
    assert isinstance(keys("revoke", "ada").exception, InvalidInput)


@pytest.mark.parametrize(
    "option", [("--scope", "root"), ("--concurrent", "0"), ("--expires", "0"), ("--rate", "x")]
)
def test_no_key_is_created_with_an_invalid_option(tmp_path: Path, option: tuple[str, str]) -> None:
    assert keys("create", "ada", "--scope", "read", *option).exit_code != 0
    assert KeyFile(tmp_path).read() is None
