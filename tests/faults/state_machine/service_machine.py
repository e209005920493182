"""`ServiceMachine`: random changes of indexes through two web processes and two workers, which are killed and frozen.

Jobs run while other steps are made: queries, takedowns, calls that have to be refused, and faults. After each step an
answer of any web process has to be that of the model in memory, before or after the job that runs.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from bergson_core.errors import (
    BergsonError,
    DocumentNotFound,
    IdsExist,
    IndexBusy,
    IndexExists,
    IndexNotFound,
)
from bergson_core.schemas.results import Answer
from service.client import Client
from tests.faults.state_machine.changes import (
    Append,
    Build,
    Change,
    Compact,
    Delete,
    FitProfile,
    TakeDown,
    possible_changes,
)
from tests.faults.state_machine.comparing import questions, require_equal_files, require_refused
from tests.faults.state_machine.documents import QUERIES, Document, Sources
from tests.faults.state_machine.reference_scores import Question, ReferenceScores
from tests.faults.state_machine.served_index import ServedIndex
from tests.faults.support.invariants import require_drained, require_one_end
from tests.faults.support.system import System, SystemProcess, wait_for_end
from worker.messages import FINAL_STATES, JobRecord

WEB_PROCESSES, WORKERS = 2, 2
NAMES = ("alpha", "beta")
PAST_LEASE_S = 2.5
FAULTS = ("kill worker", "freeze worker", "kill Redis", "kill worker", "freeze worker", "kill web process")


class ServiceMachine(RuleBasedStateMachine):
    """Changes two indexes of a running service.

    Args:
        system: The service, with two web processes and two workers. It may have served another machine before.
        sources: What the indexes are built from.
        reference: The scores that they have to give.
        prefix: Beginning of the names of the indexes.
        tally: Counts the changes, and the processes that were killed or frozen.
    """

    def __init__(
        self,
        system: System,
        sources: Sources,
        reference: ReferenceScores,
        prefix: str,
        tally: Counter[str],
    ):
        super().__init__()
        self._system, self._sources, self._reference = system, sources, reference
        self._tally = tally
        self._indexes = {name: ServedIndex(f"{prefix}-{name}") for name in NAMES}
        self._clients = {number: system.client(number) for number in self._live_web_processes()}
        self._frozen: SystemProcess | None = None
        self._ended: list[JobRecord] = []

    @rule()
    def list_indexes(self) -> None:
        """Every web process lists the indexes that are there."""
        for client in self._clients.values():
            listed = {item.name: item.state for item in client.indexes()}
            for index in self._indexes.values():
                states = {"ready" if model else None for model in index.models}
                assert listed.get(index.name) in states | ({"building"} if index.pending else set()), listed

    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def change(self, data: st.DataObject, name: str) -> None:
        """Submits a change, or makes it. What is refused while a job is at work changes nothing."""
        index, client = self._indexes[name], self._draw_client(data)
        model = index.model
        change = data.draw(possible_changes(model))
        if index.pending and not isinstance(change, TakeDown):
            self._collide(index, client, change)
            return
        if index.pending and model is not None and len(model.documents) == 1:
            return  # whether a compaction fails would depend on the moment
        job = change.submit(client, index.name, self._sources)
        self._tally["changes"] += 1
        if job is None:
            index.record(change)
            self._check(index, data)
        else:
            index.pending, index.takedowns_meanwhile = (change, job), 0

    change_more_often = change

    @precondition(lambda self: any(index.model for index in self._indexes.values()))
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        """Asks several queries at once; one of them names a profile that is not there."""
        index, client = self._draw_index(data, lambda index: index.model), self._draw_client(data)
        assert index.model is not None
        asked = data.draw(st.lists(questions(index.model), min_size=1, max_size=3))
        unknown = replace(asked[0], profile="unknown")
        queries = [question.fields(index=index.name) for question in (*asked, unknown)]
        *answers, refused = client.attribute_batch(queries)
        assert isinstance(refused, BergsonError) and refused.code == "invalid_input", refused
        for question, answer in zip(asked, answers, strict=True):
            self._require_right(index, question, answer)
        first = client.attribute(index.name, *QUERIES[0], top_k=1000, direction="both")
        self._require_right(index, Question(*QUERIES[0]), first)

    @precondition(lambda self: any(index.pending for index in self._indexes.values()))
    @rule(data=st.data(), is_cancelled=st.sampled_from([False, False, True]))
    def finish(self, data: st.DataObject, is_cancelled: bool) -> None:
        """Waits for a job that is at work. If it is cancelled it is done all the same, or nothing of it is there."""
        index, client = self._draw_index(data, lambda index: index.pending), self._draw_client(data)
        assert index.pending is not None
        if is_cancelled:
            client.cancel(index.pending[1])
        self._finish(index, client, may_be_cancelled=is_cancelled)
        self._check(index, data)

    @precondition(lambda self: any(index.model for index in self._indexes.values()))
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        """Asks for what cannot be done."""
        index, client = self._draw_index(data, lambda index: index.model), self._draw_client(data)
        model = index.model
        assert model is not None
        require_refused(DocumentNotFound, lambda: client.take_down(index.name, "doc-99"))
        if index.pending:
            return
        require_refused(IndexExists, lambda: Build(1 - model.base).submit(client, index.name, self._sources))
        if model.documents:
            document = data.draw(st.sampled_from(sorted(model.documents.values(), key=lambda each: each.id)))
            append = Append((Document(99), document))
            require_refused(IdsExist, lambda: append.submit(client, index.name, self._sources))
        if model.profiles:
            again = FitProfile(model.profiles[0]).submit(client, index.name, self._sources)
            assert self._wait_for_end(client, again).state == "failed"

    @rule(fault=st.sampled_from(FAULTS), number=st.integers(0, 1))
    def disturb(self, fault: str, number: int) -> None:
        """Kills a process with `kill -9` and starts another one; or stops a worker until somebody waits for a job."""
        self._tally["kills"] += 1
        if fault == "kill worker":
            self._kill_worker(self._live_workers()[number])
        elif fault == "freeze worker":
            self._thaw()
            self._frozen = self._live_workers()[number]
            self._frozen.freeze()
        elif fault == "kill Redis":
            assert self._system.redis_process is not None
            self._system.redis_process.kill()
            self._system.start_redis()
        else:
            self._kill_web_process(sorted(self._clients)[number])

    def teardown(self) -> None:
        """Waits for all jobs, and compares what is left with the model and with undisturbed indexes."""
        try:
            if sys.exception() is None:
                self._compare_all()
        finally:
            self._thaw()
            for client in self._clients.values():
                client.close()

    def _compare_all(self) -> None:
        client = next(iter(self._clients.values()))
        for index in self._indexes.values():
            if index.pending:
                self._finish(index, client)
            for each in self._clients.values():
                self._check_from(index, each, 0)
        self._thaw()
        with self._system.connect_redis() as redis:
            require_drained(redis)
            for job in self._ended:
                require_one_end(redis, job.job_id, job.state)
        for index in self._indexes.values():
            if index.history:
                self._compare_with_undisturbed(index)
                client.delete_index(index.name)

    def _compare_with_undisturbed(self, index: ServedIndex) -> None:
        twin = self._sources.directory / "undisturbed" / index.name
        for change, job_id in index.history:
            change.run(twin, self._sources, key=job_id)
        require_equal_files(self._path(index), twin, str(index.history))

    def _collide(self, index: ServedIndex, client: Client, change: Change) -> None:
        """Makes a call that has to be refused because a job is at work, unless that job has just ended."""
        assert index.pending is not None
        busy = IndexBusy
        if isinstance(change, Build):
            busy = IndexExists
        elif isinstance(change, Delete):
            return  # would delete the index if the job has just ended
        try:
            job = change.submit(client, index.name, self._sources)
        except busy:
            return
        except (IdsExist, IndexNotFound):
            self._finish(index, client)
            return
        ended = client.job(index.pending[1])
        assert ended.state in FINAL_STATES, ended
        self._finish(index, client)
        assert job is not None
        index.pending, index.takedowns_meanwhile = (change, job), 0

    def _finish(self, index: ServedIndex, client: Client, *, may_be_cancelled: bool = False) -> None:
        assert index.pending is not None
        change, job = index.pending
        model = index.model
        ended = self._wait_for_end(client, job)
        if model is not None and not change.is_possible(model):
            assert ended.state == "failed" or (may_be_cancelled and ended.state == "cancelled"), ended
        elif ended.state == "succeeded" and isinstance(change, Compact):
            detail = client.index(index.name)
            assert detail.compacted is not None and detail.generation is not None
            index.record_compaction(job.job_id, detail.compacted, detail.generation)
        elif ended.state == "succeeded":
            index.record(change, job.job_id)
        else:
            assert may_be_cancelled and ended.state == "cancelled", ended
        index.pending, index.takedowns_meanwhile = None, 0

    def _wait_for_end(self, client: Client, job: JobRecord) -> JobRecord:
        if self._frozen:
            time.sleep(PAST_LEASE_S)
            self._thaw()
        ended = wait_for_end(client, job)
        self._ended.append(ended)
        return ended

    def _check(self, index: ServedIndex, data: st.DataObject) -> None:
        """Compares what a web process says of an index with what may be."""
        self._check_from(index, self._draw_client(data), data.draw(st.integers(0, len(QUERIES) - 1)))

    def _check_from(self, index: ServedIndex, client: Client, query: int) -> None:
        model = index.model
        if index.pending is None and model is None:
            require_refused(IndexNotFound, lambda: client.index(index.name))
            require_refused(IndexNotFound, lambda: client.attribute(index.name, *QUERIES[0]))
        if index.pending or model is None:
            return
        detail = client.index(index.name)
        assert (detail.generation, detail.rows) == (model.generation, model.rows)
        assert (detail.taken_down, detail.state) == (model.taken_down, "ready")
        assert {*detail.profiles} == {"default", *model.profiles}
        answer = client.attribute(index.name, *QUERIES[query], top_k=1000, direction="both")
        self._require_right(index, Question(*QUERIES[query]), answer)
        for document in (Document(number) for number in range(3)):
            if shown := model.documents.get(document.id):
                assert client.document(index.name, document.id).prompt == shown.text
            else:
                require_refused(DocumentNotFound, lambda: client.document(index.name, document.id))  # noqa: B023

    def _require_right(self, index: ServedIndex, question: Question, answer: Answer | BergsonError) -> None:
        models = [model for model in index.models if model is not None]
        generation = getattr(answer, "generation", None)
        fitting = [model for model in models if model.generation == generation]
        assert fitting, (answer, models)
        self._reference.require_right(answer, fitting[0], question)

    def _path(self, index: ServedIndex) -> Path:
        return self._system.data_dir / "indexes" / index.name

    def _kill_worker(self, worker: SystemProcess) -> None:
        worker.kill()
        if worker is self._frozen:
            self._frozen = None
        self._system.start_worker()

    def _kill_web_process(self, killed: int) -> None:
        self._system.web_processes[killed].kill()
        self._clients.pop(killed).close()
        self._system.start_web()
        new = self._live_web_processes()[-1]
        self._clients[new] = self._system.client(new)

    def _live_workers(self) -> list[SystemProcess]:
        return [worker for worker in self._system.workers if worker.is_alive()]

    def _live_web_processes(self) -> list[int]:
        return [number for number, each in enumerate(self._system.web_processes) if each.is_alive()]

    def _draw_index(self, data: st.DataObject, is_fitting: Callable[[ServedIndex], object]) -> ServedIndex:
        return self._indexes[
            data.draw(st.sampled_from([name for name in NAMES if is_fitting(self._indexes[name])]))
        ]

    def _draw_client(self, data: st.DataObject) -> Client:
        return self._clients[sorted(self._clients)[data.draw(st.integers(0, WEB_PROCESSES - 1))]]

    def _thaw(self) -> None:
        if self._frozen is not None:
            self._frozen.resume()
            self._frozen = None
