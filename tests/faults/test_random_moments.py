"""Workers die, freeze and stop at random moments, while indexes are built and changed, and asked all the time."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count

import pytest

from tests.faults.support.crew import Crew, Misfortune
from tests.faults.support.invariants import (
    hash_index,
    require_drained,
    require_no_leftovers,
    require_one_end,
)
from tests.faults.support.reader import Reader
from tests.faults.support.system import System
from tests.faults.support.workload import ADDED, INLINE, QUERIES, Workload

pytestmark = pytest.mark.e2e

MAX_GROWTH_BYTES = 150 * 2**20
TAKEN_DOWN = {"build": ("doc-3", "added-1"), "inline": ("inline-3", "added-1")}
DOCUMENTS = {
    "build": [f"doc-{k}" for k in range(40)],
    "inline": [document["id"] for document in INLINE],
}


class Story:
    """The life of an index: it is built, grows, gets a profile, loses two documents, and is compacted.

    Attributes:
        reader: Asks the index all the time.
    """

    def __init__(self, workload: Workload, kind: str, name: str):
        self._workload, self._kind, self._name = workload, kind, name
        built, all_ids = DOCUMENTS[kind], DOCUMENTS[kind] + [document["id"] for document in ADDED]
        self.reader = Reader(workload.system.urls[0], name, {1: built, 2: all_ids, 3: all_ids, 4: all_ids})

    def live(self) -> dict[str, str]:
        """Runs the jobs one after the other, beside the reader; returns the hashes of the index at its end."""
        is_over = threading.Event()
        with ThreadPoolExecutor(1) as thread:
            reading = thread.submit(self.reader.ask_until, is_over)
            try:
                self._run_jobs()
            finally:
                is_over.set()
            reading.result()
        return hash_index(self._workload.system.data_dir / "indexes" / self._name)

    def _run_jobs(self) -> None:
        client, name = self._workload.client, self._name
        self._workload.wait(self._workload.submit(self._kind, name))
        self._workload.wait(client.append(name, documents=list(ADDED)))
        self._workload.wait(client.fit_profile(name, "task", queries=QUERIES, mixing=0.5))
        for document_id in TAKEN_DOWN[self._kind]:
            self.reader.asked_to_hide.add(document_id)
            client.take_down(name, document_id)
            self.reader.hidden.add(document_id)
        self._workload.wait(client.compact(name))


@pytest.fixture
def system(start_system: Callable[..., System]) -> System:
    system = start_system(lease_s=0.6, max_deliveries=1000)
    system.start_web()
    return system


def test_nothing_is_lost_and_no_reader_sees_half_a_generation(system, seeded, long_form, record):
    with system.client() as client, Crew(system, 3, freeze_s=1.5) as crew:
        workload = Workload(system, client)
        kinds = list(DOCUMENTS) if long_form else [seeded.choice(list(DOCUMENTS))]
        calm = crew.run(Story(workload, kind, f"calm-{kind}").live for kind in kinds)
        expected = dict(zip(kinds, calm, strict=True))
        misfortune = Misfortune(crew, seeded, 100 if long_form else 5)
        memory_before, faults = system.web_processes[0].memory_bytes(), misfortune.remaining
        numbers = count()

        def tell_stories(kind: str) -> int:
            asked = 0
            while misfortune.remaining:
                story = Story(workload, kind, f"{kind}-{next(numbers)}")
                assert story.live() == expected[kind]
                assert story.reader.answered
                asked += story.reader.asked
            return asked

        asked = sum(crew.run([partial(tell_stories, kind) for kind in kinds], misfortune, 1200))
        with system.connect_redis() as redis:
            require_drained(redis)
            jobs = [require_one_end(redis, job.job_id) for job in client.jobs()]
        crew.finish()
        growth = system.web_processes[0].memory_bytes() - memory_before
    record(promise="jobs survive what happens to workers at random moments", runs=len(jobs), kills=faults)
    record(promise="each query gets one answer, of one generation", runs=asked, kills=faults)
    require_no_leftovers(system.data_dir)
    assert growth < MAX_GROWTH_BYTES
    assert misfortune.peak_memory_bytes < 2 * 2**30
