"""Reads normalizers as they were saved, by the names of their tensors."""

from typing import Final

from torch import Tensor

from bergson_core.gradients.normalizers.normalizers import (
    AdafactorNormalizer,
    AdamNormalizer,
    KfacNormalizer,
    Normalizer,
)
from bergson_core.gradients.normalizers.projected_kfac import ProjectedKfacNormalizer

_NORMALIZERS: Final = (AdafactorNormalizer, KfacNormalizer, ProjectedKfacNormalizer, AdamNormalizer)


def normalizer_from_tensors(tensors: dict[str, Tensor]) -> Normalizer:
    """Returns the normalizer that `Normalizer.tensors` was called on.

    Raises:
        ValueError: No normalizer has tensors of these names.
    """
    for normalizer in _NORMALIZERS:
        if tensors.keys() == normalizer.__annotations__.keys():
            return normalizer(**tensors)
    raise ValueError(f"no normalizer has the tensors {', '.join(tensors)}")
