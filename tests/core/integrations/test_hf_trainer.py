"""An index that is built while the Trainer trains holds what each step of the run did for each document."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from torch.nn import functional as F

from bergson_core import AttributionIndex, AttributionQuery, GradientProcessor, IndexCallback
from bergson_core.errors import IndexExists, InvalidInput
from bergson_core.integrations import hf_recorded_run
from bergson_core.models.tracking.selection import select_modules
from bergson_core.schemas.build import GradientSpec, ScoringSpec
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.storage.manifest import read_manifest
from tests import reference, tiny

P = 4


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer(tiny.texts(20))


@pytest.fixture(scope="module")
def dataset(tokenizer) -> Dataset:
    """Twelve documents of different lengths, the last two alike, and one that is never seen."""
    texts = [*tiny.texts(11), tiny.texts(11)[-1], "never seen at all"]
    rows = {"text": texts, "id": [f"doc-{k}" for k in range(13)], "input_ids": tokenizer(texts)["input_ids"]}
    return Dataset.from_dict(rows)


class StepRecorder(transformers.TrainerCallback):
    """Records what a plain loop needs to repeat the run: the weights and the learning rate of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.steps.append({"weights": weights})

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, *, optimizer: Any, **kw: Any
    ) -> None:
        self.steps[-1]["rate"] = optimizer.param_groups[0]["lr"]


def trainer(directory: Path, dataset: Dataset, tokenizer: Any, callbacks: list[Any], **settings: Any):
    """Four steps of two micro-batches of three documents, with evaluations between."""
    transformers.set_seed(0)
    model = tiny.model("llama", dtype=torch.float64)
    options = {
        "output_dir": str(directory),
        "max_steps": 4,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-2,
        "max_grad_norm": 0,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }
    tokenizer.pad_token = "<eos>"
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(**options | settings),
        data_collator=collate,
        train_dataset=dataset.select(range(12)),
        eval_dataset=dataset.select(range(2)),
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def recorder(directory: Path, dataset: Dataset, tokenizer: Any, **settings: Any) -> IndexCallback:
    options = {
        "columns": ColumnsSpec(id="id"),
        "settings": GradientSpec(projection_dim=P, rows="float16"),
        "scoring": ScoringSpec(preconditioner=False, normalize="none"),
    }
    return IndexCallback(directory / "facts", dataset, tokenizer, **options | settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory, dataset, tokenizer):
    """(directory, recorder of the steps, batches) of a whole run."""
    directory = tmp_path_factory.mktemp("run")
    steps = StepRecorder()
    training = trainer(directory, dataset, tokenizer, [recorder(directory, dataset, tokenizer), steps])
    collate, batches = training.data_collator, []

    def remember(rows):
        batches.append([row["input_ids"] for row in rows])
        return collate(rows)

    training.data_collator = remember
    training.train()
    return directory, steps, batches


def rows_of(index: AttributionIndex) -> torch.Tensor:
    return torch.cat([shard.rows(slice(None)) for shard in index.shards]).double()


def rows_by_definition(
    directory: Path, recorded: StepRecorder, batches: list, dataset: Dataset
) -> torch.Tensor:
    """Rows [N, m, p²]: Σ over steps of learning rate · L normalized(G) Rᵀ, by autograd on one document at a time."""
    processor = GradientProcessor.load(directory / "facts" / "statistics")
    model = tiny.model("llama", dtype=torch.float64)
    names, documents = list(select_modules(model)), dataset["input_ids"]
    expected = torch.zeros(len(documents), len(names), P * P, dtype=torch.float64)
    train_batches = [batch for batch in batches if len(batch) == 3]
    for step, step_batches in zip(
        recorded.steps, zip(train_batches[::2], train_batches[1::2], strict=True), strict=True
    ):
        model.load_state_dict(step["weights"])
        total = sum(len(ids) - 1 for batch in step_batches for ids in batch)
        for ids in (ids for batch in step_batches for ids in batch):
            model.zero_grad()
            tensor = torch.tensor(ids)
            logits = model(input_ids=tensor[None]).logits[0]
            (F.cross_entropy(logits[:-1].float(), tensor[1:], reduction="sum") / total).backward()
            numbers = [k for k, other in enumerate(documents) if other == ids]
            for m, name in enumerate(names):
                gradient = reference.weight_gradient(model.get_submodule(name), bias=False)
                gradient = processor.normalizers[name].apply(gradient)
                row = step["rate"] * reference.project(gradient, name, P)
                expected[numbers, m] += row / len(numbers)
    return expected


