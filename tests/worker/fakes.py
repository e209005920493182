"""A fake core without torch, whose builds count up to `total` and whose indexes answer at once.

`python -m tests.worker.fakes` runs a worker over this core, which the environment configures like the real worker.
"""

import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from bergson_core.errors import BergsonError, IndexExists, TooLong
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.query import AttributionQuery, VerifySpec
from bergson_core.schemas.results import (
    Answer,
    Estimate,
    Progress,
    QueryEcho,
    Rescored,
    ResultRow,
    TimingMs,
    Verification,
)
from bergson_core.schemas.totals.results import InfluenceTotals
from bergson_core.schemas.totals.spec import TotalsSpec
from bergson_core.schemas.unlearning.results import UnlearnPreview
from bergson_core.schemas.unlearning.spec import UnlearnSpec
from bergson_core.storage.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    Manifest,
    ModuleEntry,
    SearchEntry,
    read_manifest,
)
from service.openapi import examples
from worker.messages import ServiceQuery

DOCUMENTS = ({"text": "Ada Lovelace's birthplace is London"},)


def make_spec(**fields: Any) -> BuildSpec:
    return BuildSpec.model_validate({"model": "tiny", "documents": DOCUMENTS} | fields)


def make_query(
    prompt: str = "Ada was born in",
    index: str = "facts",
    verify: VerifySpec | None = None,
    rescore: int | None = None,
) -> ServiceQuery:
    return ServiceQuery(index=index, prompt=prompt, completion=" London", verify=verify, rescore=rescore)


def publish_index(
    directory: Path, spec: BuildSpec | None = None, generation: int = 1, model: str = "0" * 64
) -> None:
    """Writes the manifest of an index without rows, by renaming as a build does."""
    spec = spec or make_spec()
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        generation=generation,
        created_at="2026-03-01T12:00:00+00:00",
        spec=spec,
        fingerprint=spec.fingerprint(),
        model_sha256=model,
        modules=(ModuleEntry(name="h.0", out_features=8, in_features=8),),
        coverage_percent=52.3,
        dimensions=256,
        skipped=0,
        rows=1,
        tokens=6,
        numbered=1,
        files=(),
        shards=(),
        profiles=(),
        search=SearchEntry(
            kind="float16", candidates=40, recall_at_10=1, opponents_recall_at_10=1, queries=64, rows=1
        ),
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "new").write_text(manifest.model_dump_json())
    (directory / "new").rename(directory / MANIFEST_FILE)


@dataclass(frozen=True)
class FakeModel:
    number: int
    parameter_count: int = 1000


@dataclass
class FakeCore:
    """The core. Tests set what happens at some points, and read what was called.

    Attributes:
        total: Number of batches of a build.
        batch_s: Seconds that a batch takes.
        during: Called in each batch of a build, with its number.
        after_publish: Called after an index is published.
        during_query: Called in each batch of queries.
        during_rescore: Called before each candidate that is rescored, with its number.
        during_verify: Called before each step of a verification, with its number.
        during_totals: Called before each step of totals, with its number.
        builds: Spec and directory of each build.
        previews: Index, spec and largest number of documents of each preview of unlearning.
        batches: Prompts of each batch of queries.
        rescored: Prompt of each candidate that was rescored.
        verified: Prompt of each step of a verification.
        opened: Names of the indexes in the order in which they were opened.
        executors: Names of the executors of builds and indexes.
        loaded: Name, revision and dtype of each model.
    """

    total: int = 3
    batch_s: float = 0.0
    during: Callable[[int], object] = lambda number: None
    after_publish: Callable[[], object] = lambda: None
    during_query: Callable[[], object] = lambda: None
    during_rescore: Callable[[int], object] = lambda number: None
    during_verify: Callable[[int], object] = lambda number: None
    during_totals: Callable[[int], object] = lambda number: None
    builds: list[tuple[BuildSpec, Path]] = field(default_factory=list)
    previews: list[tuple[str, UnlearnSpec, int]] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)
    rescored: list[str] = field(default_factory=list)
    verified: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    executors: list[str] = field(default_factory=list)
    loaded: list[tuple[str, str | None, str]] = field(default_factory=list)

    def build_index(
        self,
        spec: BuildSpec,
        output: Path,
        *,
        report: Callable[[Progress], None],
        confirm: Callable[[], None],
        executor: str = "local",
    ) -> Manifest:
        """Counts the batches in the file `progress`, and resumes from it."""
        self.builds.append((spec, output))
        self.executors.append(executor)
        output.mkdir(parents=True, exist_ok=True)
        stamp, progress = output / "building.json", output / "progress"
        if stamp.exists() and stamp.read_text() != spec.fingerprint():
            raise IndexExists(f"{output} holds another build")
        stamp.write_text(spec.fingerprint())
        for number in range(int(progress.read_text()) if progress.exists() else 0, self.total):
            time.sleep(self.batch_s)
            self.during(number)
            report(Progress(stage="gradients", done=number + 1, total=self.total))
            confirm()
            (output / "next").write_text(str(number + 1))
            (output / "next").rename(progress)  # in one step, since a test may kill this process
        confirm()
        publish_index(output, spec)
        self.after_publish()
        report(Progress(stage="done", done=self.total, total=self.total))
        return read_manifest(output)

    def estimate_build(self, spec: BuildSpec, *, report: Callable[[Progress], None]) -> Estimate:
        for number in range(self.total):
            time.sleep(self.batch_s)
            self.during(number)
            report(Progress(stage="estimate", done=number + 1, total=self.total))
        return Estimate.model_validate(examples.ESTIMATE)

    def run_preview(
        self,
        index: "FakeIndex",
        spec: UnlearnSpec,
        max_documents: int,
        report: Callable[[Progress], None],
    ) -> UnlearnPreview:
        self.previews.append((index.name, spec, max_documents))
        for number in range(self.total):
            time.sleep(self.batch_s)
            self.during(number)
            report(Progress(stage="measure", done=number + 1, total=self.total))
        return UnlearnPreview.model_validate(examples.JOB_UNLEARNED["unlearning"])

    def total_influence(
        self, index: "FakeIndex", query: AttributionQuery, answer: Answer, spec: TotalsSpec
    ) -> Generator[None, None, InfluenceTotals]:
        """Takes `total` steps."""
        for number in range(self.total):
            self.during_totals(number)
            yield
        fields = {name: getattr(answer, name) for name in ("index", "generation", "query")}
        timing = answer.timing_ms.model_copy(update={"total": answer.timing_ms.total + 4})
        return InfluenceTotals(
            **fields,
            by=spec.by,
            threshold=spec.threshold,
            groups=[],
            group_count=0,
            documents=0,
            sum=0,
            timing_ms=timing,
        )

    def load_model(self, name: str, revision: str | None = None, dtype: str = "float32") -> FakeModel:
        self.loaded.append((name, revision, dtype))
        return FakeModel(len(self.loaded))

    def modules(self) -> dict[str, Any]:
        """Returns modules with the names of the real ones, to be put into `sys.modules`."""
        core = self

        class AttributionIndex(FakeIndex):
            @classmethod
            def open(
                cls,
                path: Path,
                *,
                load_model: Callable[..., FakeModel],
                partial: bool = False,
                executor: str = "local",
                max_query_tokens: int | None = None,
            ) -> "FakeIndex":
                core.executors.append(executor)
                core.opened.append(path.name)
                manifest = read_manifest(path)
                model = load_model(manifest.spec.model, manifest.spec.revision, manifest.spec.dtype)
                return cls(core, path.name, manifest, model)

        parts = {
            "executors": {"open_executor": lambda name: name},
            "indexing.build": {"build_index": self.build_index},
            "indexing.estimation.estimate": {"estimate_build": self.estimate_build},
            "attribution.groups.unlearning_preview": {"run_preview": self.run_preview},
            "attribution.groups.influence_totals": {"total_influence": self.total_influence},
            "models.loading": {"load_model": self.load_model, "default_device": lambda: "fake"},
            "attribution.index": {"AttributionIndex": AttributionIndex},
        }
        modules = {}
        for name, content in parts.items():
            module = modules[f"bergson_core.{name}"] = ModuleType(f"bergson_core.{name}")
            vars(module).update(content)
        return modules


