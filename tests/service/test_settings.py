"""The settings of web processes and clients, and which addresses are loopback addresses."""

import pytest
from pydantic import ValidationError

from bergson_core.errors import InvalidInput
from scripts.generate_docs import settings_page
from service.settings import ClientSettings, ServiceSettings, describe_unknown_variables, is_loopback
from worker.settings import describe_settings_error, environment_variable


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LocalHost"])
def test_only_this_machine_can_reach_a_loopback_address(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.4", "example.com", "localhost.example.com"])
def test_other_machines_may_reach_any_other_address(host: str) -> None:
    assert not is_loopback(host)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERGSON_PORT", "9000")
    monkeypatch.setenv("BERGSON_ALLOWED_HOSTS", "a.example, b.example")
    settings = ServiceSettings()
    assert (settings.port, settings.allowed_hosts) == (9000, ("a.example", "b.example"))


def test_a_timeout_is_the_default_or_the_requested_one_up_to_the_maximum() -> None:
    settings = ServiceSettings(default_timeout_s=3, max_timeout_s=10)
    assert [settings.resolve_timeout_s(None), settings.resolve_timeout_s(10)] == [3, 10]
    with pytest.raises(InvalidInput, match="at most 10"):
        settings.resolve_timeout_s(10.5)


_VALUES = {
    "executor": "ray",
    "job_share": "0.25",
    "log_format": "json",
    "log_level": "debug",
    "trusted_proxies": "10.0.0.1",
    "max_query_tokens": "2",
}


@pytest.mark.parametrize("settings", [ServiceSettings, ClientSettings])
def test_every_setting_is_in_the_table_under_its_environment_variable(
    settings: type[ServiceSettings | ClientSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = settings_page()
    for name, field in settings.model_fields.items():
        variable = environment_variable(settings, name)
        assert f"| `{variable}` |" in page and field.description
        with monkeypatch.context() as context:
            context.setenv(variable, _VALUES.get(name, "1"))
            assert name in settings().model_fields_set


def test_settings_do_not_show_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://ada:secret@there")
    monkeypatch.setenv("BERGSON_API_KEY", "secret")
    assert (
        "secret" not in f"{ServiceSettings()!r} {ServiceSettings()} {ClientSettings()!r} {ClientSettings()}"
    )


@pytest.mark.parametrize(
    "hosts",
    ["http://x.org", "x.org:80", "x.org/bergson", "::1", "a.example,*.example", "a b", "x@y", "[x.org]"],
)
def test_what_no_host_header_can_match_is_no_allowed_host(
    hosts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BERGSON_ALLOWED_HOSTS", hosts)
    with pytest.raises(ValidationError, match="expected hosts without scheme, port and path"):
        ServiceSettings()


@pytest.mark.parametrize(
    "hosts", ["*", "x.org,10.0.0.5", "[::1],[FE80::1]", "my_host-1", "b\u00fccher.example", ""]
)
def test_names_and_addresses_are_allowed_hosts(hosts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERGSON_ALLOWED_HOSTS", hosts)
    assert ServiceSettings().allowed_hosts == tuple(filter(None, hosts.split(",")))


def test_the_error_of_wrong_settings_names_their_variables_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BERGSON_QUERY_BATCH", "many")
    monkeypatch.setenv("BERGSON_TRUSTED_PROXIES", "x.org")
    with pytest.raises(ValidationError) as caught:
        ServiceSettings()
    query_batch, proxies = describe_settings_error(caught.value, ServiceSettings).split("; BERGSON_")
    assert query_batch.startswith("BERGSON_QUERY_BATCH: ") and query_batch.endswith("got 'many'")
    assert proxies.startswith("TRUSTED_PROXIES: expected addresses such as 10.0.0.5")


def test_variables_that_are_no_settings_bring_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BERGSON_URL", "BERGSON_DATA_DIR", "bergson_log_level", "REDIS_URL"):
        monkeypatch.setenv(name, "debug")
    assert describe_unknown_variables() is None
    monkeypatch.setenv("BERGSON_MAX_QEUED_JOBS", "5")
    monkeypatch.setenv("BERGSON_1", "")
    assert describe_unknown_variables() == (
        "BERGSON_1 is no setting; BERGSON_MAX_QEUED_JOBS is no setting: did you mean BERGSON_MAX_QUEUED_JOBS?"
    )