def test_a_row_is_what_the_steps_did_for_its_document(run, dataset):
    directory, recorded, batches = run
    rows = rows_of(AttributionIndex.open(directory / "facts"))
    expected = rows_by_definition(directory, recorded, batches, dataset)
    assert len(recorded.steps) == 4
    largest = expected.abs().amax()
    torch.testing.assert_close(rows, expected, rtol=2e-3, atol=2e-3 * largest.item())
    assert not rows[12].any()
    assert rows[10].equal(rows[11])


def test_the_index_is_queried_like_any_other_and_its_manifest_names_its_origin(run, dataset):
    directory, *_ = run
    manifest = read_manifest(directory / "facts")
    assert (manifest.origin, manifest.rows) == ("training", 13)
    query = AttributionQuery(index="facts", prompt="Person 3 lives", completion=" in city 3", top_k=13)
    (answer,) = AttributionIndex.open(directory / "facts").attribute([query])
    assert {row.id for row in answer.results} == set(dataset["id"])
    model = transformers.AutoModelForCausalLM.from_pretrained(directory / "facts" / "model")
    by_id = {row.id: row for row in answer.results}
    ids = torch.tensor(dataset["input_ids"][4])[None]
    loss = model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    assert by_id["doc-4"].loss == pytest.approx(loss, rel=1e-4)
    assert by_id["doc-12"].score == 0
    assert by_id["doc-4"].prompt == dataset["text"][4]


def test_nothing_of_the_run_is_left_beside_the_index(run):
    directory, *_ = run
    manifest = read_manifest(directory / "facts")
    parts = (manifest, *manifest.shards, *manifest.profiles)
    known = {entry.path for part in parts for entry in part.files}
    files = [
        path.relative_to(directory / "facts") for path in (directory / "facts").rglob("*") if path.is_file()
    ]
    others = {str(path) for path in files if path.parts[0] != "model"} - known
    assert others == {"manifest.json", "takedowns.head.json", ".lock", ".takedowns.lock", ".checked.json"}


def test_training_with_the_callback_gives_the_same_weights(run, dataset, tokenizer, tmp_path):
    directory, *_ = run
    trainer(tmp_path, dataset, tokenizer, []).train()
    with_callback, without = (
        transformers.AutoModelForCausalLM.from_pretrained(path / "checkpoint-4").state_dict()
        for path in (directory, tmp_path)
    )
    for name, weight in with_callback.items():
        torch.testing.assert_close(weight, without[name], rtol=0, atol=0)


