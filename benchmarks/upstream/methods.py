"""The methods of EleutherAI's bergson, as steps of a configuration file of its command line.

Everything that is not named here has its default. The steps follow its documentation and the configurations of the
comparison that its README reports (examples/compare_wikitext in its repository).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

Steps: TypeAlias = Sequence[Mapping[str, Mapping[str, Any]]]
DAMPING: Final = 0.1
"""Its default: a share of the mean eigenvalue."""
LITTLE_DAMPING: Final = 0.001
"""The share that K-FAC's factors are damped by in this project."""
_MAX_DOCUMENTS: Final = 64
"""Documents of a batch whose gradients are not projected."""


@dataclass(frozen=True)
class Inputs:
    """What a run reads, and where it writes.

    Attributes:
        model: Directory of the model.
        documents: JSON Lines of the documents, with `input_ids` and `labels`.
        queries: The same of the queries.
        directory: An empty directory for all that the run writes.
        token_batch_size: Tokens of a batch, padding included.
        training: Schedule of the training that MAGIC repeats.
    """

    model: Path
    documents: Path
    queries: Path
    directory: Path
    token_batch_size: int
    training: Mapping[str, Any]

    @property
    def scores(self) -> Path:
        """The directory that the scores are in after the run."""
        return self.directory / "run" / "scores"

    def index(self, name: str, dataset: Path, **options: Any) -> dict[str, Any]:
        """Returns the settings of a pass over a dataset that writes to the directory `name`."""
        return {
            "run_path": str(self.directory / name),
            "model": str(self.model),
            "precision": "fp32",
            "token_batch_size": self.token_batch_size,
            "data": {"dataset": str(dataset)},
            **options,
        }

    def query_set(self) -> dict[str, Any]:
        """Returns the settings of the queries, each of which gets scores of its own."""
        return {"dataset": str(self.queries), "aggregation": "none"}


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        title: Its name in tables.
        steps: Returns the steps of a run.
        whole_gradients: Whether it holds the queries' gradients without projection.
        queries: Number of queries that it takes by default, the first ones; None takes all. Some cost minutes a query.
        negate: Whether its scores are low where a document helps.
        trains: Whether it trains a model itself instead of taking the trained one.
    """

    title: str
    steps: Callable[[Inputs], Steps]
    whole_gradients: bool = False
    queries: int | None = None
    negate: bool = False
    trains: bool = False


def compare_gradients(inputs: Inputs, *, cosine: bool) -> Steps:
    """Returns the steps of inner products or cosines of whole gradients: `build` of the queries, then `score`."""
    passes = {"max_batch_size": _MAX_DOCUMENTS}
    query = {"index_cfg": inputs.index("query", inputs.queries, **passes), "preprocess_cfg": {}}
    score = {
        "score_cfg": {"query_path": str(inputs.directory / "query")},
        "index_cfg": inputs.index("run/scores", inputs.documents, **passes),
        "preprocess_cfg": {"unit_normalize": cosine},
    }
    return [{"build": query}, {"score": score}]


def trackstar(inputs: Inputs, *, projection_dim: int, mixed: bool = True) -> Steps:
    """Returns the step of TrackStar: projected gradients, whitened by their autocorrelation, with unit norm.

    Args:
        inputs: What the run reads.
        projection_dim: Size of the projection of each side of a module.
        mixed: Whether the autocorrelation of the queries is mixed in, as it is by default. Its documentation advises
            against that where queries are few and alike the documents.
    """
    options: dict[str, Any] = {"query": inputs.query_set(), "preprocess_cfg": {"unit_normalize": True}}
    if not mixed:
        options["mix_hessians"] = False
    settings = {
        "index_cfg": inputs.index("run", inputs.documents, projection_dim=projection_dim),
        "trackstar_cfg": options,
    }
    return [{"trackstar": settings}]


def influence(
    inputs: Inputs,
    *,
    factors: str = "kfac",
    corrected: bool = True,
    damping: float = DAMPING,
    refinement: Mapping[str, Any] | None = None,
) -> Steps:
    """Returns the step of influence functions with whole gradients.

    Args:
        inputs: What the run reads.
        factors: Kind of the Hessian's factors, "kfac" or "shampoo".
        corrected: Whether the eigenvalues are corrected, which makes K-FAC EK-FAC.
        damping: Share of the mean eigenvalue that is added to each eigenvalue.
        refinement: How the inverse is refined with products of the Gauss-Newton Hessian; None leaves it as it is.
    """
    settings = {
        "index_cfg": inputs.index("run", inputs.documents, max_batch_size=_MAX_DOCUMENTS),
        "hessian_cfg": {"method": factors, "ev_correction": corrected},
        "score_cfg": {},
        "preprocess_cfg": {"unit_normalize": False},
        "hessian_pipeline_cfg": {
            "query": inputs.query_set(),
            "inversion_cfg": {"damping_factor": damping},
            "astra": refinement or {},
        },
    }
    return [{"ekfac": settings}]


def magic(inputs: Inputs) -> Steps:
    """Returns the step of MAGIC: it trains the model itself and differentiates the training, once for each query."""
    settings = {
        "run_path": str(inputs.directory / "run"),
        "model": str(inputs.model),
        "precision": "fp32",
        "data": {"dataset": str(inputs.documents)},
        "query": inputs.query_set(),
        "wandb_project": "",
        **inputs.training,
    }
    return [{"magic": settings}]


CG_DAMPING: Final = 10.0
CONJUGATE_GRADIENTS: Final[Mapping[str, Any]] = {
    "solver": "cg",
    "num_steps": 20,
    "batch_size": 256,
    "micro_batch_size": 32,
}
METHODS: Final[Mapping[str, Method]] = {
    "gradient_dot": Method(
        "inner products of whole gradients", partial(compare_gradients, cosine=False), whole_gradients=True
    ),
    "gradient_cosine": Method(
        "cosines of whole gradients", partial(compare_gradients, cosine=True), whole_gradients=True
    ),
    "trackstar_p16": Method("TrackStar, p = 16", partial(trackstar, projection_dim=16)),
    "trackstar_p32": Method("TrackStar, p = 32", partial(trackstar, projection_dim=32)),
    "trackstar_p16_unmixed": Method(
        "TrackStar, p = 16, not mixed", partial(trackstar, projection_dim=16, mixed=False)
    ),
    "trackstar_p32_unmixed": Method(
        "TrackStar, p = 32, not mixed", partial(trackstar, projection_dim=32, mixed=False)
    ),
    "ekfac": Method("EK-FAC", influence, whole_gradients=True),
    "ekfac_little_damping": Method(
        f"EK-FAC damped by {LITTLE_DAMPING}", partial(influence, damping=LITTLE_DAMPING), whole_gradients=True
    ),
    "shampoo": Method(
        "Shampoo with corrected eigenvalues", partial(influence, factors="shampoo"), whole_gradients=True
    ),
    "ekfac_cg": Method(
        "EK-FAC + CG",
        partial(influence, damping=CG_DAMPING, refinement=CONJUGATE_GRADIENTS),
        whole_gradients=True,
        queries=10,
    ),
    "magic": Method("MAGIC", magic, queries=10, negate=True, trains=True),
}
"""Name → method, in the order of the table."""
