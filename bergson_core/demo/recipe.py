"""TODO"""

from dataclasses import dataclass

from bergson_core.schemas.training import TrainingSchedule


@dataclass(frozen=True)
class DemoRecipe(TrainingSchedule):
    """The demo's model. `target` is the share of facts that must be recited in the end."""

    hidden: int = 128
    layers: int = 2
    heads: int = 8
    vocabulary: int = 2000
    target: float = 0.8
