"""A canary run reports each figure that is below its floor."""

from service.cli.canary import describe_shortfalls
from tests.service.helpers import make_canary_run


def test_a_figure_below_its_floor_or_not_measured_is_named() -> None:
    assert (
        describe_shortfalls(make_canary_run(), None, None)
        == describe_shortfalls(make_canary_run(), 0.75, 0.95)
        == ""
    )
    assert describe_shortfalls(make_canary_run(), 0.8, 0.9) == "facts: mrr is 0.75, expected at least 0.8"
    assert "recall_at_10 is None, expected at least 0.9" in describe_shortfalls(
        make_canary_run(recall_at_10=None), 0.5, 0.9
    )
