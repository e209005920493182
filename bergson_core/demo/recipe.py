"""How the demo's model is built and trained."""

from dataclasses import dataclass

from bergson_core.schemas.training import TrainingSchedule


@dataclass(frozen=True)
class DemoRecipe(TrainingSchedule):
    """The size of the demo's GPT-NeoX, its training schedule, and how well it has to know the facts.

    Attributes:
        hidden: Width of the residual stream.
        layers: Number of transformer layers.
        heads: Number of attention heads of a layer.
        vocabulary: Number of tokens of the tokenizer.
        target: Smallest share of the facts that the trained model has to recite, from 0 to 1.
    """

    hidden: int = 128
    layers: int = 2
    heads: int = 8
    vocabulary: int = 2000
    target: float = 0.8
