"""PEFT models: the adapters are what was trained, so they are what is tracked."""

import json
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification, PreTrainedModel

from bergson_core import AttributionIndex, AttributionQuery, BuildSpec, GradientProcessor, build_index
from bergson_core.attribution.unlearning import Unlearner
from bergson_core.errors import InvalidInput, ModelNotFound
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models import loading
from bergson_core.models.language_model import as_language_model
from bergson_core.models.loading import load_model
from bergson_core.models.modules import coverage_percent
from bergson_core.models.tracking.selection import select_modules
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.tokenization import Tokens, tokenize
from bergson_core.utils import safe_regex
from tests import reference, tiny
from tests.core.helpers import copy_weights

EXACT = {"rtol": 1e-8, "atol": 1e-10}
TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def documents() -> list[Tokens]:
    rng = np.random.default_rng(0)
    return [Tokens.labelled_from(rng.integers(1, tiny.VOCABULARY, size=s), 3) for s in (9, 14, 10)]


def lora(architecture: str, **settings: object) -> PeftModel:
    """Returns a model with LoRA of rank 3. The weights are not at their defaults, which would hide errors."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=TARGETS[architecture],
        fan_in_fan_out=architecture == "gpt2",
        **settings,
    )
    model = get_peft_model(tiny.model(architecture), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.double()


@pytest.mark.parametrize("architecture", TARGETS)
def test_only_the_adapters_are_tracked_and_they_are_exact(architecture):
    model, docs = lora(architecture, lora_dropout=0.5).train(), documents()
    modules = select_modules(model)
    assert {name.split(".")[-2] for name in modules} == {"lora_A", "lora_B"}
    assert coverage_percent(model, modules.values()) == pytest.approx(100)
    collector = RowCollector(as_language_model(model), GradientProcessor(None))
    collected = [(batch.indices, collector.collect(batch)[0]) for batch in iter_batches(docs, 30)]
    expected = reference.gradients(model.eval(), list(modules), docs)
    for indices, rows in collected:
        for name, part in collector.slices.items():
            torch.testing.assert_close(rows[:, part], expected[name][indices].flatten(1), **EXACT)


def test_the_head_of_a_wrapped_model_is_run_on_labelled_tokens_only():
    model = as_language_model(lora("llama"))
    assert model.head is not None
    assert model.backbone is model.model.get_base_model().model


def test_of_several_adapters_the_active_one_is_tracked():
    model = lora("llama")
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    assert all(name.endswith(".default") for name in select_modules(model))
    model.set_adapter("other")
    assert all(
        name.endswith(("q_proj.lora_A.other", "q_proj.lora_B.other")) for name in select_modules(model)
    )
    assert coverage_percent(model, select_modules(model).values()) == pytest.approx(100)


def test_a_module_that_is_trained_beside_the_adapters_counts_in_the_coverage():
    model = lora("llama", modules_to_save=["lm_head"])
    names = list(select_modules(model))
    assert any("lm_head" in name for name in names)
    assert coverage_percent(model, select_modules(model).values()) == pytest.approx(100)


@pytest.fixture
def saved(tmp_path):
    """A directory with adapters, as PEFT writes them, of the model in the directory beside it."""
    tiny.save_model(tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    model = get_peft_model(base, LoraConfig(r=3, target_modules=["query_key_value", "dense"]))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapters")
    return tmp_path / "adapters"


def test_an_index_of_adapters_is_built_and_asked(saved, tmp_path):
    documents = tiny.save_documents(tmp_path / "documents.jsonl")
    spec = BuildSpec(model=str(saved), dataset={"path": str(documents)}, gradients={"projection_dim": 4})
    manifest = build_index(spec, tmp_path / "facts")
    assert {module.name.split(".")[-2] for module in manifest.modules} == {"lora_A", "lora_B"}
    assert manifest.coverage_percent == 100
    query = AttributionQuery(index="facts", prompt="Person 3 lives", completion=" in city 3")
    (answer,) = AttributionIndex.open(tmp_path / "facts").attribute([query])
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), saved)
    tokens = tokenize(tiny.tokenizer(tiny.texts(20)), [query.prompt], [query.completion])
    assert answer.query.loss == pytest.approx(reference.loss_of(loaded, tokens[0]).item(), rel=1e-4)


def test_other_adapters_or_another_model_below_them_are_another_model(saved, tmp_path):
    before = load_model(str(saved)).sha256
    assert load_model(str(saved)).sha256 == before != load_model(str(tmp_path / "model")).sha256
    tiny.save_model(tmp_path / "model", seed=1)
    assert load_model(str(saved)).sha256 != before


def adapter(**settings: object) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj", "v_proj"], **settings)


UNSUPPORTED = {
    "use_dora True": adapter(use_dora=True),
    "lora_bias True": adapter(lora_bias=True),
    "trainable_token_indices": adapter(trainable_token_indices=[1, 2]),
    "layer_replication": adapter(layer_replication=[[0, 2], [1, 2]]),
    "target_parameters": LoraConfig(r=3, target_modules=[], target_parameters=["q_proj.weight"]),
    "type IA3": peft.IA3Config(target_modules=["v_proj"], feedforward_modules=[]),
    "type LOHA": peft.LoHaConfig(r=3, target_modules=["v_proj"]),
    "type LOKR": peft.LoKrConfig(r=3, target_modules=["v_proj"]),
    "type ADALORA": peft.AdaLoraConfig(target_modules=["v_proj"], total_step=10),
    "type VERA": peft.VeraConfig(r=3, target_modules=["v_proj"]),
    "type OFT": peft.OFTConfig(oft_block_size=4, target_modules=["v_proj"]),
    "type LN_TUNING": peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "type PROMPT_TUNING": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "type PREFIX_TUNING": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "type P_TUNING": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    **{
        f"task_type '{task}'": LoraConfig(task_type=task, r=3, target_modules=["q_proj"])
        for task in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION", "SEQ_2_SEQ_LM")
    },
}
"""Configurations of other adapters than plain LoRA of a causal language model, by what an error says of them."""
SUPPORTED = {
    "rank-stabilised": adapter(use_rslora=True),
    "ranks and scales of some modules": adapter(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 7}),
    "another initialisation": adapter(init_lora_weights="gaussian"),
    "with biases": adapter(bias="lora_only"),
    "with all biases": adapter(bias="all"),
    "with the head": adapter(modules_to_save=["lm_head"]),
    "with the embedding": adapter(modules_to_save=["embed_tokens"]),
    "with a norm": adapter(modules_to_save=["norm"]),
}


def save_llama(directory: Path) -> PreTrainedModel:
    """Saves a Llama model with a tokenizer, and returns it as it was saved."""
    tiny.model("llama", dtype=torch.float32).save_pretrained(directory)
    tiny.tokenizer(tiny.texts(20)).save_pretrained(directory)
    return AutoModelForCausalLM.from_pretrained(directory)


@pytest.mark.parametrize("reason", UNSUPPORTED)
def test_other_adapters_than_plain_lora_are_refused_by_name(reason, tmp_path):
    model = get_peft_model(save_llama(tmp_path / "model"), UNSUPPORTED[reason])
    model.save_pretrained(tmp_path / "adapters")
    with pytest.raises(ModelNotFound, match=rf"adapter_config\.json has .*{reason}"):
        load_model(str(tmp_path / "adapters"))
    with pytest.raises(InvalidInput, match=f"the model has .*{reason}"):
        as_language_model(model)


@pytest.mark.parametrize("key", ["base_model.model.score.weight", "base_model.model.classifier.bias"])
def test_weights_that_the_model_has_no_place_for_are_refused_by_name(key, saved):
    weights = load_file(saved / "adapter_model.safetensors")
    save_file(weights | {key: torch.ones(2)}, saved / "adapter_model.safetensors")
    with pytest.raises(ModelNotFound, match=f"match no module of its model: {key};"):
        load_model(str(saved))


def test_weights_of_modules_with_other_names_are_refused(saved):
    weights = load_file(saved / "adapter_model.safetensors")
    moved = {name.replace("gpt_neox.", "language_model.gpt_neox."): value for name, value in weights.items()}
    save_file(moved, saved / "adapter_model.safetensors")
    with pytest.raises(
        ModelNotFound, match=rf"match no module of its model: .*language_model.* and {len(weights) - 1} more"
    ):
        load_model(str(saved))


def test_the_head_of_a_classifier_whose_task_was_not_written_is_refused(tmp_path):
    save_llama(tmp_path / "model")
    classifier = LlamaForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=2)
    settings = LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["score"])
    get_peft_model(classifier, settings).save_pretrained(tmp_path / "adapters")
    with pytest.raises(ModelNotFound, match=r"match no module of its model: base_model\.model\.score"):
        load_model(str(tmp_path / "adapters"))


def test_a_kind_of_adapters_that_is_not_known_yet_is_refused_by_name(saved):
    edit(saved, use_next_years_variant=True)
    with pytest.raises(ModelNotFound, match="use_next_years_variant True"):
        load_model(str(saved))
    edit(saved, use_next_years_variant=False)
    load_model(str(saved))


@pytest.mark.parametrize("kind", SUPPORTED)
def test_rows_of_plain_adapters_are_exact_and_unlearning_moves_what_was_trained(kind, tmp_path):
    model = get_peft_model(save_llama(tmp_path / "model"), SUPPORTED[kind])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path / "adapters")
    loaded, docs = load_model(str(tmp_path / "adapters"), dtype="float64"), documents()
    modules = loaded.select_modules()
    assert {f"{name}.weight" for name in modules} <= trained
    whole_modules = set(SUPPORTED[kind].modules_to_save or ()) - {"norm"}
    assert all(any(f"{name}.modules_to_save" in tracked for tracked in modules) for name in whole_modules)
    collector = RowCollector(loaded, GradientProcessor(None))
    expected = reference.gradients(loaded.model.requires_grad_(True), list(modules), docs)
    for batch in iter_batches(docs, 30):
        rows, _ = collector.collect(batch)
        for name, part in collector.slices.items():
            whole = expected[name][batch.indices].flatten(1)
            torch.testing.assert_close(rows[:, part].double(), whole, rtol=1e-4, atol=1e-6)
    before = copy_weights(loaded.model)
    with Unlearner.fit(loaded, docs).temporary_step(docs[0]):
        moved = {name for name, weight in loaded.model.named_parameters() if not weight.equal(before[name])}
    assert moved == trained


def test_the_modules_that_are_saved_beside_the_adapters_are_tracked_in_an_index(tmp_path):
    model = get_peft_model(
        save_llama(tmp_path / "model"), adapter(modules_to_save=["embed_tokens", "lm_head"])
    )
    model.save_pretrained(tmp_path / "adapters")
    path = tiny.save_documents(tmp_path / "documents.jsonl")
    spec = BuildSpec(
        model=str(tmp_path / "adapters"), dataset={"path": str(path)}, gradients={"projection_dim": 4}
    )
    manifest = build_index(spec, tmp_path / "facts")
    names = {module.name for module in manifest.modules}
    assert sum(name.endswith(".modules_to_save.default") for name in names) == 2
    assert manifest.coverage_percent == 100


@pytest.mark.parametrize("name", ["model", "./model", "../model"])
def test_a_base_that_was_named_by_a_relative_path_is_found_from_the_adapters(
    saved, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(loading, "snapshot_download", lambda *_args, **_options: pytest.fail("asked the hub"))
    edit(saved, base_model_name_or_path=name)
    assert load_model(str(saved)).sha256
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_model("../adapters").sha256


def edit(directory, **changes):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "expected type LORA"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "no megatron_config"),
        ({"layer_replication": [[0, 2]] * 10}, "no layer_replication"),
        ({"r": 10**12}, "ranks up to 10,000"),
        ({"rank_pattern": {"dense": 10**12}}, "ranks up to 10,000"),
        ({"base_model_name_or_path": None}, "hub id or directory"),
        ({"base_model_name_or_path": "/nothing/there"}, "no model directory"),
    ],
    ids=[
        "another type",
        "a module to import",
        "copies",
        "a rank",
        "ranks",
        "no model",
        "a model that is gone",
    ],
)
def test_adapters_that_cannot_be_trusted_or_whose_model_is_missing_are_refused(saved, changes, message):
    edit(saved, **changes)
    with pytest.raises(ModelNotFound, match=message):
        load_model(str(saved))


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": r"([\w.]+)+!"},
        {"exclude_modules": r"([\w.]+)+!"},
        {"modules_to_save": [r"([\w.]+)+!"]},
        {"layers_to_transform": [0], "layers_pattern": [r"([\w.]+)+!"]},
        {"rank_pattern": {r"([\w.]+)+!": 3}},
        {"alpha_pattern": {r"([\w.]+)+!": 3}},
    ],
    ids=lambda changes: next(reversed(changes)),
)
def test_an_expression_that_would_take_for_ever_is_never_given_to_peft(saved, changes, monkeypatch):
    monkeypatch.setattr(safe_regex, "TIME_LIMIT_S", 0.5)
    edit(saved, **changes)
    with pytest.raises(InvalidInput, match=r"adapter_config.json: .* takes more than 0.5 s"):
        load_model(str(saved))


def test_adapters_may_choose_their_modules_by_regular_expressions(saved):
    edit(saved, target_modules=r".*\.(query_key_value|dense)$", rank_pattern={r"^gpt_neox\..*dense$": 3})
    load_model(str(saved))


def test_adapters_on_adapters_are_refused(saved):
    edit(saved, base_model_name_or_path=str(saved))
    with pytest.raises(ModelNotFound, match="adapters too"):
        load_model(str(saved))


def test_pickled_adapters_are_never_loaded(saved):
    (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
    with pytest.raises(ModelNotFound, match="pickle is never loaded"):
        load_model(str(saved))


def test_a_model_beside_a_configuration_of_adapters_is_not_taken_for_a_whole_one(saved, tmp_path):
    """transformers would load the model that the configuration names, wherever it lies."""
    model = tmp_path / "model"
    edit(saved, base_model_name_or_path="/nothing/there")
    shutil.copyfile(saved / "adapter_config.json", model / "adapter_config.json")
    with pytest.raises(ModelNotFound, match="/nothing/there"):
        load_model(str(model))


def test_adapters_of_the_hub_name_no_local_model(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "snapshot_download", lambda *_args, **_options: str(saved))
    with pytest.raises(ModelNotFound, match="local model"):
        load_model("org/adapters")


def test_modules_below_the_adapters_can_be_named():
    model = lora("llama")
    assert list(select_modules(model, r"layers\.0\.mlp\.up_proj$")) == [
        "base_model.model.model.layers.0.mlp.up_proj"
    ]
