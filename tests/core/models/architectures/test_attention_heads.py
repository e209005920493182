"""Each head of attention is a module of its own, and its rows are those of its part of the weights."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bergson_core.errors import InvalidInput
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.processor_fitting import fit_normalizers
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.language_model import as_language_model
from bergson_core.models.modules import TrackedModule, coverage_percent
from bergson_core.models.tracking.selection import select_modules
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.tokenization import Tokens
from tests import architectures, reference, tiny
from tests.core.helpers import random_documents
from tests.core.models.test_architectures import adafactor

_SIZES = {"vocab_size": tiny.VOCABULARY, "pad_token_id": 0}
_FOUR_HEADS = {"num_attention_heads": 4, "hidden_size": 32}


def _from_config(family: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**_SIZES | settings)
    model = getattr(transformers, f"{family}ForCausalLM")(config).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def _bigcode(multi_query: bool) -> PreTrainedModel:
    return _from_config("GPTBigCode", n_embd=24, n_head=4, n_layer=1, n_positions=64, multi_query=multi_query)


def _falcon(**settings: Any) -> PreTrainedModel:
    return _from_config("Falcon", num_hidden_layers=1, **_FOUR_HEADS, **settings)


MODELS: Mapping[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: tiny.model("llama"),
    "gpt2": lambda: tiny.model("gpt2"),
    "gpt_neox": lambda: tiny.model("gpt_neox"),
    **{
        name: (lambda name=name: architectures.model(name))
        for name in (
            "gpt_j",
            "opt",
            "bloom",
            "mistral",
            "qwen3",
            "gemma2",
            "gpt_oss",
            "mpt",
            "gpt_neo",
            "bert",
        )
    },
    "grouped_queries": lambda: architectures.model("qwen2", num_attention_heads=4, num_key_value_heads=2),
    "phi3": lambda: architectures.model("phi3", num_attention_heads=4, num_key_value_heads=2),
    "falcon": lambda: _falcon(bias=True, multi_query=False),
    "falcon_of_one_key": lambda: _falcon(multi_query=True),
    "falcon_new": lambda: _falcon(new_decoder_architecture=True, num_kv_heads=2),
    "gpt_bigcode": lambda: _bigcode(False),
    "gpt_bigcode_of_one_key": lambda: _bigcode(True),
    "persimmon": lambda: _from_config(
        "Persimmon", num_hidden_layers=1, intermediate_size=40, qk_layernorm=False, **_FOUR_HEADS
    ),
}


def _parts(model: nn.Module) -> dict[str, TrackedModule]:
    split = select_modules(model, "attention", split_heads=True, include_bias=True)
    return {name: tracked for name, tracked in split.items() if tracked.part is not None}


def _collect(model: nn.Module, docs: list[Tokens], processor: GradientProcessor) -> dict[str, Tensor]:
    """Returns the rows [n, d] of each module, from padded batches."""
    collector = RowCollector(as_language_model(model), processor)
    rows = torch.zeros(len(docs), collector.dimensions, dtype=torch.float64)
    for batch in iter_batches(docs, 30):
        rows[batch.indices] = collector.collect(batch)[0].double()
    return {name: rows[:, part] for name, part in collector.slices.items()}


def _slice(whole: Tensor, tracked: TrackedModule, has_bias: bool) -> Tensor:
    """Returns the gradients [n, o, i] of a head from those of the whole module, [n, o, i] or [n, o, i + 1]."""
    part = tracked.part
    assert part is not None
    features = [feature for start, end in part.ranges for feature in range(start, end)]
    if part.side == "output":
        return whole[:, features]
    return whole[:, :, [*features, *([-1] if has_bias and part.label == "bias" else [])]]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("architecture", MODELS)
def test_rows_of_a_head_are_those_of_its_slice_of_the_gradient(architecture: str, bias: bool) -> None:
    model, docs, p, seed = MODELS[architecture](), random_documents(), 3, 7
    modules = select_modules(model, split_heads=True, include_bias=bias)
    split = {name: tracked for name, tracked in modules.items() if tracked.part is not None}
    assert split
    wholes = {tracked.module_name: tracked.module for tracked in split.values()}
    gradients = reference.gradients(model, list(wholes), docs, bias)
    rows = _collect(model, docs, GradientProcessor(p, None, seed, bias, split_heads=True))
    for name, tracked in split.items():
        has_bias = bias and getattr(tracked.module, "bias", None) is not None
        own = _slice(gradients[tracked.module_name], tracked, has_bias)
        expected = reference.project(own, name, p, seed)
        torch.testing.assert_close(rows[name], expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("architecture", MODELS)
def test_the_weights_of_a_head_change_what_this_head_passes_on_and_nothing_else(architecture: str) -> None:
    model = MODELS[architecture]()
    parts = _parts(model)
    first = next(tracked.module_name for tracked in parts.values() if _side(tracked) == "output")
    block = first.rpartition(".")[0].removesuffix(".self")
    here = {name: tracked for name, tracked in parts.items() if name.startswith(f"{block}.")}
    outputs = {name: tracked for name, tracked in here.items() if _side(tracked) == "input"}
    projection = next(iter(outputs.values())).module
    heads = sum(".head_" in name for name in outputs)
    before = _input_of(model, projection)
    for name, tracked in here.items():
        if _side(tracked) == "input":
            continue
        with _noise(tracked):
            changed = (_input_of(model, projection) - before).abs().amax((0, 1)) > 1e-12
        number = int(name.rpartition("_")[2])
        siblings = [other for other in here if other.startswith(name.rpartition("_")[0])]
        shared = heads // len(siblings)
        expected = torch.zeros_like(changed)
        for head in range(number * shared, (number + 1) * shared):
            for start, end in outputs[_head_name(outputs, head)].part.ranges:  # type: ignore[union-attr]
                expected[start:end] = True
        assert torch.equal(changed, expected), name


def _side(tracked: TrackedModule) -> str:
    assert tracked.part is not None
    return tracked.part.side


def _head_name(outputs: Mapping[str, TrackedModule], head: int) -> str:
    return next(name for name in outputs if name.endswith(f".head_{head}"))


def _input_of(model: PreTrainedModel, module: nn.Module) -> Tensor:
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach().clone()))
    with torch.no_grad():
        model(input_ids=torch.arange(1, 9)[None], use_cache=False)
    handle.remove()
    return seen[0]


class _noise:
    """A context in which the weights of one head are others."""

    def __init__(self, tracked: TrackedModule) -> None:
        assert tracked.part is not None
        self.weight, self.ranges = tracked.module.weight, tracked.part.ranges
        self.rows = self.weight.T if isinstance(tracked.module, Conv1D) else self.weight

    def __enter__(self) -> None:
        self.original = self.weight.detach().clone()
        with torch.no_grad():
            for start, end in self.ranges:
                self.rows[start:end].mul_(1.5)

    def __exit__(self, *exception: object) -> None:
        with torch.no_grad():
            self.weight.copy_(self.original)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_each_head_has_a_normalizer_of_its_own(architecture: str) -> None:
    model, docs, p = MODELS[architecture](), random_documents(), 3
    modules = select_modules(model, split_heads=True)
    fitted = fit_normalizers(as_language_model(model), modules, iter_batches(docs, 30), "adafactor")
    assert fitted.keys() == modules.keys()
    rows = _collect(model, docs, GradientProcessor(p, fitted, split_heads=True))
    split = {name: tracked for name, tracked in modules.items() if tracked.part is not None}
    gradients = reference.gradients(
        model, list({tracked.module_name: None for tracked in split.values()}), docs
    )
    for name, tracked in split.items():
        own = adafactor(_slice(gradients[tracked.module_name], tracked, False))
        expected = reference.project(own, name, p)
        torch.testing.assert_close(rows[name], expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("architecture", MODELS)
def test_heads_together_are_the_whole_module(architecture: str) -> None:
    model = MODELS[architecture]()
    whole, split = select_modules(model), select_modules(model, split_heads=True)
    assert coverage_percent(model, split.values()) == pytest.approx(coverage_percent(model, whole.values()))
    assert {tracked.module_name for tracked in split.values()} == whole.keys()
    assert not any(name.endswith(".bias") for name in split)


def test_names_of_heads() -> None:
    split = select_modules(MODELS["grouped_queries"](), "attention", split_heads=True)
    layer = [name.partition("layers.0.self_attn.")[2] for name in split if "layers.0." in name]
    assert layer == [
        *("k_proj.head_0", "k_proj.head_1"),
        *("o_proj.head_0", "o_proj.head_1", "o_proj.head_2", "o_proj.head_3"),
        *("q_proj.head_0", "q_proj.head_1", "q_proj.head_2", "q_proj.head_3"),
        *("v_proj.head_0", "v_proj.head_1"),
    ]
    fused = [name for name in _parts(MODELS["phi3"]()) if "layers.0" in name and "qkv" in name]
    assert [name.rpartition(".")[2] for name in fused] == [
        *(f"head_{head}" for head in range(4)),
        *(f"key_value_head_{head}" for head in range(2)),
    ]


def test_single_heads_are_tracked_by_their_names() -> None:
    model = MODELS["gpt2"]()
    names = ["transformer.h.0.attn.c_attn.head_1", "transformer.h.0.attn.c_proj.bias"]
    assert list(select_modules(model, names)) == names
    with pytest.raises(InvalidInput, match=r"c_attn\.head_2"):
        select_modules(model, ["transformer.h.0.attn.c_attn.head_2"])


@pytest.mark.parametrize(
    ("architecture", "module"),
    [("codegen", "attn.qkv_proj"), ("deepseek_v3", "self_attn.kv_a_proj"), ("qwen3_next", "linear_attn.")],
)
def test_a_layout_that_is_not_known_is_an_error_that_names_the_module(architecture: str, module: str) -> None:
    with pytest.raises(InvalidInput, match=f"split_heads: it is not known .*{module}"):
        select_modules(architectures.model(architecture), split_heads=True)


def test_a_model_without_a_configuration_is_refused() -> None:
    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = nn.Linear(4, 4)

    with pytest.raises(InvalidInput, match="num_attention_heads"):
        select_modules(nn.Sequential(SelfAttention()), split_heads=True)


def test_heads_of_modules_without_heads_are_refused() -> None:
    with pytest.raises(InvalidInput, match="none of the selected modules is a projection of attention"):
        select_modules(MODELS["llama"](), "mlp", split_heads=True)


def test_of_an_adapter_the_side_that_has_heads_is_split() -> None:
    config = LoraConfig(r=3, target_modules=["q_proj", "o_proj", "down_proj"])
    names = set(select_modules(get_peft_model(tiny.model("llama"), config), split_heads=True))
    layer = {name.partition("layers.0.")[2] for name in names if "layers.0." in name}
    assert layer == {
        "self_attn.q_proj.lora_A.default",
        "self_attn.q_proj.lora_B.default.head_0",
        "self_attn.q_proj.lora_B.default.head_1",
        "self_attn.o_proj.lora_A.default.head_0",
        "self_attn.o_proj.lora_A.default.head_1",
        "self_attn.o_proj.lora_B.default",
        "mlp.down_proj.lora_A.default",
        "mlp.down_proj.lora_B.default",
    }
