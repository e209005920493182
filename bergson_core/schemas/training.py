"""How the models that the project trains itself are trained, and how large the demo's is. No torch here."""

from collections.abc import Callable
from dataclasses import dataclass

TrainingProgress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, a note such as "loss 1.23")."""


@dataclass(frozen=True)
class TrainingSchedule:
    """`epochs` passes over the documents, but at least `least_steps` steps of AdamW on `batch_size` of them.

    The learning rate rises linearly over the share `warmup` of the steps, then falls linearly to zero. `threads` is
    torch's: these matrices are small, so a second thread gains little on an idle machine, and on a busy one the two
    wait for each other and took twice as long as one.
    """

    batch_size: int = 64
    epochs: int = 16
    least_steps: int = 250
    learning_rate: float = 3e-3
    warmup: float = 0.3
    weight_decay: float = 0.1
    threads: int = 1

    def steps(self, documents: int) -> int:
        """Steps of a run on so many documents."""
        return max(self.least_steps, self.epochs * -(-documents // self.batch_size))
