"""`IndexMachine`: random changes of indexes by the library, which are killed, cancelled and interleaved.

After each change the index is compared with the model in memory; at the end it has to be byte-identical to an index to
which the same changes were made undisturbed.
"""

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from bergson_core import AttributionIndex, score_corpus
from bergson_core.errors import Cancelled, DocumentNotFound, IdsExist, IndexBusy, IndexExists, IndexNotFound
from bergson_core.indexing.build_context import ignore_progress
from bergson_core.models.loading import load_model
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import Answer, Progress
from bergson_core.storage.deletion import remove_unpublished_files
from bergson_core.storage.document_lookup import find_document
from bergson_core.storage.layout import BUILD_STAMP_FILE
from bergson_core.storage.manifest import read_manifest
from bergson_core.utils.progress import ProgressCallback
from tests.faults.state_machine.changes import (
    Append,
    Build,
    Callbacks,
    Change,
    Compact,
    Delete,
    TakeDown,
    possible_changes,
)
from tests.faults.state_machine.comparing import (
    approximately,
    questions,
    require_equal_files,
    require_refused,
)
from tests.faults.state_machine.deaths import WRITTEN_SHARES, Death, run_and_die
from tests.faults.state_machine.documents import QUERIES, Document, Sources
from tests.faults.state_machine.index_model import read_state
from tests.faults.state_machine.index_on_disk import IndexOnDisk
from tests.faults.state_machine.reference_scores import (
    Question,
    ReferenceScores,
)

NAMES = ("alpha", "beta")


