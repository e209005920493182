"""The file of API keys: what it holds, which keys it finds, and that nobody gets in when it is damaged."""

import logging
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bergson_core.errors import InvalidInput, Unavailable
from bergson_core.utils.atomic_files import write_durably
from service.auth import api_keys
from service.auth.api_keys import KEY_FILE_NAME, Caller, KeyFile


def make_caller(name: str = "ada", **fields: Any) -> Caller:
    return Caller.model_validate({"name": name, "scope": "read"} | fields)


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path)


def test_only_the_key_itself_is_found(file: KeyFile) -> None:
    key, other = file.create(make_caller()), file.create(make_caller("bob"))
    record = file.find(key)
    assert record is not None and record.name == "ada"
    swapped = key[:16] + other[16:]
    last = "B" if key.endswith("A") else "A"
    for wrong in (
        "",
        "bg_",
        key[:-1],
        key[:-1] + last,
        key + "A",
        key.upper(),
        f" {key}",
        f"{key}\n",
        swapped,
    ):
        assert file.find(wrong) is None, wrong


def test_the_file_holds_no_secret_and_only_its_owner_can_read_it(file: KeyFile) -> None:
    secret = file.create(make_caller()).split("_", 2)[2]
    assert secret not in file.path.read_text()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_no_two_keys_are_alike(file: KeyFile) -> None:
    keys = [file.create(make_caller(f"key-{k}")) for k in range(5)]
    parts = {part for key in keys for part in key.split("_", 2)[1:]}
    assert len(parts) == 10
    assert all(len(key.split("_", 2)[2]) == 43 for key in keys), "256 bits in base64"


def test_a_key_is_valid_until_it_expires(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    key = file.create(make_caller(), expires_at=1010.0)
    assert file.find(key) is not None
    monkeypatch.setattr("time.time", lambda: 1010.0)
    assert file.find(key) is None


def test_a_change_by_one_process_takes_effect_in_another_at_once(file: KeyFile, tmp_path: Path) -> None:
    other = KeyFile(tmp_path)
    assert other.read() is None
    key = file.create(make_caller())
    assert other.find(key) is not None
    file.revoke("ada")
    assert other.find(key) is None
    assert other.read() == (), "the file stays, so that the last revocation opens nothing"


def test_keys_that_are_created_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    def make(name: str) -> None:
        KeyFile(tmp_path).create(make_caller(name))

    threads = [threading.Thread(target=make, args=(f"key-{k}",)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(KeyFile(tmp_path).read() or ()) == 8


def test_a_name_is_unique_and_is_free_again_after_the_revocation(file: KeyFile) -> None:
    file.create(make_caller())
    with pytest.raises(InvalidInput, match="revoke it first"):
        file.create(make_caller())
    file.revoke("ada")
    file.create(make_caller())
    with pytest.raises(InvalidInput, match="no key named 'bob'"):
        file.revoke("bob")


def test_a_file_that_is_a_link_to_itself_lets_nobody_in_and_is_logged_once(
    file: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    key = file.create(make_caller())
    good = file.path.read_bytes()
    file.path.unlink()
    file.path.symlink_to(file.path)
    for _ in range(3):
        with pytest.raises(Unavailable, match="cannot be read"):
            file.find(key)
    assert len(caplog.records) == 1
    file.path.unlink()
    file.path.write_bytes(good)
    assert file.find(key) is not None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}', '{"keys": [{"id": "x"}]}', "\x00" * 9])
def test_a_damaged_file_lets_nobody_in_and_is_logged_once(
    file: KeyFile, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = file.create(make_caller())
    good = file.path.read_bytes()
    file.path.write_text(content)
    for _ in range(3):
        with pytest.raises(Unavailable, match="cannot be read"):
            file.find(key)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert KEY_FILE_NAME in caplog.text
    with pytest.raises(Unavailable):
        file.create(make_caller("bob"))
    assert file.path.read_text() == content, "the damaged file is not overwritten"
    file.path.write_bytes(good)
    assert file.find(key) is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "a b"},
        {"scope": "root"},
        {"indexes": ["Facts"]},
        {"indexes": [""]},
        {"rate": "soon"},
        {"rate": "0/minute"},
        {"rate": "1/second;5/minute"},
        {"concurrent": 0},
    ],
)
def test_invalid_fields_of_a_key_are_refused(file: KeyFile, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        file.create(make_caller(**fields))
    assert file.read() is None


def test_each_scope_includes_those_before_it() -> None:
    allowed = {
        scope: [other for other in ("read", "write", "admin") if make_caller(scope=scope).has_scope(other)]
        for scope in ("read", "write", "admin")
    }
    assert allowed == {"read": ["read"], "write": ["read", "write"], "admin": ["read", "write", "admin"]}


def test_patterns_decide_which_indexes_a_key_can_see() -> None:
    limited = make_caller(indexes=["facts-*", "news"])
    assert [limited.can_see(name) for name in ("facts-1", "news", "facts", "news-1")] == [
        True,
        True,
        False,
        False,
    ]
    assert [caller.can_see(None) for caller in (limited, make_caller())] == [False, True], (
        "belongs to no index"
    )


def test_a_kill_while_the_first_key_is_made_lets_nobody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []

    def die(path: Path, content: bytes) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path.name)
        write_durably(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(api_keys, "write_durably", die)
        with pytest.raises(KeyboardInterrupt):
            KeyFile(tmp_path).create(make_caller())
    assert KeyFile(tmp_path).read() == ()
    KeyFile(tmp_path).create(make_caller())
    assert [key.name for key in KeyFile(tmp_path).read() or ()] == ["ada"]