class KillInFourthStep(transformers.TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


def train_until_killed(directory: Path, dataset: Dataset, tokenizer: Any) -> None:
    """Trains until the process "ends" in the fourth step, one after a checkpoint."""
    callback = recorder(directory, dataset, tokenizer)
    with pytest.raises(KeyboardInterrupt):
        trainer(directory, dataset, tokenizer, [callback, KillInFourthStep()]).train()
    callback._resources.close()  # as the end of the process would
    assert not (directory / "facts" / "manifest.json").exists()


def test_a_run_that_is_resumed_from_a_checkpoint_ends_with_the_same_rows(run, dataset, tokenizer, tmp_path):
    directory, *_ = run
    train_until_killed(tmp_path, dataset, tokenizer)
    resumed = trainer(tmp_path, dataset, tokenizer, [recorder(tmp_path, dataset, tokenizer)])
    resumed.train(resume_from_checkpoint=True)
    whole, resumed_rows = (rows_of(AttributionIndex.open(path / "facts")) for path in (directory, tmp_path))
    torch.testing.assert_close(whole, resumed_rows, rtol=1e-3, atol=1e-4 * whole.abs().max().item())


def test_a_run_cannot_be_resumed_from_a_checkpoint_without_rows(dataset, tokenizer, tmp_path):
    trainer(tmp_path, dataset, tokenizer, [], max_steps=2).train()
    resumed = trainer(tmp_path, dataset, tokenizer, [recorder(tmp_path, dataset, tokenizer)])
    with pytest.raises(InvalidInput, match=r"bergson_rows\.bin is missing"):
        resumed.train(resume_from_checkpoint=True)


def test_a_run_cannot_be_resumed_with_another_dataset(dataset, tokenizer, tmp_path):
    train_until_killed(tmp_path, dataset, tokenizer)
    other = dataset.select(range(12))
    resumed = trainer(tmp_path, dataset, tokenizer, [recorder(tmp_path, other, tokenizer)])
    with pytest.raises(InvalidInput, match="rows of 12 documents"):
        resumed.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("rows", ["sign", "int8"])
def test_rows_of_every_kind_are_preconditioned_and_found(dataset, tokenizer, tmp_path, rows):
    settings = GradientSpec(projection_dim=P, rows=rows, normalizer="kfac")
    callback = recorder(
        tmp_path, dataset, tokenizer, settings=settings, scoring=ScoringSpec(normalize="block")
    )
    trainer(tmp_path, dataset, tokenizer, [callback]).train()
    prompt, completion = dataset["text"][3][:10], dataset["text"][3][10:]
    query = AttributionQuery(index="facts", prompt=prompt, completion=completion, top_k=13)
    (answer,) = AttributionIndex.open(tmp_path / "facts").attribute([query])
    assert len(answer.results) == 13
    assert all(-1.001 <= row.score <= 1.001 for row in answer.results)


def test_no_second_moment_is_gathered_where_there_is_no_preconditioner(
    dataset, tokenizer, tmp_path, monkeypatch
):
    """A second moment has p⁴ numbers per module, which fit no memory for the widest rows."""
    monkeypatch.delattr(hf_recorded_run, "SecondMoment")
    trainer(tmp_path, dataset, tokenizer, [recorder(tmp_path, dataset, tokenizer)]).train()
    assert read_manifest(tmp_path / "facts").rows == 13


def test_documents_without_text_are_decoded(dataset, tokenizer, tmp_path):
    bare = dataset.remove_columns(["text"])
    trainer(tmp_path, dataset, tokenizer, [recorder(tmp_path, bare, tokenizer)]).train()
    query = AttributionQuery(index="facts", prompt="Person 3", completion=" lives", top_k=13)
    (answer,) = AttributionIndex.open(tmp_path / "facts").attribute([query])
    assert {row.prompt for row in answer.results} == set(dataset["text"])


def test_a_batch_that_is_not_in_the_dataset_is_refused_at_once(dataset, tokenizer, tmp_path):
    other = dataset.select(range(3))
    with pytest.raises(InvalidInput, match="no document of the dataset"):
        trainer(tmp_path, dataset, tokenizer, [recorder(tmp_path, other, tokenizer)]).train()
    assert not (tmp_path / "facts" / "manifest.json").exists()


def test_a_run_that_the_callback_cannot_follow_is_refused_before_the_first_step(dataset, tokenizer, tmp_path):
    callback = recorder(tmp_path, dataset, tokenizer)
    training = trainer(tmp_path, dataset, tokenizer, [callback])
    training.args.fp16 = True
    with pytest.raises(InvalidInput, match="fp16 scales the loss"):
        callback.on_train_begin(training.args, training.state, training.control, model=training.model)
    with pytest.raises(InvalidInput, match="input_ids"):
        recorder(tmp_path, dataset.remove_columns(["input_ids"]), tokenizer)


@pytest.mark.parametrize("compile_model", [torch.compile, lambda model: model.compile() or model])
def test_a_run_of_a_compiled_model_is_refused_before_the_first_step(
    dataset, tokenizer, tmp_path, compile_model
):
    callback = recorder(tmp_path, dataset, tokenizer)
    training = trainer(tmp_path, dataset, tokenizer, [callback])
    model = compile_model(training.model)
    with pytest.raises(InvalidInput, match="expected a model that is not compiled"):
        callback.on_train_begin(training.args, training.state, training.control, model=model)
    assert not (tmp_path / "facts").exists()


def test_an_index_of_another_run_is_not_overwritten(run, dataset, tokenizer):
    directory, *_ = run
    with pytest.raises(IndexExists):
        trainer(directory, dataset, tokenizer, [recorder(directory, dataset, tokenizer)]).train()


def test_a_model_that_runs_twice_in_a_step_is_refused(dataset, tokenizer, tmp_path):
    training = trainer(tmp_path, dataset, tokenizer, [recorder(tmp_path, dataset, tokenizer)])
    original = training.compute_loss

    def twice(model, inputs, **kwargs):
        return original(model, dict(inputs), **kwargs) + original(model, inputs, **kwargs)

    training.compute_loss = twice
    with pytest.raises(InvalidInput, match="runs twice"):
        training.train()
