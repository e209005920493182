"""The sets of modules that are compared: those that `modules` of a build names, and all that are tracked by default."""

from typing import Final

from bergson_core.models.language_model import LanguageModel
from bergson_core.schemas.build import ALL_MODULES, MODULE_SETS

ALL: Final = ALL_MODULES
"""The set of all modules that are tracked by default."""


def select_module_sets(model: LanguageModel) -> dict[str, tuple[str, ...]]:
    """Returns the names of the modules of each set.

    Raises:
        InvalidInput: The model has no module of a set.
    """
    return {name: tuple(model.select_modules(name)) for name in (ALL, *MODULE_SETS)}
