"""What a build reads: the dataset or the documents themselves, and the columns that documents are made of."""

import glob
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from bergson_core.schemas.base import Spec
from bergson_core.schemas.inline_values import plain_document
from bergson_core.schemas.preference.pair_checks import default_prompt_of_pairs, require_whole_pairs

MAX_INLINE_DOCUMENTS = 10_000
InlineDocument = Annotated[dict[str, Any], AfterValidator(plain_document)]
"""A document as it stands in a request: its columns and their values."""
TextDocuments = Literal["auto", "line", "file"]

_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 4095
_MAX_DEEP_PARTS = 2


def require_short_path(path: str | None) -> str | None:
    """Raises `ValueError` for a path that no file system takes, or a pattern that takes too long to match.

    The parts of a pattern may be longer than its files.
    """
    if path is None:
        return None
    sizes = [len(part.encode(errors="surrogatepass")) for part in path.split("/") if not glob.has_magic(part)]
    if max(sizes, default=0) > _MAX_NAME_BYTES:
        raise ValueError(
            f"expected a path whose parts have at most {_MAX_NAME_BYTES} bytes, got one of {max(sizes)}"
        )
    deep_parts = path.split("/").count("**")  # each of them goes through all directories
    if deep_parts > _MAX_DEEP_PARTS:
        raise ValueError(f"expected a pattern with at most {_MAX_DEEP_PARTS} parts **, got {deep_parts}")
    if (size := len(path.encode(errors="surrogatepass"))) > _MAX_PATH_BYTES:
        raise ValueError(f"expected a path of at most {_MAX_PATH_BYTES:,} bytes, got {size:,}")
    return path


class DatasetSpec(Spec):
    """A dataset to read: a hub id, a `save_to_disk` directory, or jsonl, json, csv, tsv, parquet or txt files, all but
    parquet also as .gz or .zst."""

    path: str = Field(min_length=1, max_length=4096)
    """Hub id, file, directory, or a pattern of files such as `data/*.jsonl`. Several files have to be of one type, and
    are read in the order of their names."""
    split: str = Field(default="train", min_length=1, max_length=256)
    """Split of the dataset."""
    subset: str | None = Field(default=None, max_length=256)
    """Configuration of a hub dataset that has several. Datasets on this machine have none."""
    streaming: bool = False
    """Read a hub dataset once, as a stream, without keeping all of it in the cache. If the build is started again, it
    continues with what was read. Files are always read as streams. The columns that the build needs are kept next to
    the index until it is published. A `save_to_disk` directory is read where it is."""
    text_documents: TextDocuments = "auto"
    """What a document is in .txt files, whose columns are `text` and `file`: each `line` that is not blank, or each
    `file`. With `auto` the documents are the lines of a single file, and otherwise the files."""

    _require_path = field_validator("path")(require_short_path)


class ColumnsSpec(Spec):
    """The columns of the dataset and what they hold."""

    prompt: str | None = "text"
    """Column with the text, or with the prompt if a completion column is named. With `chosen`, the default is null: the
    prompt is then the common beginning of both completions."""
    completion: str | None = None
    """Column with the completion. The loss is then that of the completion only."""
    messages: str | None = None
    """Column with chats instead of `prompt`: lists of messages with role and content, or such lists as JSON text. The
    loss is that of the assistant's messages, with the token that ends each turn."""
    chosen: str | None = None
    """Column with the preferred completions of preference pairs, as texts or as lists of messages. The loss is then
    that of DPO."""
    rejected: str | None = None
    """Column with the other completions of the pairs."""
    ref_chosen_logps: str | None = None
    """Column with the log-probability, in nats, that the reference model gives to the chosen completion. By default
    there is no reference, unless the build names a `reference_model`."""
    ref_rejected_logps: str | None = None
    """Column with the log-probability that the reference model gives to the rejected completion."""
    id: str | None = None
    """Column with unique ids. By default a document's id is its row number."""
    metadata: tuple[str, ...] = ()
    """Columns to store with each document; results return them, and queries can filter by them."""
    weight: str | None = None
    """Column with a number that the document's loss is multiplied by, such as a reward or an advantage."""

    @model_validator(mode="before")
    @classmethod
    def _default_prompt_of_pairs(cls, fields: Any) -> Any:
        return default_prompt_of_pairs(fields)

    @model_validator(mode="after")
    def _require_whole_pairs(self) -> Self:
        require_whole_pairs(self)
        return self

    @model_validator(mode="after")
    def _require_completion_or_messages(self) -> Self:
        if self.messages is not None and self.completion is not None:
            raise ValueError("expected `completion` or `messages`, not both")
        return self

    def number_columns(self) -> list[str]:
        """Returns the names of the columns that have to hold numbers."""
        return [
            name for name in (self.weight, self.ref_chosen_logps, self.ref_rejected_logps) if name is not None
        ]

    def column_names(self) -> list[str]:
        """Returns the names of the columns that documents are made of."""
        prompt = self.prompt if self.messages is None else self.messages
        pair = [self.chosen, self.rejected, self.ref_chosen_logps, self.ref_rejected_logps]
        named = [prompt, self.completion, *pair, self.id, self.weight, *self.metadata]
        return list(dict.fromkeys(name for name in named if name is not None))


def require_one_source(dataset: DatasetSpec | None, documents: tuple[InlineDocument, ...] | None) -> None:
    """Raises `ValueError` unless exactly one of a dataset and documents is given."""
    if (dataset is None) == (documents is None):
        raise ValueError("expected exactly one of `dataset` and `documents`")
