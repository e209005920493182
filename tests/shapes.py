"""Checks the arguments and results of bergson_core's functions, in tests, against the shapes in their annotations."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException
from jaxtyping import install_import_hook

_check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))  # An int is accepted for a float.


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with a check of its arguments and its result, if its annotations state a shape.

    Other functions are returned as they are, because tests pass fakes and wrong types to them on purpose. So are
    methods with `Self`: beartype cannot resolve it, because jaxtyping passes methods one by one, without their class.
    """
    if "jaxtyping." not in repr(getattr(function, "__annotations__", {})):
        return function
    try:
        return _check_types(function)
    except BeartypeDecorHintException:
        return function


def install() -> None:
    """Checks the modules of bergson_core that are imported from now on."""
    install_import_hook("bergson_core", f"{__name__}.check_shapes")
