"""What preference pairs go together with: which columns make them, and which settings of a build they exclude."""

from typing import Any

from bergson_core.schemas.base import field_error


def default_prompt_of_pairs(fields: Any) -> Any:
    """Returns the fields of a `ColumnsSpec` with a prompt of null, where there are pairs and none is stated."""
    if isinstance(fields, dict) and fields.get("chosen") is not None and "prompt" not in fields:
        return {**fields, "prompt": None}
    return fields


def require_whole_pairs(columns: Any) -> None:
    """Raises `ValueError` unless the columns of a `ColumnsSpec` make whole pairs, or none."""
    if (columns.chosen is None) != (columns.rejected is None):
        given, missing = ("chosen", "rejected") if columns.rejected is None else ("rejected", "chosen")
        raise ValueError(f"expected `chosen` and `rejected` together, got `{given}` without `{missing}`")
    if columns.chosen is None:
        if columns.prompt is None:
            raise ValueError("expected the name of the `prompt` column; it is null only beside `chosen`")
        if columns.ref_chosen_logps is not None or columns.ref_rejected_logps is not None:
            raise ValueError(
                "expected `chosen` and `rejected` beside `ref_chosen_logps` and `ref_rejected_logps`"
            )
        return
    for name in ("completion", "messages"):
        if getattr(columns, name) is not None:
            raise ValueError(f"expected `{name}`, or `chosen` and `rejected`, not both")
    if columns.chosen == columns.rejected:
        raise ValueError(f"expected two columns, got {columns.chosen!r} for both `chosen` and `rejected`")
    if (columns.ref_chosen_logps is None) != (columns.ref_rejected_logps is None):
        raise ValueError("expected both of `ref_chosen_logps` and `ref_rejected_logps`, or neither")


def require_settings_of_pairs(spec: Any) -> None:
    """Raises `ValueError` where a `BuildSpec` has settings that preference pairs exclude, or that only they have."""
    columns, gradients = spec.columns, spec.gradients
    if columns.chosen is None:
        beta = type(gradients).model_fields["preference_beta"].default
        for place, is_given in {
            ("reference_model",): spec.reference_model is not None,
            ("gradients", "preference_beta"): gradients.preference_beta != beta,
        }.items():
            if is_given:
                raise field_error(
                    *place,
                    message="this is for preference pairs: expected columns.chosen and columns.rejected too",
                )
    else:
        _require_settings_of_gradients(gradients)
        if spec.reference_model is not None and columns.ref_chosen_logps is not None:
            raise field_error(
                "reference_model",
                message="columns.ref_chosen_logps already has the log-probabilities of the reference: expected one of "
                "the two",
            )
    if spec.reference_revision is not None and spec.reference_model is None:
        raise field_error("reference_revision", message="expected reference_model too")


def _require_settings_of_gradients(gradients: Any) -> None:
    if gradients.loss != "sum":
        raise field_error(
            *("gradients", "loss"),
            message="the loss of a preference pair compares the log-probabilities of its completions, which are sums "
            f"over tokens: expected sum, got {gradients.loss!r}",
        )
    if gradients.fit_labels != "true":
        raise field_error(
            *("gradients", "fit_labels"),
            message=f"a preference pair has no labels to draw: expected true, got {gradients.fit_labels!r}",
        )
