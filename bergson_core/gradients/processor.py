"""What happens to a gradient between the layer and the row: normalisation and projection, as saved state."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bergson_core.errors import IndexCorrupt, InvalidInput
from bergson_core.gradients import normalizers as kinds
from bergson_core.gradients.normalizers import Normalizer
from bergson_core.gradients.projection import PROJECTIONS
from bergson_core.schemas.build import Projection

_JSON, _TENSORS = "processor.json", "normalizers.safetensors"


class GradientProcessor:
    """Normalizes each layer's gradient, then projects it to `projection_dim` × `projection_dim`.

    `projection_dim` None keeps gradients whole. `normalizers` maps layer names to fitted normalizers; a layer
    without one is left as it is. `seed` and `projection` decide the projections, `include_bias` adds the bias
    gradients.
    Raises `InvalidInput` for a dimension below 1 or an unknown projection.
    """

    def __init__(
        self,
        projection_dim: int | None = None,
        normalizers: Mapping[str, Normalizer] | None = None,
        seed: int = 0,
        include_bias: bool = False,
        projection: Projection = "rademacher",
    ) -> None:
        if projection not in PROJECTIONS:
            raise InvalidInput(f"projection is {projection!r}; expected one of {', '.join(PROJECTIONS)}")
        if projection_dim is not None and projection_dim < 1:
            raise InvalidInput(
                f"projection_dim is {projection_dim}; expected 1 or more, or None for whole gradients"
            )
        self.projection_dim = projection_dim
        self.normalizers = dict(normalizers or {})
        self.seed = seed
        self.include_bias = include_bias
        self.projection: Projection = projection

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the normalizers, as it is saved."""
        return {
            "projection_dim": self.projection_dim,
            "projection": self.projection,
            "seed": self.seed,
            "include_bias": self.include_bias,
        }

    def fingerprint(self) -> str:
        """sha256 of the settings and the normalizers: rows of one fingerprint can be compared."""
        digest = hashlib.sha256(json.dumps(self.settings).encode())
        for name, normalizer in sorted(self.normalizers.items()):
            for part, tensor in normalizer.tensors().items():
                digest.update(f"{name}/{part} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, directory: str | Path) -> None:
        """Writes processor.json and normalizers.safetensors."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{name}/{part}": tensor.contiguous()
            for name, normalizer in self.normalizers.items()
            for part, tensor in normalizer.tensors().items()
        }
        save_file(tensors, directory / _TENSORS)
        (directory / _JSON).write_text(json.dumps(self.settings, indent=2))

    @classmethod
    def load(cls, directory: str | Path) -> "GradientProcessor":
        """The processor that was saved there. Raises `IndexCorrupt` where it cannot be read."""
        directory = Path(directory)
        try:
            settings = json.loads((directory / _JSON).read_text())
            parts: dict[str, dict] = {}
            for key, tensor in load_file(directory / _TENSORS).items():
                name, part = key.rsplit("/", 1)
                parts.setdefault(name, {})[part] = tensor
            fitted = {name: kinds.normalizer_from_tensors(tensors) for name, tensors in parts.items()}
            return cls(normalizers=fitted, **settings)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IndexCorrupt(f"no gradient processor can be read from {directory}: {error}") from error
