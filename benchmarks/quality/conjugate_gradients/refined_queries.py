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
        documents: Products of the space's basis and the documents' whitened gradients [K, n].
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
        return scores * reciprocal_or_zero(self.document_squares[DAMPINGS.index(damping)].sqrt())


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
    seconds = float(tensors.pop("seconds"))
    own = {name: tensors.pop(name) for name in ("documents", "start_scores", "document_squares")}
    return RefinedQueries(KrylovSpace(**tensors), **own, seconds=seconds)


def whiten(
    bases: Mapping[str, Eigenbasis], gradients: Mapping[str, Float[Tensor, "n o i"]], damping: float
) -> Float[Tensor, "n D"]:
    """Returns the gradients in the coordinates in which EK-FAC with this damping is the identity, as rows."""
    return torch.cat([basis.whiten(gradients[name], damping).flatten(1) for name, basis in bases.items()], 1)


def multiply_whitened(
    matrix: GaussNewton, bases: Mapping[str, Eigenbasis], rows: Float[Tensor, "n D"], damping: float
) -> Float[Tensor, "n D"]:
    """Multiplies rows with the Gauss-Newton matrix in the coordinates of `whiten`."""
    parts = rows.split([basis.moment.numel() for basis in bases.values()], dim=1)
    weights = {
        name: basis.unwhiten(part.unflatten(1, basis.moment.shape), damping)
        for part, (name, basis) in zip(parts, bases.items(), strict=True)
    }
    return whiten(bases, matrix.multiply(weights), damping)


def whitened_mean(bases: Mapping[str, Eigenbasis], damping: float) -> Float[Tensor, " D"]:
    """Returns M in the coordinates of `whiten`, in which it is diagonal."""
    return torch.cat(
        [(basis.moment.mean() * basis.scales(damping).square()).flatten() for basis in bases.values()]
    )


def _refine(
    experiment: Experiment, modules: Sequence[str], damping: float, iterations: int
) -> RefinedQueries:
    fitted = fit_eigenbases(experiment)
    bases = {name: fitted[name] for name in modules}
    (gradients,) = iter_gradients(experiment, of_queries=True)
    started = time.process_time()
    space, basis = _build_space(experiment, bases, whiten(bases, gradients, damping), damping, iterations)
    seconds = time.process_time() - started
    queries = [whiten(bases, gradients, each) for each in DAMPINGS]
    documents, scores, squares = [], [], []
    for chunk in iter_gradients(experiment):
        documents.append(basis @ whiten(bases, chunk, damping).mT)
        rows = [whiten(bases, chunk, each) for each in DAMPINGS]
        scores.append(torch.stack([query @ row.mT for query, row in zip(queries, rows, strict=True)]))
        squares.append(torch.stack([row.square().sum(1) for row in rows]))
    return RefinedQueries(
        space, torch.cat(documents, 1), torch.cat(scores, 2), torch.cat(squares, 1), seconds
    )


def _build_space(
    experiment: Experiment,
    bases: Mapping[str, Eigenbasis],
    queries: Float[Tensor, "q D"],
    damping: float,
    iterations: int,
) -> tuple[KrylovSpace, Float[Tensor, "K D"]]:
    case = experiment.case
    tracked = case.model.select_modules()
    matrix = GaussNewton(case.model, case.documents, {name: tracked[name] for name in bases})
    return build_krylov_space(
        lambda rows: multiply_whitened(matrix, bases, rows, damping),
        queries,
        whitened_mean(bases, damping),
        damping,
        iterations,
    )
