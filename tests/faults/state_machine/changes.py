"""The changes of an index that the state machines make. Each knows what it does to the model of the index.

A change is made either by the library, in this process or in one that dies, or by a job of the service. An operation
that joins the state machines is a class here, and an entry in `possible_changes`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset
from hypothesis import strategies as st

from bergson_core import (
    AppendSpec,
    BuildSpec,
    append_documents,
    build_index,
    compact_index,
    fit_profile,
    take_down_document,
)
from bergson_core.indexing.build_context import always_confirm, ignore_progress
from bergson_core.storage.deletion import delete_index
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback
from service.client import Client
from tests.faults.state_machine.documents import ALL_DOCUMENTS, BASES, TASKS, Document, Sources
from tests.faults.state_machine.index_model import IndexModel
from worker.messages import JobRecord


@dataclass(frozen=True)
class Callbacks:
    """What a change calls while it is made by the library."""

    report: ProgressCallback = ignore_progress
    confirm: ConfirmCallback = always_confirm


@dataclass(frozen=True)
class Change(ABC):
    """A change of an index."""

    is_job: ClassVar[bool] = True
    """Whether the service makes the change by a job, which takes a while and can be cancelled."""

    @abstractmethod
    def update(self, model: IndexModel | None) -> IndexModel | None:
        """Returns the model of the index after the change; None stands for no index. It may change `model`."""

    def is_possible(self, model: IndexModel) -> bool:
        """Returns whether an index allows the change; the job fails otherwise."""
        return True

    @abstractmethod
    def run(self, root: Path, sources: Sources, callbacks: Callbacks = Callbacks(), key: str = "") -> None:
        """Makes the change in the index at `root` by the library. `key` is the id of the job."""

    @abstractmethod
    def submit(self, client: Client, name: str, sources: Sources) -> JobRecord | None:
        """Makes the change by the service. Returns the job, if there is one."""


@dataclass(frozen=True)
class Build(Change):
    base: int

    def update(self, model: IndexModel | None) -> IndexModel:
        return IndexModel.built(self.base)

    def run(self, root: Path, sources: Sources, callbacks: Callbacks = Callbacks(), key: str = "") -> None:
        spec = BuildSpec.model_validate(sources.build_body(self.base))
        build_index(
            spec, root, report=callbacks.report, confirm=callbacks.confirm, shard_rows=sources.shard_rows
        )

    def submit(self, client: Client, name: str, sources: Sources) -> JobRecord:
        return client.build(name, **sources.build_body(self.base))


class _ChangeOfIndex(Change):
    """A change of an index that is there."""

    def update(self, model: IndexModel | None) -> IndexModel | None:
        assert model is not None
        return self.update_index(model)

    @abstractmethod
    def update_index(self, model: IndexModel) -> IndexModel | None: ...


@dataclass(frozen=True)
class Append(_ChangeOfIndex):
    documents: tuple[Document, ...]

    def is_possible(self, model: IndexModel) -> bool:
        return model.documents.keys().isdisjoint(document.id for document in self.documents)

    def update_index(self, model: IndexModel) -> IndexModel:
        model.documents |= {document.id: document for document in self.documents}
        model.generation += 1
        return model

    def run(self, root: Path, sources: Sources, callbacks: Callbacks = Callbacks(), key: str = "") -> None:
        append_documents(
            root,
            AppendSpec.model_validate(self._body()),
            key=key,
            report=callbacks.report,
            confirm=callbacks.confirm,
            shard_rows=sources.shard_rows,
        )

    def submit(self, client: Client, name: str, sources: Sources) -> JobRecord:
        return client.append(name, **self._body())

    def _body(self) -> dict[str, Any]:
        return {"documents": [document.fields for document in self.documents]}


@dataclass(frozen=True)
class Compact(_ChangeOfIndex):
    def is_possible(self, model: IndexModel) -> bool:
        return bool(model.documents)

    def update_index(self, model: IndexModel) -> IndexModel:
        model.generation += model.hidden > 0
        model.hidden = 0
        return model

    def run(self, root: Path, sources: Sources, callbacks: Callbacks = Callbacks(), key: str = "") -> None:
        compact_index(root, report=callbacks.report, confirm=callbacks.confirm)

    def submit(self, client: Client, name: str, sources: Sources) -> JobRecord:
        return client.compact(name)


@dataclass(frozen=True)
class FitProfile(_ChangeOfIndex):
    name: str
    mixing: float = field(default=0.5, init=False)

    def is_possible(self, model: IndexModel) -> bool:
        return self.name not in model.profiles

    def update_index(self, model: IndexModel) -> IndexModel:
        model.profiles.append(self.name)
        model.generation += 1
        return model

    def run(self, root: Path, sources: Sources, callbacks: Callbacks = Callbacks(), key: str = "") -> None:
        fit_profile(
            root,
            self.name,
            Dataset.from_list(self._queries()),
            mixing=self.mixing,
            key=key,
            report=callbacks.report,
            confirm=callbacks.confirm,
        )

    def submit(self, client: Client, name: str, sources: Sources) -> JobRecord:
        return client.fit_profile(name, self.name, queries=self._queries(), mixing=self.mixing)

    def _queries(self) -> list[dict[str, str]]:
        return [{"prompt": prompt, "completion": completion} for prompt, completion in TASKS[self.name]]


@dataclass(frozen=True)
class TakeDown(_ChangeOfIndex):
    is_job = False
    id: str

    def update_index(self, model: IndexModel) -> IndexModel:
        del model.documents[self.id]
        model.hidden += 1
        model.taken_down += 1
        return model

    def run(self, root: Path, sources: Sources, callbacks: Callbacks = Callbacks(), key: str = "") -> None:
        take_down_document(root, self.id)

    def submit(self, client: Client, name: str, sources: Sources) -> None:
        client.take_down(name, self.id)


@dataclass(frozen=True)
class Delete(_ChangeOfIndex):
    is_job = False

    def update_index(self, model: IndexModel) -> None:
        return None

    def run(self, root: Path, sources: Sources, callbacks: Callbacks = Callbacks(), key: str = "") -> None:
        delete_index(root)

    def submit(self, client: Client, name: str, sources: Sources) -> None:
        client.delete_index(name)


def possible_changes(model: IndexModel | None) -> st.SearchStrategy[Change]:
    """Returns a strategy for the changes that an index allows; None stands for no index."""
    if model is None:
        return st.sampled_from([Build(base) for base in range(len(BASES))])
    absent = [document for document in ALL_DOCUMENTS if document.id not in model.documents]
    new = st.lists(st.sampled_from(absent), min_size=1, max_size=4, unique_by=lambda document: document.id)
    choices: list[st.SearchStrategy[Change]] = [new.map(lambda documents: Append(tuple(documents)))] * 2
    if model.documents:
        choices += [st.sampled_from([TakeDown(id) for id in sorted(model.documents)])] * 2
        choices += [st.just(Compact())]
    if names := sorted(TASKS.keys() - model.profiles):
        choices += [st.sampled_from([FitProfile(name) for name in names])]
    return st.one_of(*choices, st.just(Delete()))
