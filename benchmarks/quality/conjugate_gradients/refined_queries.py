"""Scores of whole gradients with queries that conjugate gradients refine, from those of EK-FAC on.

Legend: q queries, n documents, c dampings, k iterations, K = k q, D weights of the tracked modules, o output and i
input features.

A refined query is (G + c M)⁻¹ v: v is the query's gradient, G the Gauss-Newton matrix of the documents, c the damping,
and M the mean second moment of the gradients of each module. EK-FAC puts its own matrix in the place of G. The system
is solved in the coordinates in which EK-FAC is the identity: its own solution is the right side there.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.quality.conjugate_gradients.gauss_newton import GaussNewton
from benchmarks.quality.conjugate_gradients.krylov_space import KrylovSpace, build_krylov_space
from benchmarks.quality.experiments import Experiment
from benchmarks.quality.unprojected import Eigenbasis, fit_eigenbases, iter_gradients
from bergson_core.search.features import reciprocal_or_zero
from bergson_core.utils.atomic_files import atomic_path

DAMPINGS: Final = (1e-3, 1e-2, 1e-1, 1.0)
"""c of the solutions."""


@dataclass(frozen=True)
class RefinedQueries:
    """What all scores of refined queries are made of.

    Attributes:
        space: Where the solutions are.
        documents: Products of the space's basis and the documents' gradients [K, n].
        start_scores: Scores [c, q, n] of EK-FAC's own solutions, for each of `DAMPINGS`.
        document_squares: Squared lengths [c, n] of the documents' gradients that EK-FAC whitens, likewise.
        seconds: Processor seconds of all iterations.
    """

    space: KrylovSpace
    documents: Float[Tensor, "K n"]
    start_scores: Float[Tensor, "c q n"]
    document_squares: Float[Tensor, "c n"]
    seconds: float

    def scores(self, iterations: int, damping: float) -> tuple[Float[Tensor, "q n"], float]:
        """Returns the scores after some iterations, and how much of the systems is not solved.

        Args:
            iterations: How many, from 0 (EK-FAC) to all.
            damping: One of `DAMPINGS`.

        Returns:
            The scores, and the mean length of what is left of the right sides in units of theirs; NaN for EK-FAC.
        """
        if iterations == 0:
            return self.start_scores[DAMPINGS.index(damping)], float("nan")
        solutions, residuals = self.space.solve(iterations, damping)
        return (solutions.mT @ self.documents[: len(solutions)].double()).float(), float(residuals.mean())

    def normalize(self, scores: Float[Tensor, "q n"], damping: float) -> Float[Tensor, "q n"]:
        """Divides scores by the lengths of the documents' whitened gradients."""
        return scores * reciprocal_or_zero(self.document_squares[[DAMPINGS.index(damping)]].sqrt())


def refine_queries(
    experiment: Experiment, modules: Sequence[str], damping: float, iterations: int
) -> RefinedQueries:
    """Refines all queries of an experiment, unless the result is in a file.

    Args:
        experiment: The experiment, all of whose queries are refined together.
        modules: Names of the modules whose weights count.
        damping: c of EK-FAC as the preconditioner.
        iterations: How many products with the Gauss-Newton matrix each query takes.
    """
    inputs = [experiment.key, list(modules), damping, iterations, DAMPINGS]
    digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
    path = experiment.directory / f"refined-{digest[:16]}.npz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        numbers = asdict(_refine(experiment, modules, damping, iterations))
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **numbers.pop("space"), **numbers)
    with np.load(path) as saved:
        tensors = {name: torch.from_numpy(saved[name]) for name in saved.files}
    seconds, built_damping = (float(tensors.pop(name)) for name in ("seconds", "built_damping"))
    own = {name: tensors.pop(name) for name in ("documents", "start_scores", "document_squares")}
    return RefinedQueries(KrylovSpace(**tensors, built_damping=built_damping), **own, seconds=seconds)


def rotate(
    bases: Mapping[str, Eigenbasis], gradients: Mapping[str, Float[Tensor, "n o i"]]
) -> Float[Tensor, "n D"]:
    """Returns gradients as combinations of the directions in which EK-FAC is diagonal, as rows."""
    return torch.cat([basis.rotate(gradients[name]).flatten(1) for name, basis in bases.items()], 1)


def scales(bases: Mapping[str, Eigenbasis], damping: float) -> Float[Tensor, " D"]:
    """Returns what rotated gradients are multiplied with so that EK-FAC with this damping is the identity."""
    return torch.cat([basis.scales(damping).flatten() for basis in bases.values()])


def multiply_rotated(
    matrix: GaussNewton, bases: Mapping[str, Eigenbasis], rows: Float[Tensor, "n D"]
) -> Float[Tensor, "n D"]:
    """Multiplies rotated rows with the Gauss-Newton matrix."""
    parts = rows.split([basis.moment.numel() for basis in bases.values()], dim=1)
    weights = {
        name: basis.rotate_back(part.unflatten(1, basis.moment.shape))
        for part, (name, basis) in zip(parts, bases.items(), strict=True)
    }
    return rotate(bases, matrix.multiply(weights))


def _refine(
    experiment: Experiment, modules: Sequence[str], damping: float, iterations: int
) -> RefinedQueries:
    fitted = fit_eigenbases(experiment)
    bases = {name: fitted[name] for name in modules}
    (gradients,) = iter_gradients(experiment, of_queries=True)
    queries = rotate(bases, gradients)
    started = time.process_time()
    space, basis = _build_space(experiment, bases, queries, damping, iterations)
    seconds = time.process_time() - started
    basis *= scales(bases, damping)
    squared_scales = torch.stack([scales(bases, each).square() for each in DAMPINGS])
    documents, start_scores, squares = [], [], []
    for chunk in iter_gradients(experiment):
        rows = rotate(bases, chunk)
        documents.append(basis @ rows.mT)
        start_scores.append(torch.stack([(queries * each) @ rows.mT for each in squared_scales]))
        squares.append(squared_scales @ rows.square().mT)
    return RefinedQueries(
        space, torch.cat(documents, 1), torch.cat(start_scores, 2), torch.cat(squares, 1), seconds
    )


def _build_space(
    experiment: Experiment,
    bases: Mapping[str, Eigenbasis],
    queries: Float[Tensor, "q D"],
    damping: float,
    iterations: int,
) -> tuple[KrylovSpace, Float[Tensor, "K D"]]:
    """Returns the space in the coordinates in which EK-FAC is the identity, and its basis."""
    case, scale = experiment.case, scales(bases, damping)
    tracked = case.model.select_modules()
    matrix = GaussNewton(case.model, case.documents, {name: tracked[name] for name in bases})
    means = torch.cat([basis.moment.mean().expand(basis.moment.numel()) for basis in bases.values()])
    return build_krylov_space(
        lambda rows: multiply_rotated(matrix, bases, rows * scale) * scale,
        queries * scale,
        means * scale.square(),
        damping,
        iterations,
    )
