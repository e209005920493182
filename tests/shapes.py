"""Checks the shapes that bergson_core's annotations state (jaxtyping) in every call that a test makes."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException
from jaxtyping import install_import_hook

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its arguments and result checked, if it states a shape.

    Others are left alone: tests hand them fakes and wrong types on purpose. So are methods with `Self`, which
    beartype cannot resolve, because jaxtyping hands them over one by one, without their class.
    """
    if "jaxtyping." not in repr(getattr(function, "__annotations__", {})):
        return function
    try:
        return _check(function)
    except BeartypeDecorHintException:
        return function


def install() -> None:
    """Check the modules of bergson_core that are imported from now on."""
    install_import_hook("bergson_core", f"{__name__}.checked")
