"""How calls to a Redis that does not answer are repeated. No time passes: pauses are recorded instead."""

from itertools import pairwise

import pytest
from redis import RedisError

from worker.queue.redis_retry import MAX_PAUSE_S, MIN_PAUSE_S, retry_redis


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Lengths in seconds of the pauses that were made."""
    lengths: list[float] = []
    monkeypatch.setattr("time.sleep", lengths.append)
    return lengths


class Flaky:
    """Fails `failures` times, and returns the number of calls from then on."""

    def __init__(self, failures: int, error: type[Exception] = RedisError):
        self.calls, self._failures, self._error = 0, failures, error

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self._failures:
            raise self._error(f"failure {self.calls}")
        return self.calls


def never(pause_s: float) -> bool:
    return False


def test_a_call_is_repeated_until_redis_answers(pauses: list[float]):
    assert retry_redis(Flaky(3), never) == 4
    assert pauses == [0.05, 0.1, 0.2]


def test_pauses_double_up_to_a_bound_however_long_redis_is_away(pauses: list[float]):
    retry_redis(Flaky(2000), never)
    assert pauses[0] == MIN_PAUSE_S and set(pauses[5:]) == {MAX_PAUSE_S}
    assert all(later <= 2 * earlier for earlier, later in pairwise(pauses))


def test_the_caller_gives_up_before_a_pause_of_which_it_knows_the_length(pauses: list[float]):
    call = Flaky(2000)
    with pytest.raises(RedisError, match="failure 6"):
        retry_redis(call, give_up=lambda pause_s: pause_s >= MAX_PAUSE_S)
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8]


def test_other_errors_are_not_repeated(pauses: list[float]):
    call = Flaky(1, ValueError)
    with pytest.raises(ValueError, match="failure 1"):
        retry_redis(call, never)
    assert call.calls == 1 and pauses == []


def test_the_log_has_the_first_error_and_those_of_a_long_outage(
    pauses: list[float], caplog: pytest.LogCaptureFixture
):
    retry_redis(Flaky(7), never)
    logged = [record.getMessage().rpartition(" ")[2] for record in caplog.records]
    assert logged == ["1", "6", "7"]
