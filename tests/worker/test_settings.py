"""Settings from the environment."""

from pathlib import Path

import pytest

from bergson_core.errors import InvalidInput
from worker.settings import Settings


def test_the_environment_configures_a_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("REDIS_URL", "redis://there")
    monkeypatch.setenv("BERGSON_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("BERGSON_ALLOWED_ROOTS", "/models:/corpora")
    monkeypatch.setenv("BERGSON_QUERY_BATCH", "7")
    settings = Settings()
    assert (settings.redis_url, settings.query_batch) == ("redis://there", 7)
    assert settings.allowed_roots == (Path("/models"), Path("/corpora"))
    assert settings.indexes_dir == tmp_path / "indexes"


def test_only_the_data_directory_is_readable_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert Settings().readable_roots == (tmp_path / "data",)


def test_an_allowed_directory_that_does_not_exist_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BERGSON_ALLOWED_ROOTS", f"{tmp_path}:{tmp_path / 'nope'}")
    with pytest.raises(InvalidInput, match=f"BERGSON_ALLOWED_ROOTS: no directory at {tmp_path}/nope"):
        Settings().require_roots()
    monkeypatch.setenv("BERGSON_ALLOWED_ROOTS", str(tmp_path))
    Settings().require_roots()


def test_the_log_level_may_be_in_capitals(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BERGSON_LOG_LEVEL", "WARNING")
    assert Settings().log_level == "warning"


def test_every_setting_has_a_description():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
