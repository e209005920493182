"""The errors that a user can cause or handle.

    BergsonError
    ├── InvalidInput (ValueError)        something in the request is wrong; the message says what was expected
    │   ├── ModelNotFound                the model does not exist or cannot be loaded
    │   ├── DatasetNotFound              the dataset, split or file does not exist or cannot be read
    │   ├── ColumnNotFound               the dataset has no such column
    │   └── TooLong                      prompt and completion have more tokens than the model takes
    ├── IndexNotFound                    no index is published under this name
    ├── DocumentNotFound                 no document has this id, or it was taken down
    ├── BehaviourNotFound                the index has no behaviour of this name
    ├── BehaviourExists                  the index has a behaviour of this name already
    ├── IdsExist                         the index already has documents with these ids
    ├── IndexExists                      the name is taken
    ├── IndexBusy                        this or another process is writing the index
    ├── IndexCorrupt                     files of the index differ from its manifest
    ├── DiskFull                         there is no room for the files to write
    ├── ReadOnly                         the files to write may not be written
    ├── DiskFailed                       the disk reports an error
    ├── JobNotFound                      no job has this id
    ├── LinkNotFound                     no answer is kept under this id
    ├── Unauthorized                     the request has no API key, or one that is not valid
    ├── Forbidden                        the API key does not permit this
    ├── Unavailable                      a part of the service does not answer; retry later
    │   ├── RedisUnavailable             Redis does not answer, or it refuses
    │   │   └── RedisFull                Redis has no memory left for anything new
    │   ├── NoWorker                     no worker is alive
    │   ├── ClusterUnavailable           no Ray cluster does the work
    │   ├── QueueFull                    too many requests are waiting already
    │   └── RateLimited                  the API key has sent too many requests
    ├── DeadlineExceeded                 there was no answer in time
    ├── Cancelled                        the work was cancelled
    ├── LeaseLost                        another worker has taken over the job
    └── InternalError                    something unexpected failed; the log has more

Each class has a `code`, a stable name that crosses the borders between processes (Redis and HTTP). `from_code` makes
the error of a code.
"""

from collections.abc import Sequence
from typing import Self


class BergsonError(Exception):
    """Base of all errors that a caller can handle. The message is meant to be shown to users.

    Attributes:
        code: Stable name of the kind of error.
        status: Status of the HTTP response that reported the error, or None.
        request_id: Request id of that response, or None.
    """

    code = "error"
    status: int | None = None
    request_id: str | None = None


class InvalidInput(BergsonError, ValueError):
    """Something in the request is wrong. The message says what was expected."""

    code = "invalid_input"


class ModelNotFound(InvalidInput):
    """The model does not exist or cannot be loaded."""

    code = "model_not_found"


class DatasetNotFound(InvalidInput):
    """The dataset, split or file does not exist or cannot be read."""

    code = "dataset_not_found"


class ColumnNotFound(InvalidInput):
    """The dataset has no such column."""

    code = "column_not_found"


class TooLong(InvalidInput):
    """Prompt and completion together have more tokens than the model takes."""

    code = "too_long"


class IndexNotFound(BergsonError):
    """No index is published under this name, or none that the caller may see."""

    code = "index_not_found"

    @classmethod
    def for_name(cls, name: str) -> Self:
        """Returns the error of a service that has no index of this name, or none that the caller may see."""
        return cls(f"no index named {name!r}: GET /index lists them")


class DocumentNotFound(BergsonError):
    """No document has this id, or it was taken down."""

    code = "document_not_found"

    @classmethod
    def for_ids(cls, index: str, ids: Sequence[str]) -> Self:
        """Returns the error for several ids; its message has the first ten."""
        more = f" and {len(ids) - 10:,} more" if len(ids) > 10 else ""
        return cls(
            f"the index {index} has no document {', '.join(map(repr, ids[:10]))}{more}, or it was taken down"
        )


class BehaviourNotFound(BergsonError):
    """The index has no behaviour of this name."""

    code = "behaviour_not_found"


class BehaviourExists(BergsonError):
    """The index has a behaviour of this name already."""

    code = "behaviour_exists"


