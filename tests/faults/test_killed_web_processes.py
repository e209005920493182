"""Web processes that are killed or stopped in the middle of requests, and workers that are stopped under load."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from uuid import uuid4

import httpx
import pytest

from service.client import Client
from tests.faults.support.crew import Crew
from tests.faults.support.invariants import require_drained, require_one_end
from tests.faults.support.system import System, wait_until
from tests.faults.support.workload import BASE, TAKEN_DOWN, Workload
from tests.worker.servers import free_port

pytestmark = pytest.mark.e2e

TIMEOUT_S = 60.0
SLACK_S = 15.0


class Caller:
    """Sends requests to web processes; each gets an answer in its deadline, or the connection ends.

    Attributes:
        outcomes: How many requests were answered, by status, `refused` before they were sent, or `broken` off.
    """

    def __init__(self) -> None:
        self.outcomes: Counter[int | str] = Counter()

    def call(self, method: str, url: str, **options: object) -> httpx.Response | None:
        """Returns the answer, or None if the connection ended or was refused."""
        started, response = time.monotonic(), None
        try:
            with httpx.Client(timeout=TIMEOUT_S + SLACK_S, trust_env=False) as http:
                response = http.request(method, url, **options)  # pyright: ignore[reportArgumentType]
            outcome = response.status_code
        except httpx.ConnectError:
            outcome = "refused"
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            outcome = "broken"
        assert time.monotonic() - started < TIMEOUT_S + SLACK_S
        self.outcomes[outcome] += 1
        return response

    def insist(self, method: str, urls: Callable[[], str], **options: object) -> httpx.Response:
        """Repeats a request at other web processes until it is answered."""
        while (response := self.call(method, urls(), **options)) is None:
            time.sleep(0.05)
        return response


def question(index: str = BASE) -> dict[str, object]:
    """Returns the body of a question that no web process has answered before."""
    return {
        "index": index,
        "prompt": f"Person {uuid4().hex}",
        "completion": " city 1.",
        "timeout_s": TIMEOUT_S,
    }


@pytest.fixture(scope="module")
def started(
    tmp_path_factory: pytest.TempPathFactory, require: Callable[..., str]
) -> Iterator[tuple[System, Client, Crew]]:
    """A system of two web processes and two workers with the index `base`. No lease ends before the test does."""
    settings = {"lease_s": 600, "query_lease_s": 600, "max_queue_wait_s": TIMEOUT_S, "drain_s": 2}
    directory = tmp_path_factory.mktemp("stopped")
    with System(directory, require("redis-server"), shutdown_s=60, **settings) as system:
        for _ in range(2):
            system.start_web()
        with system.client() as client, Crew(system, 2) as crew:
            crew.run([Workload(system, client).build_base])
            yield system, client, crew


class KilledTraffic:
    """Callers of two web processes, which are killed and started again on the same ports."""

    def __init__(self, system: System, random: Random):
        self._system, self._random = system, random
        self.caller, self.is_over = Caller(), threading.Event()
        ports = [free_port() for _ in range(2)]
        for port in ports:
            system.start_web(port=port)
        self._processes = dict(zip(ports, system.web_processes, strict=True))

    def insist(self, method: str, path: str, **options: object) -> httpx.Response:
        """Repeats a request at either web process until it is answered."""
        return self.caller.insist(
            method, lambda: f"http://127.0.0.1:{self._random.choice([*self._processes])}{path}", **options
        )

    def ask(self) -> None:
        """Asks until the traffic is over."""
        while not self.is_over.is_set():
            response = self.insist("POST", "/attribute", json=question())
            assert response.status_code == 200, response.text

    def submit_builds(self) -> dict[str, str]:
        """Submits builds until the traffic is over; returns the jobs by the names of their indexes."""
        jobs: dict[str, str] = {}
        while not self.is_over.is_set():
            name, headers = f"built-{len(jobs)}", {"Idempotency-Key": uuid4().hex}
            body = {"name": name, **self._system.build_body()}
            response = self.insist("POST", "/index", json=body, headers=headers)
            assert response.status_code == 202, response.text
            jobs[name] = response.json()["job_id"]
            time.sleep(0.5)
        return jobs

    def take_down(self) -> set[str]:
        """Takes documents down until the traffic is over, and returns their ids."""
        hidden: set[str] = set()
        for number in range(30):
            path = f"/index/{BASE}/documents/doc-{number}"
            response = self.insist("DELETE", path)
            assert response.status_code in (204, 404), response.text  # 404: it was done before the kill
            assert self.insist("GET", path).status_code == 404
            hidden.add(f"doc-{number}")
            if self.is_over.wait(0.3):
                break
        return hidden

    def kill(self, times: int) -> None:
        """Kills one of the web processes at random moments, and ends the traffic."""
        try:
            for _ in range(times):
                time.sleep(self._random.uniform(0.2, 1.0))
                port = self._random.choice([*self._processes])
                self._processes[port].kill()
                self._system.start_web(port=port)
                self._processes[port] = self._system.web_processes[-1]
        finally:
            self.is_over.set()


def test_a_web_process_that_is_killed_costs_its_own_callers_their_connections_and_nothing_else(
    start_system, long_form, seeded, record
):
    system, kills = start_system(max_queue_wait_s=TIMEOUT_S), 20 if long_form else 2
    traffic = KilledTraffic(system, seeded)
    with Client(system.urls[0]) as client, Crew(system, 2) as crew:
        workload = Workload(system, client)
        crew.run([workload.build_base])
        tasks = [lambda: traffic.kill(kills), traffic.submit_builds, traffic.take_down, *[traffic.ask] * 3]
        _, jobs, hidden, *_ = crew.run(tasks, timeout_s=600)
        for job_id in jobs.values():
            workload.wait(job_id)
        with system.connect_redis() as redis:
            require_drained(redis)
            for job_id in jobs.values():
                require_one_end(redis, job_id)
        submitted = sorted(job.index or "" for job in client.jobs())
        answer = client.attribute(BASE, "Person 3", " city 1.", top_k=100)
    outcomes = traffic.caller.outcomes
    met_a_kill = outcomes.pop("broken", 0) + outcomes.pop("refused", 0)
    record(
        promise="a killed web process costs its callers their connections only",
        runs=outcomes.total(),
        kills=kills,
    )
    assert submitted == sorted([*jobs, BASE])
    assert {row.id for row in answer.results or ()} == {f"doc-{k}" for k in range(40)} - {
        *hidden,
        *TAKEN_DOWN,
    }
    assert met_a_kill or not long_form  # a few kills may all fall between two requests


def test_no_question_goes_without_its_answer_while_workers_are_stopped(started, long_form, record):
    system, client, crew = started
    caller, is_over = Caller(), threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            response = caller.call("POST", f"{system.urls[0]}/attribute", json=question())
            assert response is not None
            assert response.status_code == 200, response.text

    def stop_workers() -> int:
        jobs = []
        try:
            for number in range(10 if long_form else 1):
                jobs.append(client.build(f"built-{number}", **system.build_body()))
                wait_until(lambda: client.job(jobs[-1]).state != "queued", "the job has begun")
                worker = system.workers[-2]
                wait_until(lambda worker=worker: worker in crew.workers, "it belongs to the crew")
                worker.terminate()
                worker.wait()
            for job in jobs:
                wait_until(lambda job=job: client.job(job).state == "succeeded", "the job ends")
        finally:
            is_over.set()
        with system.connect_redis() as redis:
            assert {require_one_end(redis, job.job_id).deliveries for job in jobs} == {1}
        return len(jobs)

    stopped, *_ = crew.run([stop_workers, *[ask] * 4], timeout_s=600)
    with system.connect_redis() as redis:
        require_drained(redis)
    record(promise="a stopped worker answers what it has taken", runs=caller.outcomes[200], kills=stopped)
    assert set(caller.outcomes) == {200}


def test_no_request_goes_without_its_answer_while_web_processes_are_stopped(started, long_form, record):
    system, _, crew = started
    caller, is_over = Caller(), threading.Event()
    urls = list(system.urls)  # those that the load balancer sends requests to

    def ask() -> None:
        while not is_over.is_set():
            response = caller.insist("POST", lambda: f"{urls[0]}/attribute", json=question())
            assert response.status_code == 200, response.text

    def stop_web_processes() -> int:
        count = 4 if long_form else 1
        try:
            for _ in range(count):
                url = urls[0]
                process = system.web_processes[len(system.urls) - 1 - system.urls[::-1].index(url)]
                process.terminate()
                wait_until(
                    lambda url=url: httpx.get(f"{url}/readyz", trust_env=False).status_code == 503,
                    "it says so",
                )
                urls.remove(url)
                process.wait()
                urls.append(system.start_web(port=url.rpartition(":")[2]))
        finally:
            is_over.set()
        return count

    stopped, *_ = crew.run([stop_web_processes, *[ask] * 4], timeout_s=600)
    with system.connect_redis() as redis:
        require_drained(redis)
    record(
        promise="a stopped web process answers what it has accepted",
        runs=caller.outcomes[200],
        kills=stopped,
    )
    assert set(caller.outcomes) <= {200, "refused"}
