"""`GradientProcessor`: the normalizers and projections between a module's gradients and a row, as saved state."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bergson_core.errors import IndexCorrupt, InvalidInput
from bergson_core.gradients.normalizers.normalizers import Normalizer
from bergson_core.gradients.normalizers.saved_normalizers import normalizer_from_tensors
from bergson_core.gradients.projection import PROJECTIONS
from bergson_core.schemas.base import ResultModel
from bergson_core.schemas.build import Projection
from bergson_core.utils.disk_errors import translate_disk_errors

_SETTINGS_FILE: Final = "processor.json"
_NORMALIZERS_FILE: Final = "normalizers.safetensors"


class _Settings(ResultModel):
    """What processor.json holds."""

    projection_dim: int | None = None
    projection: Projection = "rademacher"
    seed: int = 0
    include_bias: bool = False
    split_heads: bool = False


@final
class GradientProcessor:
    """How gradients are normalized and then projected, module by module.

    The gradient G [o, i] of a module with o output and i input features is divided by the root of a second moment,
    where the module has a normalizer, and becomes L G Rᵀ [p, p] by two random projections L [p, o] and R [p, i]. The
    projections are never saved: `seed`, `projection` and the module's name determine them. Rows can be compared when
    their processors have the same `fingerprint`. `fit_processor` returns a processor with fitted normalizers.

    Args:
        projection_dim: p, 1 or more. None keeps gradients whole, [o, i].
        normalizers: Module name → fitted normalizer. The gradients of a module that has none are not normalized.
        seed: The seed of the projections.
        include_bias: Whether the gradients of biases are tracked, as those of one more input feature.
        projection: How the projections are drawn: "rademacher" (entries ±1/√p), "normal" or "orthogonal".
        split_heads: Whether each head of a module of attention is a module of its own, such as `….q_proj.head_3`.

    Raises:
        InvalidInput: `projection_dim` is below 1, or `projection` is unknown.

    Source: TrackStar (Chang et al., arXiv 2410.17413, section 3) normalizes and projects gradients in this way.

    Example:
        >>> processor = fit_processor(model, dataset, tokenizer)
        >>> processor.save("statistics")
        >>> dataset = collect_gradients(model, dataset, tokenizer, GradientProcessor.load("statistics"))
    """

    def __init__(
        self,
        projection_dim: int | None = None,
        normalizers: Mapping[str, Normalizer] | None = None,
        seed: int = 0,
        include_bias: bool = False,
        projection: Projection = "orthogonal",
        split_heads: bool = False,
    ) -> None:
        if projection not in PROJECTIONS:
            raise InvalidInput(f"projection is {projection!r}; expected one of {', '.join(PROJECTIONS)}")
        if projection_dim is not None and projection_dim < 1:
            raise InvalidInput(
                f"projection_dim is {projection_dim}; expected 1 or more, or None for full gradients"
            )
        self.projection_dim = projection_dim
        self.normalizers = dict(normalizers or {})
        self.seed = seed
        self.include_bias = include_bias
        self.projection: Projection = projection
        self.split_heads = split_heads

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments except `normalizers`, as `save` writes them."""
        settings = {
            "projection_dim": self.projection_dim,
            "projection": self.projection,
            "seed": self.seed,
            "include_bias": self.include_bias,
        }
        # Left out where it is false, so that the fingerprints of earlier releases stay.
        return settings | ({"split_heads": True} if self.split_heads else {})

    def fingerprint(self) -> str:
        """Returns a sha256 of the settings and the normalizers; rows of equal fingerprints can be compared."""
        digest = hashlib.sha256(json.dumps(self.settings).encode())
        for name, normalizer in sorted(self.normalizers.items()):
            for part, tensor in normalizer.tensors().items():
                digest.update(f"{name}/{part} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, directory: str | Path) -> None:
        """Writes processor.json and normalizers.safetensors to a directory, which is created where it is missing."""
        directory = Path(directory)
        tensors = {
            f"{name}/{part}": tensor.contiguous()
            for name, normalizer in self.normalizers.items()
            for part, tensor in normalizer.tensors().items()
        }
        with translate_disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            save_file(tensors, directory / _NORMALIZERS_FILE)
            (directory / _SETTINGS_FILE).write_text(json.dumps(self.settings, indent=2))

    @classmethod
    def load(cls, directory: str | Path) -> "GradientProcessor":
        """Reads the processor that `save` wrote to a directory.

        Raises:
            IndexCorrupt: A file is missing or damaged.
        """
        directory = Path(directory)
        try:
            settings = _Settings.model_validate_json((directory / _SETTINGS_FILE).read_bytes(), strict=True)
            tensors_by_module: dict[str, dict[str, Tensor]] = {}
            for key, tensor in load_file(directory / _NORMALIZERS_FILE).items():
                name, part = key.rsplit("/", 1)
                tensors_by_module.setdefault(name, {})[part] = tensor
            normalizers = {
                name: normalizer_from_tensors(tensors) for name, tensors in tensors_by_module.items()
            }
            return cls(normalizers=normalizers, **dict(settings))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise IndexCorrupt(f"no gradient processor can be read from {directory}: {error}") from error