class IdsExist(BergsonError):
    """The index already has documents with these ids.

    Attributes:
        ids: The ids, or an empty tuple if only the message is known. The message has the first ten.
    """

    code = "ids_exist"
    ids: tuple[str, ...] = ()

    @classmethod
    def for_ids(cls, ids: Sequence[str]) -> Self:
        """Returns the error for these ids."""
        more = f" and {len(ids) - 10} more" if len(ids) > 10 else ""
        error = cls(
            f"the index has documents of these ids already: {', '.join(map(repr, ids[:10]))}{more}; expected new ids, "
            "or take the documents down first"
        )
        error.ids = tuple(ids)
        return error


class IndexExists(BergsonError):
    """The name is taken."""

    code = "index_exists"


class IndexBusy(BergsonError):
    """This or another process is writing the index."""

    code = "index_busy"


class IndexCorrupt(BergsonError):
    """Files of the index differ from its manifest."""

    code = "index_corrupt"


class DiskFull(BergsonError):
    """There is no room for the files to write."""

    code = "disk_full"


class ReadOnly(BergsonError):
    """The files to write may not be written: the file system is read-only, or permissions forbid it."""

    code = "read_only"


class DiskFailed(BergsonError):
    """The disk reports an error when it is written to."""

    code = "disk_failed"


class JobNotFound(BergsonError):
    """No job has this id."""

    code = "job_not_found"


class LinkNotFound(BergsonError):
    """No answer is kept under this id, or none that the caller may see."""

    code = "link_not_found"

    @classmethod
    def for_id(cls, link_id: str) -> Self:
        """Returns the error of a service that keeps nothing under this id, or nothing that the caller may see."""
        return cls(f"no link {link_id!r}: it has ended, was removed, or never was")


class Unauthorized(BergsonError):
    """The request has no API key, or one that is not valid."""

    code = "unauthorized"


class Forbidden(BergsonError):
    """The API key does not permit this."""

    code = "forbidden"


class Unavailable(BergsonError):
    """A part of the service does not answer. The request can be repeated later.

    Attributes:
        wait_s: Seconds to wait before that.
    """

    code = "unavailable"
    wait_s: int = 0


class RedisUnavailable(Unavailable):
    """Redis does not answer, or it refuses; the message says why."""

    code = "redis_unavailable"

    @classmethod
    def because(cls, reason: str) -> Self:
        """Returns the error for a Redis that does not answer for this reason."""
        return cls(f"Redis does not answer: start it, or correct REDIS_URL ({reason})")


class RedisFull(RedisUnavailable):
    """Redis has no memory left for anything new."""

    code = "redis_full"


class NoWorker(Unavailable):
    """No worker is alive."""

    code = "no_worker"


class ClusterUnavailable(Unavailable):
    """No Ray cluster does the work."""

    code = "cluster_unavailable"


class QueueFull(Unavailable):
    """Too many requests are waiting already."""

    code = "queue_full"


class RateLimited(Unavailable):
    """The API key has sent too many requests."""

    code = "rate_limited"
    wait_s: int = 1

    @classmethod
    def with_wait(cls, detail: str, wait_s: int) -> Self:
        """Returns the error with this message, to be repeated after `wait_s` seconds."""
        error = cls(detail)
        error.wait_s = wait_s
        return error


class DeadlineExceeded(BergsonError):
    """There was no answer in time."""

    code = "deadline_exceeded"


class Cancelled(BergsonError):
    """The work was cancelled."""

    code = "cancelled"


class LeaseLost(BergsonError):
    """Another worker has taken over the job."""

    code = "lease_lost"


class InternalError(BergsonError):
    """Something unexpected failed. The cause and the log have more, which may not be meant for the caller's eyes."""

    code = "internal"

    @classmethod
    def because(cls, cause: BaseException) -> Self:
        """Returns the error for an exception that nobody expected."""
        error = cls(f"unexpected {type(cause).__name__}: the log has more")
        error.__cause__ = cause
        return error


def _with_subclasses(root: type[BergsonError]) -> list[type[BergsonError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _with_subclasses(child))]


def from_code(code: str, detail: str) -> BergsonError:
    """Returns the error of a code with `detail` as its message. An unknown code gives a plain `BergsonError`."""
    classes = {cls.code: cls for cls in _with_subclasses(BergsonError)}
    return classes.get(code, BergsonError)(detail)
