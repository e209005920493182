"""How large the demo's model is and how it is trained."""

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, a note such as "loss 1.23")."""


@dataclass(frozen=True)
class Recipe:
    """How large the model is and how it is trained.

    It takes `epochs` passes over the documents, but at least `least_steps` steps. `target` is the share of facts that
    must be recited in the end. `threads` is torch's: these matrices are small, so a second thread gains little on an
    idle machine, and on a busy one the two wait for each other and took twice as long as one.
    """

    hidden: int = 128
    layers: int = 2
    heads: int = 8
    vocabulary: int = 2000
    batch_size: int = 64
    epochs: int = 16
    least_steps: int = 250
    learning_rate: float = 3e-3
    warmup: float = 0.3
    weight_decay: float = 0.1
    target: float = 0.8
    threads: int = 1
