"""Training-data attribution: which training samples made a language model say that?

The public names below are loaded on first use, so that a process which needs only `errors`, `specs` or
`manifest` (the web service) never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bergson_core.append import append_documents
    from bergson_core.attribution import AttributionIndex
    from bergson_core.build import build_index
    from bergson_core.collect import collect_gradients
    from bergson_core.compaction import compact
    from bergson_core.duplicates import document_numbers, near_duplicates
    from bergson_core.estimate import estimate_build
    from bergson_core.evaluation import evaluate
    from bergson_core.evaluation_spec import EvaluationSpec
    from bergson_core.fitting import fit_processor
    from bergson_core.gradients import GradientCollector
    from bergson_core.lookup import take_down
    from bergson_core.mixing import fit_profile
    from bergson_core.processor import GradientProcessor
    from bergson_core.scoring import score_corpus, self_influence
    from bergson_core.selection import Totals, best
    from bergson_core.specs import AppendSpec, AttributionQuery, BuildSpec
    from bergson_core.tables import write_table
    from bergson_core.training import IndexCallback
    from bergson_core.unlearning import Unlearner

_HOME = {
    "AppendSpec": "bergson_core.specs",
    "AttributionIndex": "bergson_core.attribution",
    "AttributionQuery": "bergson_core.specs",
    "BuildSpec": "bergson_core.specs",
    "EvaluationSpec": "bergson_core.evaluation_spec",
    "GradientCollector": "bergson_core.gradients",
    "GradientProcessor": "bergson_core.processor",
    "IndexCallback": "bergson_core.training",
    "Totals": "bergson_core.selection",
    "Unlearner": "bergson_core.unlearning",
    "append_documents": "bergson_core.append",
    "best": "bergson_core.selection",
    "build_index": "bergson_core.build",
    "collect_gradients": "bergson_core.collect",
    "compact": "bergson_core.compaction",
    "document_numbers": "bergson_core.duplicates",
    "estimate_build": "bergson_core.estimate",
    "evaluate": "bergson_core.evaluation",
    "fit_processor": "bergson_core.fitting",
    "fit_profile": "bergson_core.mixing",
    "near_duplicates": "bergson_core.duplicates",
    "score_corpus": "bergson_core.scoring",
    "self_influence": "bergson_core.scoring",
    "take_down": "bergson_core.lookup",
    "write_table": "bergson_core.tables",
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
