"""The sets of modules that are compared are those that a build can name."""

import pytest

from benchmarks.quality.module_sets import ALL, select_module_sets
from bergson_core.errors import InvalidInput
from bergson_core.models.language_model import as_language_model
from tests import architectures, tiny


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_sets_are_those_that_a_build_names_and_all_modules(architecture: str) -> None:
    model = as_language_model(tiny.model(architecture))
    sets = select_module_sets(model)
    assert {name: tuple(model.select_modules(name)) for name in ("mlp", "attention", "down")} == {
        name: modules for name, modules in sets.items() if name != ALL
    }
    assert sets[ALL] == tuple(model.select_modules())


def test_a_model_without_modules_of_a_set_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="'mlp'"):
        select_module_sets(as_language_model(architectures.model("mamba")))
