"""What the columns of preference pairs go together with, and what they do not."""

from typing import Any

import pytest

from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.source import ColumnsSpec

PAIR = {"chosen": "good", "rejected": "bad"}


def build(**fields: Any) -> BuildSpec:
    return BuildSpec.model_validate({"model": "m", "dataset": {"path": "d"}} | fields)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "chosen alone": ({"columns": {"chosen": "a"}}, "got `chosen` without `rejected`"),
    "rejected alone": ({"columns": {"rejected": "a"}}, "got `rejected` without `chosen`"),
    "one column twice": ({"columns": {"chosen": "a", "rejected": "a"}}, "expected two columns"),
    "a completion too": ({"columns": PAIR | {"completion": "c"}}, "expected `completion`, or `chosen`"),
    "messages too": ({"columns": PAIR | {"messages": "c"}}, "expected `messages`, or `chosen`"),
    "half of a reference": (
        {"columns": PAIR | {"ref_chosen_logps": "c"}},
        "expected both of `ref_chosen_logps`",
    ),
    "a reference of no pairs": ({"columns": {"ref_chosen_logps": "c", "ref_rejected_logps": "d"}}, "beside"),
    "no prompt without pairs": ({"columns": {"prompt": None}}, "null only beside `chosen`"),
    "a reference model of no pairs": (
        {"reference_model": "r"},
        "reference_model: this is for preference pairs",
    ),
    "a beta of no pairs": (
        {"gradients": {"preference_beta": 0.5}},
        "preference_beta: this is for preference pairs",
    ),
    "a revision of no reference": (
        {"columns": PAIR, "reference_revision": "v"},
        "expected reference_model too",
    ),
    "two references": (
        {
            "columns": PAIR | {"ref_chosen_logps": "c", "ref_rejected_logps": "d"},
            "reference_model": "r",
        },
        "expected one of the two",
    ),
    "a mean": ({"columns": PAIR, "gradients": {"loss": "mean"}}, "gradients.loss: .*expected sum"),
    "drawn labels": ({"columns": PAIR, "gradients": {"fit_labels": "sampled"}}, "gradients.fit_labels"),
    "chunks": ({"columns": PAIR, "long_documents": "chunk"}, "columns.chosen is given"),
    "no beta": ({"columns": PAIR, "gradients": {"preference_beta": 0}}, "preference_beta"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_go_with_pairs_is_refused(case: str) -> None:
    fields, message = BAD[case]
    with pytest.raises(InvalidInput, match=message):
        build(**fields)


def test_without_a_prompt_the_columns_of_pairs_have_none() -> None:
    assert ColumnsSpec.model_validate(PAIR).prompt is None
    assert ColumnsSpec.model_validate(PAIR | {"prompt": "p"}).prompt == "p"
    assert ColumnsSpec().prompt == "text"


def test_a_spec_of_pairs_is_the_same_after_json() -> None:
    spec = build(columns=PAIR | {"id": "id"}, reference_model="r", gradients={"preference_beta": 0.5})
    assert BuildSpec.model_validate_json(spec.model_dump_json()) == spec


def test_each_setting_of_pairs_counts_in_the_fingerprint() -> None:
    specs = [
        build(columns=PAIR),
        build(columns=PAIR | {"prompt": "p"}),
        build(columns={"chosen": "bad", "rejected": "good"}),
        build(columns=PAIR, reference_model="r"),
        build(columns=PAIR, reference_model="r", reference_revision="v"),
        build(columns=PAIR, gradients={"preference_beta": 0.2}),
        build(),
    ]
    assert len({spec.fingerprint() for spec in specs}) == len(specs)
