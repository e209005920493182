"""A broker in memory with the methods of `service.queue.broker.Broker`, and the manifest of an index without rows."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bergson_core.errors import BergsonError, IndexExists, InvalidInput, JobNotFound, TooLong
from bergson_core.schemas.answer_parts.background import BackgroundScores
from bergson_core.schemas.answer_parts.groups import GroupMember, ResultGroup
from bergson_core.schemas.answer_parts.verification import (
    Control,
    GroupEffect,
    Together,
    Verification,
    Verified,
)
from bergson_core.schemas.answer_parts.words import WordMatch
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.query import NEAR_DUPLICATES
from bergson_core.schemas.results import (
    Answer,
    Estimate,
    Progress,
    QueryEcho,
    QueryWarning,
    Rescored,
    ResultRow,
    TimingMs,
    TokenInfluence,
)
from bergson_core.schemas.totals.results import InfluenceTotals
from bergson_core.schemas.totals.spec import TotalsSpec
from bergson_core.storage.manifest import (
    FORMAT_VERSION,
    FileEntry,
    Manifest,
    ModuleEntry,
    SearchEntry,
    ShardEntry,
)
from service.openapi import examples, totals_examples
from service.queue.queue_load import QueueLoad
from worker.messages import (
    FINAL_STATES,
    BuildJob,
    EstimateJob,
    Heartbeat,
    Job,
    JobRecord,
    JobState,
    Priority,
    ResidentModel,
    ServiceQuery,
)
from worker.telemetry.metrics import WorkerMetrics

POLL_S = 0.01
NOW = 1_772_366_400.0
WORKER = Heartbeat(
    worker_id="w-1",
    pid=42,
    host="gpu-1",
    device="cuda:0",
    started_at=NOW,
    state="idle",
    resident=["facts"],
    models=[
        ResidentModel(model="tiny", dtype="float32", sha256="0" * 64, parameters=1000, indexes=["facts"])
    ],
    metrics=WorkerMetrics().collect(resident=1, tokens_per_s=None),
)


TOKENS = [
    TokenInfluence(token="<b>Ada</b>", start=0, end=10, influence=-0.1),
    TokenInfluence(token=" London", start=10, end=17, influence=0.9),
]


BACKGROUND = BackgroundScores(edges=[-0.3, -0.1, 0.1, 0.3], counts=[9, 980, 11])


def make_answer(query: ServiceQuery, texts: list[str]) -> Answer:
    """Returns an answer whose results have `texts` and decreasing scores."""
    rows = [
        ResultRow(
            rank=number + 1,
            id=f"doc-{number}",
            score=0.8 - number / 10,
            interval=(0.75 - number / 10, 0.85 - number / 10),
            strength="strong" if number == 0 else "weak",
            percentile=99.9 - number / 10,
            prompt=text,
            loss=1.5,
            tokens=TOKENS if "tokens" in query.include else None,
            words=WordMatch(rank=3 - number, score=7.25, states=number == 0)
            if query.compares_words
            else None,
            metadata={"source": "wiki"},
        )
        for number, text in enumerate(texts)
    ]
    opponents = [row.model_copy(update={"id": f"not-{row.id}", "score": -row.score / 4}) for row in rows]
    rescored = None
    if query.rescore is not None:
        exact = min(query.rescore, 500)  # more take too long
        rows = [
            row.model_copy(update={"exact": True, "interval": None}) if row.rank <= exact else row
            for row in rows
        ]
        rescored = Rescored(candidates=query.rescore, exact=exact)
    if query.folds:
        value = None if query.group_by == NEAR_DUPLICATES else "wiki"
        members = [GroupMember(id=row.id, score=row.score) for row in rows]
        group = ResultGroup.of(value, members)
        noise = {"interval": (group.score - 0.2, group.score + 0.1), "strength": "strong"}
        rows = [rows[0].model_copy(update={"group": group.model_copy(update=noise)})]
    verification = None
    if query.verify is not None:
        effect = {"log_probability": -2.0, "probability": -0.7, "own_log_probability": -4.0}
        rows[0] = rows[0].model_copy(update={"verified": Verified(**effect)})
        verification = Verification.from_controls(1e-4, -0.12, [Control(id="doc-9", **effect)])
        if query.verify.together:
            groups = [GroupEffect(ids=[name], **effect) for name in (rows[0].id, "doc-8")]
            together = Together.from_groups(groups[0], [rows[0].verified or Verified(**effect)], groups[1:])
            verification = verification.model_copy(update={"together": together})
    completion = query.completion or " said"
    warnings = []
    if query.messages is None and not completion.startswith(" "):
        meant = f" {completion}"
        warnings = [QueryWarning(code="missing_space", detail="no space before it", suggestion=meant)]
    echo = QueryEcho(
        prompt="a chat" if query.prompt is None else query.prompt,
        completion=completion,
        generated=query.completion is None and query.messages is None,
        loss=0.12,
        n_tokens=2,
        instead_of=query.instead_of,
        instead_of_loss=None if query.instead_of is None else 3.5,
    )
    if query.behaviour is not None:
        echo = QueryEcho(
            behaviour=query.behaviour,
            loss=0.31,
            n_tokens=4,
            instead_of_behaviour=query.instead_of_behaviour,
            instead_of_loss=None if query.instead_of_behaviour is None else 2.5,
        )
    return Answer(
        index=query.index,
        generation=1,
        query=echo,
        results=None if query.direction == "opponents" else rows,
        opponents=None if query.direction == "proponents" else opponents,
        rescored=rescored,
        verification=verification,
        notice="no strong influence found",
        background=BACKGROUND if "background" in query.include else None,
        warnings=warnings,
        timing_ms=TimingMs(queue=0.8, gradient=11.2, search=1.9, total=14.6),
    )


class FakeBroker:
    """A broker that answers at once.

    Attributes:
        history: The events of each job.
        error: If set, every method raises it.
        crash: The same for an error that is no `BergsonError`.
    """

    def __init__(self) -> None:
        self.records: dict[str, JobRecord] = {}
        self.history: dict[str, list[tuple[str, JobRecord]]] = {}
        self.job_ids_by_key: dict[tuple[str, str, str | None], str] = {}
        self.queries: list[tuple[ServiceQuery, str, float]] = []
        self.lanes_and_priorities: list[tuple[str, Priority]] = []
        self.lanes: list[str] = []
        self.totals_specs: list[TotalsSpec] = []
        self.withdrawn_prompts: list[str] = []
        self.specs: dict[str, BuildSpec] = {}
        self.submitted_jobs: list[Job] = []
        self.estimate_timeouts_s: list[float] = []
        self.texts = ["Ada Lovelace's birthplace is London"]
        self.heartbeats = [WORKER]
        self.error: BergsonError | None = None
        self.crash: Exception | None = None

    def _raise_failure(self) -> None:
        if failure := self.error or self.crash:
            raise failure

    def put(self, record: JobRecord) -> JobRecord:
        """Stores a record, which becomes the next event of its job."""
        self.records[record.job_id] = record
        events = self.history.setdefault(record.job_id, [])
        events.append((f"{len(events) + 1}-0", record))
        return record

    def advance(self, job_id: str, state: JobState, **progress: object) -> JobRecord:
        """Changes the state and the progress of a job."""
        changes = {"state": state, "progress": Progress.model_validate(progress)}
        return self.put(self.records[job_id].model_copy(update=changes))

    async def submit(self, job: Job, idempotency_key: str | None = None, lane: str = "") -> JobRecord:
        self._raise_failure()
        self.lanes.append(lane)
        key = (lane, job.kind, idempotency_key)
        if key in self.job_ids_by_key:
            return self.records[self.job_ids_by_key[key]]
        if isinstance(job, BuildJob):
            if job.index in self.specs:
                raise IndexExists(f"an index named {job.index!r} exists: choose another name")
            self.specs[job.index] = job.spec
        self.submitted_jobs.append(job)
        record = JobRecord(
            job_id=f"job-{len(self.records) + 1}",
            kind=job.kind,
            index=job.index,
            state="queued",
            created_at=NOW,
        )
        if idempotency_key:
            self.job_ids_by_key[key] = record.job_id
        return self.put(record)

    async def estimate(self, job: EstimateJob, timeout_s: float, lane: str) -> Estimate:
        self._raise_failure()
        self.lanes.append(lane)
        self.submitted_jobs.append(job)
        self.estimate_timeouts_s.append(timeout_s)
        return Estimate.model_validate(examples.ESTIMATE)

    async def read_job(self, job_id: str) -> JobRecord:
        self._raise_failure()
        if job_id not in self.records:
            raise JobNotFound(f"no job {job_id!r}: GET /jobs lists them")
        return self.records[job_id]

    async def list_jobs(
        self, state: JobState | None, cursor: str | None, limit: int, is_visible: Callable[[str | None], bool]
    ) -> tuple[list[JobRecord], str | None]:
        self._raise_failure()
        jobs = reversed(self.records.values())
        listed = [job for job in jobs if state in (None, job.state) and is_visible(job.index)]
        if not re.fullmatch("[0-9]+", cursor or "0"):
            raise InvalidInput("cursor: no such page; start again without one")
        start = int(cursor or 0)
        return listed[start : start + limit], str(start + limit) if start + limit < len(listed) else None

    async def cancel(self, job_id: str) -> JobRecord:
        record = await self.read_job(job_id)
        return record if record.state in FINAL_STATES else self.advance(job_id, "cancelled")

    @contextmanager
    def count_follower(self) -> Iterator[None]:
        self._raise_failure()
        yield

    async def iter_events(self, job_id: str, last_id: str = "0") -> AsyncIterator[tuple[str, JobRecord]]:
        count = int(last_id.split("-")[0])
        while True:
            self._raise_failure()
            for event_id, record in self.history[job_id][count:]:
                count += 1
                yield event_id, record
            if self.records[job_id].state in FINAL_STATES:
                return
            await asyncio.sleep(POLL_S)

    async def ask(
        self, query: ServiceQuery, request_id: str, timeout_s: float, lane: str, priority: Priority
    ) -> Answer:
        self._raise_failure()
        self.queries.append((query, request_id, timeout_s))
        self.lanes_and_priorities.append((lane, priority))
        prompt = query.prompt or ""
        if "wait" in prompt:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.withdrawn_prompts.append(prompt)
                raise
        if "bad" in prompt:
            raise TooLong("expected at most 8 tokens, got 99")
        return make_answer(query, self.texts)

    async def ask_totals(
        self, query: ServiceQuery, spec: TotalsSpec, request_id: str, timeout_s: float, lane: str
    ) -> InfluenceTotals:
        answer = await self.ask(query, request_id, timeout_s, lane, "interactive")
        self.totals_specs.append(spec)
        answered = {"index": query.index, "query": answer.query, "by": spec.by, "threshold": spec.threshold}
        totals = {key: value for key, value in totals_examples.TOTALS_RESPONSE.items() if key != "request_id"}
        return InfluenceTotals.model_validate(totals | answered)

    async def list_workers(self, limit_s: float = 4.0) -> list[Heartbeat]:
        self._raise_failure()
        return self.heartbeats

    async def read_load(self) -> QueueLoad:
        return QueueLoad(
            queries=3,
            oldest_query_age_s=1.5,
            jobs_queued=2,
            jobs_running=1,
            workers=await self.list_workers(),
        )

    async def ping(self) -> None:
        self._raise_failure()

    async def active_jobs(self) -> dict[str, str]:
        self._raise_failure()
        return {job.index: job.job_id for job in self.records.values() if job.state not in FINAL_STATES}


def publish_manifest(root: Path, name: str, spec: BuildSpec) -> None:
    """Writes the manifest of an index of 1,000 rows, and nothing else of the index."""
    rows = FileEntry(path="shards/00000/gradients.bin", bytes=400, sha256="0" * 64)
    faiss = FileEntry(path="search/1.faiss", bytes=30, sha256="0" * 64)
    profile = FileEntry(path="statistics/default.safetensors", bytes=5, sha256="0" * 64)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        generation=1,
        created_at="2026-03-01T12:00:00+00:00",
        spec=spec,
        fingerprint=spec.fingerprint(),
        model_sha256="0" * 64,
        modules=(ModuleEntry(name="h.0", out_features=8, in_features=8),),
        coverage_percent=52.3,
        dimensions=256,
        rows=1000,
        tokens=61_000,
        skipped=0,
        numbered=1000,
        files=(faiss, profile),
        profiles=(),
        search=SearchEntry(
            kind="float16", candidates=40, recall_at_10=0.998, opponents_recall_at_10=1, queries=64, rows=1000
        ),
        shards=(
            ShardEntry(
                name="00000", first_row=0, rows=1000, tokens=61_000, skipped=0, source="0" * 64, files=(rows,)
            ),
        ),
    )
    (root / name).mkdir(parents=True)
    (root / name / "manifest.json").write_text(json.dumps(manifest.model_dump(mode="json")))