@dataclass
class FakeIndex:
    """An index that answers at once.

    A prompt that begins with `crash` raises an error, one with `exit` ends the process, one with `long` is too long.
    """

    core: FakeCore
    name: str
    manifest: Manifest
    model: FakeModel

    def attribute(self, queries: Sequence[AttributionQuery]) -> list[Answer | BergsonError]:
        prompts = [query.prompt or "" for query in queries]
        self.core.batches.append(prompts)
        self.core.during_query()
        if any(prompt.startswith("exit") for prompt in prompts):
            os._exit(9)
        if any(prompt.startswith("crash") for prompt in prompts):
            raise RuntimeError("a bug, with a secret in it")
        return [self._answer(query) for query in queries]

    def follow_up(
        self, query: AttributionQuery, answer: Answer, rescore_until: float
    ) -> Generator[None, None, Answer]:
        """Takes a step for each candidate, result and control; the hooks are called with the number of each step."""
        if query.rescore is not None:
            exact = 0
            while exact < query.rescore and time.time() < rescore_until:
                self.core.during_rescore(exact)
                self.core.rescored.append(query.prompt or "")
                exact += 1
                yield
            timing = answer.timing_ms.model_copy(update={"rescore": 7.0, "total": answer.timing_ms.total + 7})
            rescored = Rescored(candidates=query.rescore, exact=exact)
            answer = answer.model_copy(update={"rescored": rescored, "timing_ms": timing})
        if query.verify is None:
            return answer
        for number in range(query.max_unlearned_documents):
            self.core.during_verify(number)
            self.core.verified.append(query.prompt or "")
            yield
        timing = answer.timing_ms.model_copy(update={"verify": 5.0, "total": answer.timing_ms.total + 5})
        verification = Verification.from_controls(0.1, -1.0, [])
        return answer.model_copy(update={"verification": verification, "timing_ms": timing})

    def _answer(self, query: AttributionQuery) -> Answer | BergsonError:
        prompt = query.prompt or ""
        if prompt.startswith("long"):
            return TooLong("99 tokens, more than the 8 allowed")
        return Answer(
            index=query.index,
            generation=self.manifest.generation,
            query=QueryEcho(prompt=prompt, completion=query.completion or " said", loss=0.1, n_tokens=1),
            results=[ResultRow(rank=1, id="0", score=0.5, prompt=self.name, loss=1.0)],
            timing_ms=TimingMs(gradient=2.0, search=1.0, total=3.0),
        )


def main() -> None:
    core = FakeCore(
        total=int(os.environ.get("FAKE_TOTAL", "3")), batch_s=float(os.environ.get("FAKE_BATCH_S", "0"))
    )
    if "FAKE_EXIT" in os.environ:
        core.during = lambda number: os._exit(9)
    sys.modules.update(core.modules())

    from worker.__main__ import main as run_worker

    run_worker()


if __name__ == "__main__":
    main()
