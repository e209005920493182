"""What the library computes on a CUDA device is what it computes on the CPU, up to rounding in float32.

On a machine without a CUDA device these tests are skipped, in CI too: a GPU is no program that could be installed.
"""

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bergson_core import (
    AttributionIndex,
    GradientCollector,
    GradientProcessor,
    GradientSpec,
    VerifySpec,
    build_index,
    estimate_build,
    load_model,
)
from bergson_core.errors import InvalidInput
from bergson_core.gradients.processor_fitting import fit_normalizers, fit_processor_from_batches
from bergson_core.gradients.row_collector import RowCollector, collect_rows
from bergson_core.models.batch_budget import MAX_BATCH_TOKENS, find_batch_budget, free_memory_bytes
from bergson_core.models.device_to_host import overlap_copies
from bergson_core.models.language_model import LanguageModel, as_language_model
from bergson_core.models.tracking.selection import select_modules
from bergson_core.schemas.build import BuildSpec, RowKind
from bergson_core.schemas.results import Answer
from bergson_core.shards.codecs import CODECS
from bergson_core.shards.row_encoder import RowEncoder
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.tokenization import Tokens
from tests import architectures, tiny
from tests.core.helpers import copy_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

MAX_RELATIVE_ERROR = 1e-4
"""Of float32 rows between two devices, relative to their norm; rounding on one device alone gives about 1e-6."""
MAX_RELATIVE_ERROR_KFAC = 1e-2
"""Of rows whose K-FAC matrices were fitted on each device: the small eigenvalues of a moment are mostly rounding."""
MAX_SCORE_ERROR = 5e-3
"""Of scores, which are cosines of rows stored in float16."""
QUERY = ("Person 3 lives in", " city 1.")


