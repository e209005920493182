"""How the built-in training loop trains a model."""

from collections.abc import Callable
from dataclasses import dataclass

TrainingProgress = Callable[[int, int, str], None]
"""Called with the number of steps done, the number of all steps, and a note such as "loss 1.23"."""


@dataclass(frozen=True)
class TrainingSchedule:
    """Batches, steps and learning rate of a training run with AdamW.

    The learning rate rises linearly during the first part of the run, then falls linearly to zero.

    Attributes:
        batch_size: Documents of a step.
        epochs: Passes over the documents.
        least_steps: Smallest number of steps, for which a run on few documents makes further passes.
        learning_rate: Highest learning rate.
        warmup: Share of the steps during which the learning rate rises.
        weight_decay: Weight decay of AdamW.
        threads: Threads of torch. The matrices are small: a second thread gains little on an idle machine, and on a
            busy one the two wait for each other and took twice as long as one.
    """

    batch_size: int = 64
    epochs: int = 16
    least_steps: int = 250
    learning_rate: float = 3e-3
    warmup: float = 0.3
    weight_decay: float = 0.1
    threads: int = 1

    def steps(self, documents: int) -> int:
        """Returns the number of steps of a run on this many documents."""
        return max(self.least_steps, self.epochs * -(-documents // self.batch_size))
