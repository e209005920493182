"""Every error that a user can cause, and nothing else.

    BergsonError
    ├── InvalidInput (ValueError)        what was sent is wrong; the text says what was expected
    │   ├── ModelNotFound                no such model, or not one that can be loaded
    │   ├── DatasetNotFound              no such dataset, split or file
    │   ├── ColumnNotFound               the dataset has no such column
    │   └── TooLong                      prompt and completion exceed what the model takes
    ├── IndexNotFound                    no published index of that name
    ├── DocumentNotFound                 no document of that id, or one that was taken down
    ├── IdsExist                         documents of these ids are in the index
    ├── IndexExists                      the name is taken
    ├── IndexBusy                        the index is being built, by this or another process
    ├── IndexCorrupt                     files differ from what the manifest says
    ├── DiskFull                         there is no room for what is to be written
    ├── JobNotFound
    ├── Unauthorized                     no API key came along, or none that counts
    ├── Forbidden                        the API key may not do this
    ├── Unavailable                      a part that is needed does not answer
    │   ├── RedisUnavailable
    │   ├── NoWorker                     no worker is alive
    │   ├── ClusterUnavailable           no Ray cluster does the work
    │   ├── QueueFull                    too much waits already
    │   └── RateLimited                  one API key asks too much
    ├── DeadlineExceeded                 no answer in time
    ├── Cancelled                        somebody asked for the work to stop
    └── LeaseLost                        another worker has taken this job over

`code` is the stable name that crosses process borders (Redis, HTTP); `from_code` is its inverse.
"""

from collections.abc import Sequence
from typing import Self


class BergsonError(Exception):
    """Base of all errors that are the caller's to handle. `str(error)` is fit to be shown.

    `status` and `request_id` are those of the HTTP answer that said it, where one did.
    """

    code = "error"
    status: int | None = None
    request_id: str | None = None


class InvalidInput(BergsonError, ValueError):
    code = "invalid_input"


class ModelNotFound(InvalidInput):
    code = "model_not_found"


class DatasetNotFound(InvalidInput):
    code = "dataset_not_found"


class ColumnNotFound(InvalidInput):
    code = "column_not_found"


class TooLong(InvalidInput):
    code = "too_long"


class IndexNotFound(BergsonError):
    code = "index_not_found"

    @classmethod
    def named(cls, name: str) -> Self:
        """The error for a name under which a service has no index, or none that the caller may see."""
        return cls(f"no index named {name!r}: GET /index lists them")


class DocumentNotFound(BergsonError):
    code = "document_not_found"


class IdsExist(BergsonError):
    """`ids` are those that exist, where it is known here; `str(error)` names the first."""

    code = "ids_exist"
    ids: tuple[str, ...] = ()

    @classmethod
    def of(cls, ids: Sequence[str]) -> "IdsExist":
        more = f" and {len(ids) - 10} more" if len(ids) > 10 else ""
        error = cls(
            f"the index has documents of these ids already: {', '.join(map(repr, ids[:10]))}{more}; expected new ids, "
            "or take the documents down first"
        )
        error.ids = tuple(ids)
        return error


class IndexExists(BergsonError):
    code = "index_exists"


class IndexBusy(BergsonError):
    code = "index_busy"


class IndexCorrupt(BergsonError):
    code = "index_corrupt"


class DiskFull(BergsonError):
    code = "disk_full"


class JobNotFound(BergsonError):
    code = "job_not_found"


class Unauthorized(BergsonError):
    code = "unauthorized"


class Forbidden(BergsonError):
    code = "forbidden"


class Unavailable(BergsonError):
    """`wait_s`: seconds after which it may be tried again."""

    code = "unavailable"
    wait_s: int = 0


class RedisUnavailable(Unavailable):
    code = "redis_unavailable"

    @classmethod
    def because(cls, reason: str) -> Self:
        """The error for a Redis that did not answer, for this reason."""
        return cls(f"Redis does not answer: start it, or correct REDIS_URL ({reason})")


class NoWorker(Unavailable):
    code = "no_worker"


class ClusterUnavailable(Unavailable):
    code = "cluster_unavailable"


class QueueFull(Unavailable):
    code = "queue_full"


class RateLimited(Unavailable):
    code = "rate_limited"
    wait_s: int = 1

    @classmethod
    def of(cls, detail: str, wait_s: int) -> "RateLimited":
        error = cls(detail)
        error.wait_s = wait_s
        return error


class DeadlineExceeded(BergsonError):
    code = "deadline_exceeded"


class Cancelled(BergsonError):
    code = "cancelled"


class LeaseLost(BergsonError):
    code = "lease_lost"


def _tree(root: type[BergsonError]) -> list[type[BergsonError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


def from_code(code: str, detail: str) -> BergsonError:
    """The error that was written as (code, detail); an unknown code gives a plain `BergsonError`."""
    kinds = {kind.code: kind for kind in _tree(BergsonError)}
    return kinds.get(code, BergsonError)(detail)