class IndexMachine(RuleBasedStateMachine):
    """Changes two indexes below a directory.

    Args:
        directory: An empty directory.
        sources: What the indexes are built from.
        reference: The scores that they have to give.
        tally: Counts the changes, and the kills.
    """

    def __init__(
        self, directory: Path, sources: Sources, reference: ReferenceScores, tally: Counter[str] | None = None
    ):
        super().__init__()
        self._directory, self._sources, self._reference = directory, sources, reference
        self._indexes = {name: IndexOnDisk(directory / name) for name in NAMES}
        self._tally = Counter[str]() if tally is None else tally
        self._load_model = cache(load_model)

    @rule()
    def look(self) -> None:
        """Nothing changes by itself."""
        for index in self._indexes.values():
            assert read_state(index.root) == (index.model.state if index.model else None)

    @rule(name=st.sampled_from(NAMES), data=st.data())
    def change(self, name: str, data: st.DataObject) -> None:
        """Makes a change, undisturbed."""
        index = self._indexes[name]
        change = data.draw(possible_changes(index.model))
        if self._is_impossible(index, change):
            return
        self._run(index, change)
        index.record(change)
        self._check(index)

    @rule(
        name=st.sampled_from(NAMES),
        data=st.data(),
        death=st.builds(Death, st.integers(1, 70), st.sampled_from(WRITTEN_SHARES)),
    )
    def change_and_die(self, name: str, data: st.DataObject, death: Death) -> None:
        """Makes a change in a process that is killed meanwhile; the change is there, or it is not."""
        index = self._indexes[name]
        change = data.draw(possible_changes(index.model))
        if self._is_impossible(index, change):
            return
        key, after = index.key, change.update(index.model.copy() if index.model else None)
        has_died = run_and_die(death, change.run, index.root, self._sources, Callbacks(), key)
        self._tally["kills"] += has_died
        self._record_if_made(index, change, can_be_missing=has_died)
        if has_died and change.is_job and data.draw(st.booleans()):
            self._run(index, change, key)  # as the worker does that takes the job over
            if index.model != after:
                index.record(change)
            self._check(index)

    @rule(name=st.sampled_from(NAMES), data=st.data(), moment=st.integers(1, 12))
    def cancel(self, name: str, data: st.DataObject, moment: int) -> None:
        """Makes a change that is stopped at one of its reports."""
        index = self._indexes[name]
        change = data.draw(possible_changes(index.model))
        if not change.is_job or self._is_impossible(index, change):
            return

        def stop(progress: Progress) -> None:
            if progress.stage != "done":
                raise Cancelled("stopped by the test")

        try:
            self._run(index, change, report=_at(moment, stop))
            is_cancelled = False
        except Cancelled:
            is_cancelled = True
        self._record_if_made(index, change, can_be_missing=is_cancelled)

    @rule(name=st.sampled_from(NAMES), data=st.data(), moment=st.integers(1, 8))
    def change_and_meanwhile(self, name: str, data: st.DataObject, moment: int) -> None:
        """Makes a change during which another process takes a document down, asks, and tries to change the index."""
        index = self._indexes[name]
        change = data.draw(possible_changes(index.model))
        ids = sorted(index.model.documents) if index.model else []
        if not change.is_job or isinstance(change, Build) or self._is_impossible(index, change):
            return
        taken_down: list[TakeDown] = []

        def meddle(progress: Progress) -> None:
            for second_writer in (Compact(), Delete()):
                if progress.stage != "done":
                    require_refused(IndexBusy, lambda: second_writer.run(index.root, self._sources))  # noqa: B023
            if ids:
                taken_down.append(TakeDown(ids[moment % len(ids)]))
                taken_down[0].run(index.root, self._sources)

        self._run(index, change, report=_at(moment, meddle))
        index.record(change)
        for takedown in taken_down:
            index.record(takedown)
        self._check(index)

    @precondition(lambda self: any(index.model for index in self._indexes.values()))
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        """Asks several queries at once, each of which gets what it gets alone; twice, for the same answers."""
        index = self._draw_published(data)
        assert index.model is not None
        asked = data.draw(st.lists(questions(index.model), min_size=1, max_size=4))
        opened = self._open(index)
        queries = [AttributionQuery.model_validate(question.fields()) for question in asked]
        first, again = opened.attribute(queries), opened.attribute(queries)
        for question, answer, repeated in zip(asked, first, again, strict=True):
            self._reference.require_right(answer, index.model, question)
            assert isinstance(answer, Answer) and isinstance(repeated, Answer)
            assert (answer.results, answer.opponents) == (repeated.results, repeated.opponents)
        top = opened.query(*QUERIES[0], top_k=3).results or []
        expected = self._reference.expected_scores(index.model, Question(*QUERIES[0]))
        assert [row.score for row in top] == approximately(sorted(expected.values(), reverse=True)[:3])

    @precondition(lambda self: any(index.model for index in self._indexes.values()))
    @rule(data=st.data())
    def score_all(self, data: st.DataObject) -> None:
        """Scores the whole corpus with all queries."""
        index = self._draw_published(data)
        assert index.model is not None
        queries = [AttributionQuery(prompt=prompt, completion=completion) for prompt, completion in QUERIES]
        rows = score_corpus(self._open(index), queries).read_all().to_pylist()
        scores = [self._reference.expected_scores(index.model, Question(*query)) for query in QUERIES]
        expected = {id: sum(each[id] for each in scores) / len(scores) for id in index.model.documents}
        assert {row["id"]: row["score"] for row in rows} == approximately(expected)
        assert len(rows) == len(expected)

    @precondition(lambda self: any(index.model for index in self._indexes.values()))
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        """Asks for what an index cannot do: nothing changes."""
        index = self._draw_published(data)
        model = index.model
        assert model is not None
        other_base = 1 - model.base
        require_refused(IndexExists, lambda: Build(other_base).run(index.root, self._sources))
        require_refused(DocumentNotFound, lambda: TakeDown("doc-99").run(index.root, self._sources))
        if model.documents:
            document = data.draw(st.sampled_from(sorted(model.documents.values(), key=lambda each: each.id)))
            append = Append((Document(99), document))
            require_refused(IdsExist, lambda: append.run(index.root, self._sources))
        self._check(index)

    @precondition(lambda self: any(index.model for index in self._indexes.values()))
    @rule(data=st.data())
    def keep_open(self, data: st.DataObject) -> None:
        """Opens an index that later answers have to come from, whatever is published meanwhile."""
        index = self._draw_published(data)
        assert index.model is not None
        index.reader = self._open(index), index.model.copy()

    def teardown(self) -> None:
        """Finishes what was stopped, and compares each index with one that was changed undisturbed."""
        if sys.exception() is not None:
            return
        for index in self._indexes.values():
            if index.unfinished is not None:
                self._finish_build(index)
            if index.model is None:
                continue
            twin = index.root.with_name(f"{index.root.name}-undisturbed")
            for number, change in enumerate(index.history):
                change.run(twin, self._sources, key=f"job-{number}")
            if index.has_leftovers:
                remove_unpublished_files(index.root, read_manifest(index.root))  # as the next change does
            require_equal_files(index.root, twin, str(index.history))
            Delete().run(index.root, self._sources)
            assert [path.name for path in self._directory.glob(f"*{index.root.name}*")] == [twin.name]
            assert not list(self._directory.glob(".deleted-*"))
        shutil.rmtree(self._directory)

    def _finish_build(self, index: IndexOnDisk) -> None:
        assert index.unfinished is not None
        change = Build(index.unfinished)
        self._run(index, change)
        index.record(change)
        self._check(index)

    def _run(
        self,
        index: IndexOnDisk,
        change: Change,
        key: str | None = None,
        report: ProgressCallback = ignore_progress,
    ) -> None:
        """Makes a change in this process. A job that gets to its end leaves nothing behind."""
        index.has_leftovers |= change.is_job
        change.run(index.root, self._sources, Callbacks(report), key or index.key)
        index.has_leftovers &= not change.is_job

    def _is_impossible(self, index: IndexOnDisk, change: Change) -> bool:
        """Tries a change that has to be refused; returns False for every other change, which it does not make."""
        if isinstance(change, Build) and index.unfinished not in (None, change.base):
            require_refused(IndexExists, lambda: change.run(index.root, self._sources))
            index.has_leftovers = False
            shutil.rmtree(index.root)  # as a worker does that builds another index in its place
            index.unfinished = None
        return False

    def _record_if_made(self, index: IndexOnDisk, change: Change, *, can_be_missing: bool) -> None:
        """Looks whether a change was made: it has to be there as a whole, or not at all."""
        index.has_leftovers |= can_be_missing and change.is_job
        before, state = index.model.copy() if index.model else None, read_state(index.root)
        after = change.update(before.copy() if before else None)
        if state == (after.state if after else None) and not (can_be_missing and after == before):
            index.record(change)
        else:
            assert can_be_missing, change
            assert state == (before.state if before else None), change
            if isinstance(change, Build) and (index.root / BUILD_STAMP_FILE).exists():
                index.unfinished = change.base
        self._check(index)

    def _check(self, index: IndexOnDisk) -> None:
        """Compares an index with its model, and what was opened long ago with what it has to show."""
        self._tally["changes"] += 1
        model = index.model
        if model is None:
            assert read_state(index.root) is None
            require_refused(IndexNotFound, lambda: AttributionIndex.open(index.root))
            return
        opened = self._open(index)
        assert (opened.manifest.generation, opened.manifest.rows) == (model.generation, model.rows)
        assert {profile.name for profile in opened.manifest.profiles} == {"default", *model.profiles}
        for document in model.documents.values():
            assert find_document(index.root, document.id)["prompt"] == document.text
        for read, shown in ((opened, model), *([index.reader] if index.reader else [])):
            profile = (["default", *shown.profiles])[shown.taken_down % (1 + len(shown.profiles))]
            question = Question(*QUERIES[shown.generation % len(QUERIES)], profile=profile)
            (answer,) = read.attribute([AttributionQuery.model_validate(question.fields())])
            self._reference.require_right(answer, shown, question)

    def _open(self, index: IndexOnDisk) -> AttributionIndex:
        return AttributionIndex.open(index.root, load_model=self._load_model)

    def _draw_published(self, data: st.DataObject) -> IndexOnDisk:
        return self._indexes[
            data.draw(st.sampled_from([name for name in NAMES if self._indexes[name].model]))
        ]


def _at(moment: int, act: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Returns a callback that does something at one of its calls."""
    calls = 0

    def report(progress: Progress) -> None:
        nonlocal calls
        calls += 1
        if calls == moment:
            act(progress)

    return report
