"""Sets of modules by name, as regular expressions over the names that architectures give to their modules.

The expressions are searched for in a name, so that they also find the LoRA adapters of a module. Each of them is what
`--modules` of `bergson build` would be.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from bergson_core.errors import InvalidInput

MODULE_SETS: Final[Mapping[str, Mapping[str, str]]] = {
    "gpt2": {
        "attention": r"\.attn\.",
        "mlp": r"\.mlp\.",
        "down": r"\.mlp\.c_proj",
    },
    "gpt_neox": {
        "attention": r"\.attention\.",
        "mlp": r"\.mlp\.",
        "down": r"\.mlp\.dense_4h_to_h",
    },
    "llama": {
        "attention": r"\.self_attn\.",
        "mlp": r"\.mlp\.",
        "down": r"\.mlp\.down_proj",
    },
}
"""model_type of a configuration → name of a set → expression. `down` are the projections from the hidden features of an
MLP back to the residual stream."""
ALL: Final = "all"
"""The set of all modules that are tracked by default."""


def select_module_sets(model_type: str, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Returns the names of the modules of each set, in the order of `names`.

    Args:
        model_type: The architecture, as the model's configuration names it.
        names: Names of the tracked modules.

    Raises:
        InvalidInput: The architecture is unknown, or the model has no module of a set.
    """
    names = tuple(names)
    if model_type not in MODULE_SETS:
        known = ", ".join(MODULE_SETS)
        raise InvalidInput(f"no module sets are known for the architecture {model_type!r}; expected {known}")
    sets = {ALL: names}
    for set_name, expression in MODULE_SETS[model_type].items():
        sets[set_name] = tuple(name for name in names if re.search(expression, name))
        if not sets[set_name]:
            raise InvalidInput(
                f"no module of {model_type} matches {expression!r}; expected some among {names}"
            )
    return sets
