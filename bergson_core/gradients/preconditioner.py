"""TrackStar's preconditioner C^-½, which rows are multiplied with before they are compared.

Legend: n rows, m modules, d numbers per module.

C is block-diagonal over modules: each block is the mean outer product of the module's part of the rows. A score is the
inner product of two rows after C^-½ and then, not before, scaling to unit length: the two do not commute.

Source: Chang et al., arXiv 2410.17413, section 3.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bergson_core.gradients.normalizers.matrix_root import EighFunction, inverse_root
from bergson_core.utils.background import stop_if_abandoned


@final
class SecondMoment:
    """Sums the outer products of rows while these are computed.

    Args:
        modules: m.
        width: d.
        device: Where the sum is kept.

    Attributes:
        total: Σ row rowᵀ [m, d, d] float32 over the rows so far.
        rows: The number of rows in the sum.
    """

    def __init__(self, modules: int, width: int, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(modules, width, width, device=device)
        self.rows = 0

    def add(self, rows: Float[Tensor, "n m d"]) -> None:
        """Adds `rows` to the sum."""
        by_module = rows.transpose(0, 1).to(self.total)
        self.total.baddbmm_(by_module.mT, by_module)
        self.rows += len(rows)


@final
@dataclass(frozen=True)
class Preconditioner:
    """C^-½, one block for each module.

    Attributes:
        inverse_root: The blocks [m, d, d], symmetric, in float32.
    """

    inverse_root: Tensor

    @classmethod
    def fit(
        cls,
        total: Float[Tensor, "m d d"],
        rows: int,
        damping: float,
        eigh: EighFunction = torch.linalg.eigh,
    ) -> "Preconditioner":
        """Returns the preconditioner of `rows` rows whose outer products sum to `total`, computed in float64.

        Args:
            total: Σ row rowᵀ [m, d, d] over the rows.
            rows: The number of rows in that sum.
            damping: What is added to each eigenvalue of a module's C, in units of their mean.
            eigh: The eigendecomposition to use.

        Returns:
            C^-½ of each module. A module whose rows were all zero gets a block of zeros: it can say nothing about
            any query.
        """
        roots = torch.zeros(total.shape, dtype=torch.float32)
        for root, block in zip(roots, total, strict=True):
            stop_if_abandoned()
            root.copy_(inverse_root(block.double().cpu() / rows, damping, eigh))
        return cls(roots)

    def inverse(self) -> "Preconditioner":
        """Returns C^½ of each module, the root of the damped C; zero where C^-½ is zero."""
        values, vectors = torch.linalg.eigh(self.inverse_root.double())
        roots = torch.where(values > 0, 1 / values.clamp_min(torch.finfo(torch.float32).tiny), 0)
        return Preconditioner((vectors * roots[:, None] @ vectors.mT).float())

    def apply(self, rows: Float[Tensor, "n m d"]) -> Float[Tensor, "n m d"]:
        """Returns C^-½ times each of `rows`."""
        return (rows.transpose(0, 1) @ self.inverse_root.to(rows)).transpose(0, 1)

    def save(self, path: Path, second_moment: Float[Tensor, "m d d"]) -> None:
        """Writes a safetensors file with C^-½, and with C [m, d, d], which is `second_moment`, beside it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"inverse_root": self.inverse_root, "second_moment": second_moment.float().cpu()}, path)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> "Preconditioner":
        """Reads what `save` wrote."""
        with safe_open(path, framework="pt", device=str(device)) as file:
            return cls(file.get_tensor("inverse_root"))
