"""One job of each kind, on an index of its own, whose outcome can be compared with that of an undisturbed run."""

import shutil
from typing import Any

from service.client import Client
from tests import tiny
from tests.faults.support.invariants import hash_index
from tests.faults.support.system import System, wait_for_end
from worker.messages import JobRecord

PATIENCE_S = 600.0
"""Seconds after which a job counts as lost: many of them run side by side."""
BASE = "base"
ADDED = tuple(
    {"id": f"added-{k}", "text": text, "source": "added"} for k, text in enumerate(tiny.texts(60)[40:])
)
TAKEN_DOWN = ("doc-3", "doc-17")
QUERIES = [{"prompt": f"Person {k} lives in", "completion": f" city {k % 5}."} for k in range(8)]
INLINE = [{"id": f"inline-{k}", "text": text, "source": "inline"} for k, text in enumerate(tiny.texts(40))]


class Workload:
    """Submits jobs of any kind to a system, and knows what an undisturbed job of the kind leaves.

    Appends, profiles and compactions are made on a copy of the index `base`, two documents of which were taken down.
    """

    def __init__(self, system: System, client: Client):
        self.system, self.client = system, client
        self._expected: dict[str, dict[str, str]] = {}

    def build_base(self) -> None:
        """Builds the index `base`; a worker has to be at work."""
        self.wait(self.client.build(BASE, **self.system.build_body()))
        for document_id in TAKEN_DOWN:
            self.client.take_down(BASE, document_id)

    def submit(self, kind: str, name: str) -> JobRecord:
        """Submits a job of this kind on the index `name`; a job that changes an index gets a copy of `base` first."""
        client, body = self.client, self.system.build_body()
        match kind:
            case "build":
                return client.build(name, **body)
            case "inline":
                return client.build(
                    name, **{key: body[key] for key in body if key != "dataset"}, documents=INLINE
                )
        directory = self.system.data_dir / "indexes" / name
        if not directory.exists():
            shutil.copytree(directory.with_name(BASE), directory)
        match kind:
            case "append":
                return client.append(name, documents=list(ADDED))
            case "profile":
                return client.fit_profile(name, "task", queries=QUERIES, mixing=0.5)
            case "compact":
                return client.compact(name)
        raise ValueError(kind)

    def wait(self, job: str | JobRecord) -> JobRecord:
        """Returns the record of a job once the job has ended."""
        return wait_for_end(self.client, job, PATIENCE_S)

    def estimate(self) -> Any:
        """Estimates the build, and returns the estimate."""
        return self.client.estimate(**self.system.build_body(), timeout_s=280)

    def hash(self, name: str) -> dict[str, str]:
        """Returns `hash_index` of an index."""
        return hash_index(self.system.data_dir / "indexes" / name)

    def expect(self, kind: str) -> dict[str, str]:
        """Returns the hashes that a job of this kind leaves when nobody disturbs it; runs it at the first call."""
        if kind not in self._expected:
            name = f"undisturbed-{kind}"
            assert self.wait(self.submit(kind, name)).state == "succeeded"
            self._expected[kind] = self.hash(name)
        return self._expected[kind]