def make_model(architecture: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Returns a small model with random weights, on the CPU."""
    make = tiny.model if architecture in tiny.ARCHITECTURES else architectures.model
    return make(architecture, dtype=dtype)


def on_device(model: nn.Module, device: str) -> LanguageModel:
    """Returns a copy of a model on a device."""
    return as_language_model(copy.deepcopy(model).to(device))


def make_documents() -> list[Tokens]:
    """Returns documents of different lengths, so that a batch is padded."""
    rng = np.random.default_rng(0)
    lengths = (9, 14, 5, 20, 7, 14)
    return [Tokens.labelled_from(rng.integers(1, tiny.VOCABULARY, size=length), 2) for length in lengths]


def relative_error(actual: np.ndarray | torch.Tensor, expected: np.ndarray | torch.Tensor) -> float:
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("projection", [None, 5], ids=["whole", "projected"])
@pytest.mark.parametrize("kind", ["none", "adafactor", "adam", "kfac"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_fitted_and_projected_rows_on_cuda_are_those_on_the_cpu(architecture, kind, projection):
    model, documents, rows, losses = make_model(architecture), make_documents(), {}, {}
    for device in ("cpu", "cuda"):
        language_model = on_device(model, device)
        modules = select_modules(language_model.model)
        batches = iter_batches(documents, 60, device)
        normalizers = fit_normalizers(language_model, modules, batches, kind, include_bias=True)
        processor = GradientProcessor(projection, normalizers, include_bias=True)
        collector = RowCollector(language_model, processor)
        assert collector.device.type == device
        rows[device], losses[device] = collect_rows(collector, documents, 60)
    bound = MAX_RELATIVE_ERROR_KFAC if kind == "kfac" else MAX_RELATIVE_ERROR
    assert relative_error(rows["cuda"], rows["cpu"]) < bound
    assert relative_error(losses["cuda"], losses["cpu"]) < MAX_RELATIVE_ERROR


@pytest.mark.parametrize("architecture", ["mixtral", "opt", "gemma2"])
def test_rows_of_other_architectures_on_cuda_are_those_on_the_cpu(architecture):
    """Fused experts, learned positions, and logits that are capped, so that the model is run whole."""
    model, documents = make_model(architecture), make_documents()
    rows = {
        device: collect_rows(RowCollector(on_device(model, device), GradientProcessor(5)), documents, 60)[0]
        for device in ("cpu", "cuda")
    }
    assert relative_error(rows["cuda"], rows["cpu"]) < MAX_RELATIVE_ERROR


@pytest.mark.parametrize("kind", ["none", "adafactor", "adam"])
def test_embedding_rows_on_cuda_are_those_on_the_cpu(kind):
    model, documents, rows = make_model("llama"), make_documents(), {}
    for device in ("cpu", "cuda"):
        language_model = on_device(model, device)
        modules = select_modules(language_model.model, ["model.embed_tokens"])
        normalizers = fit_normalizers(language_model, modules, iter_batches(documents, 60, device), kind)
        collector = RowCollector(language_model, GradientProcessor(5, normalizers), list(modules))
        rows[device], _ = collect_rows(collector, documents, 60)
    assert relative_error(rows["cuda"], rows["cpu"]) < MAX_RELATIVE_ERROR


def test_token_rows_on_cuda_are_those_on_the_cpu_and_sum_to_the_documents_row():
    model, documents, rows = make_model("gpt2"), make_documents(), {}
    for device in ("cpu", "cuda"):
        collector = RowCollector(on_device(model, device), GradientProcessor(4), per_token=True)
        rows[device], _ = collect_rows(collector, documents, 60)
    assert relative_error(rows["cuda"], rows["cpu"]) < MAX_RELATIVE_ERROR
    whole, _ = collect_rows(RowCollector(on_device(model, "cuda"), GradientProcessor(4)), documents, 60)
    ends = np.cumsum([len(tokens.ids) for tokens in documents])
    sums = [part.sum(axis=0) for part in np.split(rows["cuda"], ends[:-1])]
    assert relative_error(np.array(sums), whole) < MAX_RELATIVE_ERROR


def test_a_collector_leaves_gradients_on_the_device_of_the_model():
    model = make_model("gpt_neox").to("cuda")
    ids = torch.randint(0, tiny.VOCABULARY, (3, 6), device="cuda")
    with GradientCollector(model, GradientProcessor(4)) as collector:
        model(input_ids=ids, labels=ids).loss.backward()
    assert {gradient.device.type for gradient in collector.gradients.values()} == {"cuda"}
    assert {tuple(gradient.shape) for gradient in collector.gradients.values()} == {(3, 4, 4)}


def test_bfloat16_rows_on_cuda_have_the_direction_of_the_float32_rows():
    model, documents = make_model("llama", torch.bfloat16), make_documents()
    low, _ = collect_rows(RowCollector(on_device(model, "cuda"), GradientProcessor(5)), documents, 60)
    exact, _ = collect_rows(
        RowCollector(on_device(model.float(), "cpu"), GradientProcessor(5)), documents, 60
    )
    cosines = (low * exact).sum(1) / (np.linalg.norm(low, axis=1) * np.linalg.norm(exact, axis=1))
    assert low.dtype == np.float32
    assert cosines.min() > 0.98


def test_labels_sampled_on_cuda_are_the_same_for_the_same_seed():
    model, documents = on_device(make_model("gpt_neox"), "cuda"), make_documents()

    def fit(seed: int) -> torch.Tensor:
        settings = GradientSpec(fit_labels="sampled", seed=seed)
        batches = iter_batches(documents, 60, model.device)
        processor = fit_processor_from_batches(model, select_modules(model.model), batches, settings)
        return torch.cat([normalizer.tensors()["row"] for normalizer in processor.normalizers.values()])

    assert relative_error(fit(0), fit(0)) < MAX_RELATIVE_ERROR
    assert relative_error(fit(1), fit(0)) > 1e-2


@pytest.mark.parametrize("kind", CODECS)
def test_rows_are_encoded_on_cuda_as_on_the_cpu(kind: RowKind):
    rows = torch.randn(7, 3, 19, generator=torch.Generator().manual_seed(0))
    rows[2, 1] = 0
    decoded = {}
    for device in ("cpu", "cuda"):
        blocks, scales = CODECS[kind].encode(rows.to(device))
        assert blocks.device.type == scales.device.type == device
        decoded[device] = CODECS[kind].decode(blocks.cpu().numpy(), scales.cpu().numpy(), 19)
    step = 0 if kind == "sign" else 1 / 127  # a quotient that is rounded to the other side is one step off
    largest = rows.abs().amax(dim=-1, keepdim=True)
    assert ((decoded["cuda"] - decoded["cpu"]).abs() <= 1.001 * step * largest).all()


def stored_rows(path: Path) -> torch.Tensor:
    """Returns the rows of an index [n, m, d]."""
    opened = AttributionIndex.open(path, load_model=partial(load_model, device="cpu"))
    return torch.cat([shard.rows(slice(None)) for shard in opened.shards])


def open_on(path: Path, device: str) -> AttributionIndex:
    opened = AttributionIndex.open(path, load_model=partial(load_model, device=device))
    assert opened.model.device.type == device
    return opened


def scores(answer: Answer) -> dict[str, float]:
    """Returns the score of each result, by the document's id."""
    return {row.id: row.score for row in answer.results or ()}


def test_a_model_is_loaded_and_an_index_is_built_on_cuda_by_default(gpu_spec: BuildSpec, cuda_index: Path):
    assert load_model(gpu_spec.model).device.type == "cuda"
    assert AttributionIndex.open(cuda_index).model.device.type == "cuda"


def test_an_index_that_is_built_on_cuda_has_the_rows_of_one_built_on_the_cpu(
    cuda_index: Path, cpu_index: Path
):
    rows, expected = stored_rows(cuda_index), stored_rows(cpu_index)
    assert rows.shape == expected.shape
    assert relative_error(rows, expected) < MAX_SCORE_ERROR


def test_a_finished_build_on_cuda_is_not_run_again(gpu_spec: BuildSpec, cuda_index: Path):
    before = {path: path.stat().st_mtime_ns for path in cuda_index.rglob("*.bin")}
    build_index(gpu_spec, cuda_index, shard_rows=16)
    assert {path: path.stat().st_mtime_ns for path in cuda_index.rglob("*.bin")} == before


def test_a_query_on_cuda_gets_the_scores_that_it_gets_on_the_cpu(cuda_index: Path):
    answers = {device: open_on(cuda_index, device).query(*QUERY, top_k=40) for device in ("cpu", "cuda")}
    expected = scores(answers["cpu"])
    assert len(expected) == 40
    assert scores(answers["cuda"]) == pytest.approx(expected, abs=MAX_SCORE_ERROR)
    assert answers["cuda"].query.loss == pytest.approx(answers["cpu"].query.loss, rel=1e-4)


def test_a_completion_that_is_generated_on_cuda_is_the_one_of_the_cpu(cuda_index: Path):
    answers = [
        open_on(cuda_index, device).query(QUERY[0], max_new_tokens=4, top_k=1) for device in ("cpu", "cuda")
    ]
    assert answers[0].query.completion == answers[1].query.completion


def test_modules_and_tokens_on_cuda_sum_to_the_score(cuda_index: Path):
    answer = open_on(cuda_index, "cuda").query(*QUERY, top_k=3, include=("text", "modules", "tokens"))
    for row in answer.results or ():
        assert row.modules is not None and row.tokens is not None
        assert sum(row.modules.values()) == pytest.approx(row.score, abs=1e-4)
        assert sum(token.influence for token in row.tokens) == pytest.approx(row.score, abs=1e-4)


def test_a_verification_on_cuda_finds_what_it_finds_on_the_cpu_and_restores_the_weights(cuda_index: Path):
    verify, answers = VerifySpec(top=2, controls=2), {}
    for device in ("cpu", "cuda"):
        opened = open_on(cuda_index, device)
        before = copy_weights(opened.model.model)
        answers[device] = opened.query(*QUERY, top_k=2, verify=verify)
        for name, weight in opened.model.model.named_parameters():
            assert weight.equal(before[name])
    verifications = [answers[device].verification for device in ("cuda", "cpu")]
    assert verifications[0].learning_rate == pytest.approx(verifications[1].learning_rate, rel=1e-2)
    assert [control.id for control in verifications[0].controls] == [
        control.id for control in verifications[1].controls
    ]
    for row, expected in zip(verifications[0].controls, verifications[1].controls, strict=True):
        assert row.log_probability == pytest.approx(expected.log_probability, rel=0.05, abs=1e-3)
        assert row.own_log_probability == pytest.approx(expected.own_log_probability, rel=0.05, abs=1e-3)


def test_an_estimate_names_the_peak_memory_of_the_device(gpu_spec: BuildSpec):
    estimate = estimate_build(gpu_spec, sample_size=20)
    assert estimate.peak_device_bytes is not None
    assert 0 < estimate.peak_device_bytes < torch.cuda.get_device_properties(0).total_memory


def test_a_batch_that_does_not_fit_on_the_device_is_an_error_that_says_what_to_do(
    gpu_spec: BuildSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def use_up_memory(*_args: object) -> None:
        torch.empty(2**50, dtype=torch.uint8, device="cuda")

    monkeypatch.setattr(RowEncoder, "encode", use_up_memory)
    with pytest.raises(InvalidInput, match=r"does not fit.*bfloat16"):
        build_index(gpu_spec, tmp_path / "facts")


def test_copies_overlap_the_work_behind_them_and_arrive_whole():
    """Each item is computed on the device for a while, so that its copy is not finished when the next one begins."""
    size, started = 1024, []
    factor = torch.eye(size, device="cuda")

    def items() -> Iterator[tuple[int, torch.Tensor, str]]:
        for number in range(4):
            product = torch.full((size, size), float(number), device="cuda")
            for _ in range(100):
                product = product @ factor
            started.append(number)
            yield number, product, "not a tensor"

    for number, array, text in overlap_copies(items()):
        assert isinstance(array, np.ndarray)
        assert (array == number).all()
        assert text == "not a tensor"
        assert len(started) == min(4, number + 2)


def test_a_copy_is_not_changed_by_what_the_device_writes_afterwards():
    buffer = torch.zeros(2**20, device="cuda")

    def items() -> Iterator[tuple[torch.Tensor]]:
        for number in range(4):
            buffer.fill_(number)
            yield (buffer,)

    for number, (array,) in enumerate(overlap_copies(items())):
        assert (array == number).all()


def test_free_memory_of_the_device_counts_what_torch_holds_and_does_not_use():
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    before = free_memory_bytes(device)
    assert 0 < before <= torch.cuda.get_device_properties(device).total_memory
    tensor = torch.empty(2**28, dtype=torch.uint8, device=device)
    while_used = free_memory_bytes(device)
    del tensor
    afterwards = free_memory_bytes(device)
    tolerance = 2**26  # other processes may use the device
    assert before - while_used == pytest.approx(2**28, abs=tolerance)
    assert afterwards == pytest.approx(before, abs=tolerance)


def test_a_batch_of_the_budget_fits_into_the_memory_that_it_was_found_for():
    model = on_device(make_model("gpt_neox"), "cuda")
    modules = select_modules(model.model)
    assert find_batch_budget(model, modules, 64, free_bytes=2**40) == MAX_BATCH_TOKENS["cuda"]
    free_bytes = 2**28 + 2**26
    budget = find_batch_budget(model, modules, 64, free_bytes)
    assert 64 <= budget < MAX_BATCH_TOKENS["cuda"]
    ids = np.ones(64, dtype=np.int64)
    (batch,) = iter_batches([Tokens.labelled_from(ids, 1)] * (budget // 64), budget, model.device)
    collector = RowCollector(model, GradientProcessor(4))
    collector.collect(batch)  # loads kernels and draws projections
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    collector.collect(batch)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < free_bytes
