"""Checks the arguments and results of bergson_core's functions, in tests, against the shapes in their annotations."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

_check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))  # An int is accepted for a float.
_jaxtyped = jaxtyping.jaxtyped


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with a check of its arguments and its result.

    Methods with `Self` are returned as they are: beartype cannot resolve it, because jaxtyping passes methods one by
    one, without their class.
    """
    try:
        return _check_types(function)
    except BeartypeDecorHintException:
        return function


def jaxtyped_where_shapes_are(typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """Returns what `jaxtyping.jaxtyped` returns, but leaves functions and dataclasses without a shape as they are.

    Tests pass fakes and wrong types to such functions on purpose, and jaxtyping's own wrapper of each of them takes
    half as long as all else of a small build.
    """

    def decorate(item: Any) -> Any:
        types = (
            [field.type for field in fields(item)]
            if is_dataclass(item)
            else getattr(item, "__annotations__", {})
        )
        return _jaxtyped(item, typechecker=typechecker) if "jaxtyping." in repr(types) else item

    return decorate


def install() -> None:
    """Checks the modules of bergson_core that are imported from now on."""
    jaxtyping.jaxtyped = jaxtyped_where_shapes_are
    jaxtyping.install_import_hook("bergson_core", f"{__name__}.check_shapes")
