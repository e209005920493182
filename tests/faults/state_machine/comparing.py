"""What both state machines compare with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.faults.state_machine.documents import FILTERS, QUERIES
from tests.faults.state_machine.index_model import IndexModel
from tests.faults.state_machine.reference_scores import TOLERANCE, Question, own_text_question
from tests.faults.support.invariants import hash_index


def questions(model: IndexModel) -> st.SearchStrategy[Question]:
    """Returns a strategy for queries that an index can answer."""
    profiles = st.sampled_from(["default", *model.profiles])
    fixed = st.builds(
        lambda query, filter, profile: Question(*query, filter=filter, profile=profile),
        st.sampled_from(QUERIES),
        st.integers(0, len(FILTERS) - 1),
        profiles,
    )
    if not model.documents:
        return fixed
    documents = sorted(model.documents.values(), key=lambda document: document.id)
    return fixed | st.sampled_from(documents).map(own_text_question)


def require_refused(error: type[Exception], act: Callable[[], object], *others: type[Exception]) -> None:
    """Fails unless `act` raises this error or one of the others."""
    with pytest.raises((error, *others)):
        act()


def approximately(expected: Any) -> Any:
    """Returns a value that equals all scores that are rounded differently from those expected."""
    return pytest.approx(expected, abs=TOLERANCE)


def require_equal_files(root: Path, undisturbed: Path, history: str) -> None:
    """Fails unless two indexes have the same files with the same content.

    The log of takedowns and its head are left out, since lines have times, and the generation of a takedown during a
    job depends on the moment.
    """
    files, expected = (
        {path: digest for path, digest in hash_index(index).items() if not path.startswith("takedowns.")}
        for index in (root, undisturbed)
    )
    assert files.keys() == expected.keys(), history
    assert files == expected, history
