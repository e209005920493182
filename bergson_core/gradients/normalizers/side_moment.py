"""The second moment of the features on one side of a module, and its damped inverse square root times a projection.

Legend: n vectors, d features of the side, k rows of a projection, r = min(n, d).

With the vectors X [n, d] of a sample, M = XᵀX / n, and what whitens them is (M + λI)^-½ with λ = damping · tr(M) / d.
That root is never formed: only its product with a projection P [k, d] is.

Where the vectors are at least as many as the features, M is summed and decomposed. Where they are fewer, they are kept
as they are, and the eigenvalues v and eigenvectors U of the Gram matrix XXᵀ / n [n, n] give the same product:

    P (M + λI)^-½ = λ^-½ P + (P Xᵀ / √n) U diag(c) Uᵀ (X / √n),    c = ((v + λ)^-½ - λ^-½) / v

So no matrix is larger than r × r or n × d, however wide a module is.
"""

from typing import Final, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from bergson_core.gradients.normalizers.matrix_root import EighFunction

_FLOAT32_BYTES: Final = 4


@final
class SideMoment:
    """Sums the outer products of vectors, or keeps the vectors themselves as long as they are fewer than features.

    Args:
        vectors: The first vectors [n, d].

    Attributes:
        count: n, the number of vectors so far.
        features: d.
        dtype: The type of the vectors.
    """

    def __init__(self, vectors: Float[Tensor, "n d"]) -> None:
        self._vectors: list[Tensor] = [vectors]
        self._total: Tensor | None = None
        self.features, self.dtype = vectors.shape[1], vectors.dtype
        self.count = len(vectors)
        self._sum_if_many()

    def add_(self, other: "SideMoment") -> "SideMoment":
        """Adds the vectors of another moment to this one, which is returned; the other is not to be used any more."""
        self.count += other.count
        self._vectors += other._vectors
        if other._total is not None:
            self._total = other._total if self._total is None else self._total.add_(other._total)
        self._sum_if_many()
        return self

    def _sum_if_many(self) -> None:
        """Replaces the vectors by the sum of their outer products, where these take less memory."""
        if not self._vectors or self.count < self.features:
            return
        vectors = torch.cat(self._vectors)
        total = vectors.mT @ vectors
        self._total = total if self._total is None else self._total.add_(total)
        self._vectors = []

    def root_product(
        self, projection: Float64[Tensor, "k d"], damping: float, eigh: EighFunction = torch.linalg.eigh
    ) -> Float64[Tensor, "k d"]:
        """Returns P (M + damping · mean eigenvalue · I)^-½ on the CPU; zeros where M is zero.

        It is computed in float64 on the device of the vectors.

        Args:
            projection: P; the identity gives the root itself.
            damping: What is added to each eigenvalue, in units of the mean eigenvalue.
            eigh: The eigendecomposition to use, of a matrix [r, r].
        """
        return (self._summed_product if self._total is not None else self._gram_product)(
            projection, damping, eigh
        ).cpu()

    def _summed_product(self, projection: Tensor, damping: float, eigh: EighFunction) -> Tensor:
        """Computes `root_product` from the sum of the outer products."""
        assert self._total is not None
        projection = projection.to(self._total.device)
        values, vectors = eigh(self._total.double() / max(1, self.count))
        values = values.clamp_min(0)
        damped = damping * values.mean()
        if not damped > 0:
            return torch.zeros_like(projection)
        return (projection @ vectors) * (values + damped).rsqrt() @ vectors.mT

    def _gram_product(self, projection: Tensor, damping: float, eigh: EighFunction) -> Tensor:
        """Computes `root_product` from the vectors themselves."""
        features = torch.cat(self._vectors).double() / max(1, self.count) ** 0.5
        projection = projection.to(features.device)
        values, vectors = eigh(features @ features.mT)
        values = values.clamp_min(0)
        damped = damping * values.sum() / self.features
        if not damped > 0:
            return torch.zeros_like(projection)
        base, roots = damped.sqrt(), (values + damped).sqrt()
        # This form of c has no difference of nearly equal numbers in it.
        coefficients = -1 / (roots * base * (roots + base))
        return (
            projection / base + ((projection @ features.mT @ vectors) * coefficients) @ vectors.mT @ features
        )


def side_moment_bytes(vectors: int, features: int) -> int:
    """Returns the most bytes that a `SideMoment` of so many vectors in float32 keeps."""
    return _FLOAT32_BYTES * min(vectors, features) * features
