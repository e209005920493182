"""The gradient processors of several checkpoints, as the one processor that an index saves.

The normalizers of a checkpoint's modules have names that begin with the checkpoint's prefix. Each checkpoint has
projections of its own, so that the noise of the projections averages out over checkpoints.
"""

import hashlib
from collections.abc import Sequence

from bergson_core.gradients.processor import GradientProcessor
from bergson_core.models.checkpoints.loading import checkpoint_prefix


def checkpoint_seed(seed: int, number: int) -> int:
    """Returns the seed of a checkpoint's projections, from 0 to 2⁶³ - 1."""
    digest = hashlib.sha256(f"{seed}\0checkpoint {number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def join_processors(processors: Sequence[GradientProcessor], seed: int) -> GradientProcessor:
    """Returns the processor of an index of several checkpoints.

    Args:
        processors: The processors of the checkpoints, which differ in their normalizers and seeds alone.
        seed: The seed of the index.
    """
    normalizers = {
        f"{checkpoint_prefix(number)}{name}": normalizer
        for number, processor in enumerate(processors)
        for name, normalizer in processor.normalizers.items()
    }
    return GradientProcessor(**{**processors[0].settings, "seed": seed}, normalizers=normalizers)


def processor_of_checkpoint(processor: GradientProcessor, number: int) -> GradientProcessor:
    """Returns the processor of one checkpoint, from that of the index."""
    prefix = checkpoint_prefix(number)
    normalizers = {
        name.removeprefix(prefix): normalizer
        for name, normalizer in processor.normalizers.items()
        if name.startswith(prefix)
    }
    seed = checkpoint_seed(processor.seed, number)
    return GradientProcessor(**{**processor.settings, "seed": seed}, normalizers=normalizers)
