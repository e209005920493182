"""The cache of answers keeps within its memory, whatever is asked."""

import tracemalloc
from pathlib import Path

from bergson_core.schemas.build import BuildSpec
from bergson_core.storage.takedown_log import TakedownLog
from service.indexes.answer_cache import AnswerCache, make_cache_key
from tests.service.fake_broker import make_answer, publish_manifest
from worker.messages import ServiceQuery

MAX_BYTES = 200_000


def make_query(number: int, length: int) -> ServiceQuery:
    return ServiceQuery(index="facts", prompt=f"{number} " + "x" * length, completion="b")


def test_long_queries_and_small_answers_stay_within_the_memory(tmp_path: Path, spec: BuildSpec) -> None:
    publish_manifest(tmp_path, "facts", spec)
    index, cache = tmp_path / "facts", AnswerCache(MAX_BYTES)
    answer = make_answer(make_query(0, 0), [])
    tracemalloc.start()
    try:
        for number in range(2000):
            cache.put(make_cache_key(index, TakedownLog(index), make_query(number, 5000)), answer)
        assert tracemalloc.get_traced_memory()[0] < 2 * MAX_BYTES
    finally:
        tracemalloc.stop()
    newest = make_cache_key(index, TakedownLog(index), make_query(1999, 5000))
    assert cache.get(newest) == answer
    assert cache.get(make_cache_key(index, TakedownLog(index), make_query(0, 5000))) is None


def test_the_memory_of_long_keys_counts() -> None:
    cache, answer = AnswerCache(MAX_BYTES), make_answer(make_query(0, 0), [])
    keys = [("x" * 50_000 + str(number),) for number in range(10)]
    for key in keys:
        cache.put(key, answer)
        cache.put(key, answer)
    assert [cache.get(key) is not None for key in keys] == [False] * 7 + [True] * 3
