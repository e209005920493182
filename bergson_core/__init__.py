"""Training-data attribution: which training samples made a language model say that?

The public names below are loaded on first use, so that a process which needs only `errors`, `specs` or
`manifest` (the web service) never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bergson_core.attribution.corpus_scores import score_corpus, self_influence
    from bergson_core.attribution.index import AttributionIndex
    from bergson_core.attribution.near_duplicates import document_numbers, near_duplicates
    from bergson_core.attribution.profile_fitting import fit_profile
    from bergson_core.attribution.score_totals import Totals, best
    from bergson_core.attribution.unlearning import Unlearner
    from bergson_core.evaluation.evaluate import evaluate
    from bergson_core.gradients.collector import GradientCollector
    from bergson_core.gradients.normalizer_fitting import fit_processor
    from bergson_core.gradients.processor import GradientProcessor
    from bergson_core.gradients.row_collector import collect_gradients
    from bergson_core.indexing.append import append_documents
    from bergson_core.indexing.build import build_index
    from bergson_core.indexing.compact import compact
    from bergson_core.indexing.estimate import estimate_build
    from bergson_core.indexing.executor import LocalExecutor
    from bergson_core.integrations.hf_trainer import IndexCallback
    from bergson_core.integrations.ray_executor import RayExecutor
    from bergson_core.schemas.build import AppendSpec, BuildSpec
    from bergson_core.schemas.evaluation import EvaluationSpec
    from bergson_core.schemas.query import AttributionQuery
    from bergson_core.storage.document_lookup import take_down
    from bergson_core.utils.table_writer import write_table

_HOME = {
    "AppendSpec": "bergson_core.schemas.build",
    "AttributionIndex": "bergson_core.attribution.index",
    "AttributionQuery": "bergson_core.schemas.build",
    "BuildSpec": "bergson_core.schemas.build",
    "EvaluationSpec": "bergson_core.schemas.evaluation",
    "GradientCollector": "bergson_core.gradients.collector",
    "GradientProcessor": "bergson_core.gradients.processor",
    "IndexCallback": "bergson_core.integrations.hf_trainer",
    "LocalExecutor": "bergson_core.indexing.executor",
    "RayExecutor": "bergson_core.integrations.ray_executor",
    "Totals": "bergson_core.attribution.score_totals",
    "Unlearner": "bergson_core.attribution.unlearning",
    "append_documents": "bergson_core.indexing.append",
    "best": "bergson_core.attribution.score_totals",
    "build_index": "bergson_core.indexing.build",
    "collect_gradients": "bergson_core.gradients.row_collector",
    "compact": "bergson_core.indexing.compact",
    "document_numbers": "bergson_core.attribution.near_duplicates",
    "estimate_build": "bergson_core.indexing.estimate",
    "evaluate": "bergson_core.evaluation.evaluate",
    "fit_processor": "bergson_core.gradients.normalizer_fitting",
    "fit_profile": "bergson_core.attribution.profile_fitting",
    "near_duplicates": "bergson_core.attribution.near_duplicates",
    "score_corpus": "bergson_core.attribution.corpus_scores",
    "self_influence": "bergson_core.attribution.corpus_scores",
    "take_down": "bergson_core.storage.document_lookup",
    "write_table": "bergson_core.utils.table_writer",
}

__all__ = [
    "AppendSpec",
    "AttributionIndex",
    "AttributionQuery",
    "BuildSpec",
    "EvaluationSpec",
    "GradientCollector",
    "GradientProcessor",
    "IndexCallback",
    "LocalExecutor",
    "RayExecutor",
    "Totals",
    "Unlearner",
    "append_documents",
    "best",
    "build_index",
    "collect_gradients",
    "compact",
    "document_numbers",
    "estimate_build",
    "evaluate",
    "fit_processor",
    "fit_profile",
    "near_duplicates",
    "score_corpus",
    "self_influence",
    "take_down",
    "write_table",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'bergson_core' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
