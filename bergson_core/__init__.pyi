from . import errors as errors
from .attribution.corpus_scores import score_behaviour, score_corpus, score_self_influence, write_score_array
from .attribution.groups.influence_totals import influence_totals
from .attribution.groups.near_duplicates import find_document_numbers, group_near_duplicates
from .attribution.groups.score_sums import ScoreSum, sum_scores
from .attribution.groups.unlearning_preview import preview_unlearning
from .attribution.index import AttributionIndex
from .attribution.profile_fitting import fit_profile
from .attribution.score_totals import ScoreTotals, top_documents
from .attribution.unlearning import Unlearner
from .data.result_datasets import to_dataset
from .evaluation.evaluate import evaluate_index
from .evaluation.queries import EvaluationQuery
from .gradients.collector import GradientCollector
from .gradients.gradient_dataset import collect_gradients
from .gradients.normalizers.normalizers import AdafactorNormalizer, AdamNormalizer, KfacNormalizer, Normalizer
from .gradients.processor import GradientProcessor
from .gradients.processor_fitting import fit_processor
from .indexing.append import append_documents
from .indexing.build import build_index
from .indexing.compact import compact_index
from .indexing.estimation.estimate import estimate_build
from .indexing.executor import Executor, LocalExecutor
from .indexing.relocate import relocate_index
from .integrations.hf_trainer import IndexCallback
from .integrations.ray_executor import RayExecutor
from .models.language_model import LanguageModel
from .models.loading import load_model
from .schemas.answer_parts.background import BackgroundScores
from .schemas.answer_parts.groups import GroupMember, ResultGroup
from .schemas.answer_parts.verification import Control, GroupEffect, Together, Verification, Verified
from .schemas.answer_parts.words import WordMatch
from .schemas.build import AppendSpec, BuildSpec, GradientSpec, ScoringSpec, SearchSpec
from .schemas.documents import Chunk, DocumentReport, LeftOutDocument
from .schemas.evaluation import (
    Effect,
    Evaluation,
    EvaluationSpec,
    Interval,
    Measured,
    Retrieval,
    TrainingSpec,
)
from .schemas.filters import Range
from .schemas.query import AttributionQuery, VerifySpec
from .schemas.results import (
    Answer,
    Estimate,
    Progress,
    QueryEcho,
    QueryWarning,
    Rescored,
    ResultRow,
    SizesBytes,
    TimingMs,
    TokenInfluence,
)
from .schemas.source import ColumnsSpec, DatasetSpec
from .schemas.totals.results import GroupTotal, InfluenceTotals
from .schemas.totals.spec import TotalsQuery, TotalsSpec
from .schemas.training import TrainingSchedule
from .schemas.unlearning.results import QueryChange, UnlearnPreview
from .schemas.unlearning.spec import UnlearnSpec, WatchedQuery
from .storage.document_lookup import take_down_document
from .storage.manifest import Manifest, read_manifest
from .tokens.batching import Tokens
from .tokens.tokenization import PreferencePair
from .utils.table_writer import write_table
from .version import __version__ as __version__

__all__ = [
    "AdafactorNormalizer",
    "AdamNormalizer",
    "Answer",
    "AppendSpec",
    "AttributionIndex",
    "AttributionQuery",
    "BackgroundScores",
    "BuildSpec",
    "Chunk",
    "ColumnsSpec",
    "Control",
    "DatasetSpec",
    "DocumentReport",
    "Effect",
    "Estimate",
    "Evaluation",
    "EvaluationQuery",
    "EvaluationSpec",
    "Executor",
    "GradientCollector",
    "GradientProcessor",
    "GradientSpec",
    "GroupEffect",
    "GroupMember",
    "GroupTotal",
    "IndexCallback",
    "InfluenceTotals",
    "Interval",
    "KfacNormalizer",
    "LanguageModel",
    "LeftOutDocument",
    "LocalExecutor",
    "Manifest",
    "Measured",
    "Normalizer",
    "PreferencePair",
    "Progress",
    "QueryChange",
    "QueryEcho",
    "QueryWarning",
    "Range",
    "RayExecutor",
    "Rescored",
    "ResultGroup",
    "ResultRow",
    "Retrieval",
    "ScoreSum",
    "ScoreTotals",
    "ScoringSpec",
    "SearchSpec",
    "SizesBytes",
    "TimingMs",
    "Together",
    "TokenInfluence",
    "Tokens",
    "TotalsQuery",
    "TotalsSpec",
    "TrainingSchedule",
    "TrainingSpec",
    "UnlearnPreview",
    "UnlearnSpec",
    "Unlearner",
    "Verification",
    "Verified",
    "VerifySpec",
    "WatchedQuery",
    "WordMatch",
    "__version__",
    "append_documents",
    "build_index",
    "collect_gradients",
    "compact_index",
    "errors",
    "estimate_build",
    "evaluate_index",
    "find_document_numbers",
    "fit_processor",
    "fit_profile",
    "group_near_duplicates",
    "influence_totals",
    "load_model",
    "preview_unlearning",
    "read_manifest",
    "relocate_index",
    "score_behaviour",
    "score_corpus",
    "score_self_influence",
    "sum_scores",
    "take_down_document",
    "to_dataset",
    "top_documents",
    "write_score_array",
    "write_table",
]
