"""Second moments of an optimizer's checkpoint against those of plain autograd over the same batches, in float64."""

import os
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from bergson_core.errors import InvalidInput
from bergson_core.gradients.normalizers.normalizers import Normalizer
from bergson_core.gradients.normalizers.optimizer_checkpoint import read_checkpoint_normalizers
from bergson_core.models.modules import TrackedModule
from bergson_core.models.tracking.selection import select_modules
from tests import architectures, reference, tiny

RATE = 1e-2
BETA2 = 0.999
SQUARE = "transformer.h.0.attn.c_proj"
"""A Conv1D with 24 inputs and 24 outputs: its shape does not tell which side is which."""
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw_torch": lambda parameters: torch.optim.AdamW(parameters, lr=RATE, weight_decay=0),
    "adafactor": lambda parameters: transformers.Adafactor(
        parameters, lr=RATE, scale_parameter=False, relative_step=False
    ),
}
"""The Trainer's name of an optimizer → a function that makes it, for a plain loop that moves the weights alike."""


def gpt2() -> nn.Module:
    """Returns a GPT-2 without dropout, so that two runs are the same."""
    model = tiny.model("gpt2").train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def lora() -> nn.Module:
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    return peft.get_peft_model(gpt2(), settings).double()


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@dataclass(frozen=True)
class Run:
    checkpoint: Path
    batches: list[dict[str, Tensor]]


def train(directory: Path, model: nn.Module, optim: str) -> Run:
    """Makes two steps with the Hugging Face Trainer."""
    ids = torch.randint(0, tiny.VOCABULARY, (8, 12), generator=torch.Generator().manual_seed(0))
    batches: list[dict[str, Tensor]] = []

    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        batches.append({key: torch.stack([row[key] for row in rows]) for key in rows[0]})
        return dict(batches[-1])

    transformers.Trainer(
        model,
        transformers.TrainingArguments(
            output_dir=str(directory),
            optim=optim,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_grad_norm=0,
            adam_beta2=BETA2,
            max_steps=2,
            save_steps=2,
            per_device_train_batch_size=4,
            remove_unused_columns=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        data_collator=collate,
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],
        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: loss_of(outputs.logits, labels),
    ).train()
    return Run(directory / "checkpoint-2", batches)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return {optim: train(tmp_path_factory.mktemp(optim), gpt2(), optim) for optim in OPTIMIZERS}


def replay(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[dict[str, Tensor]],
    modules: Iterable[str] = (),
    bias: bool = False,
) -> dict[str, tuple[Tensor, ...]]:
    """Makes the same steps in a plain loop; module name → its gradient [o, i] or [o, i + 1] at each."""
    gradients: dict[str, tuple[Tensor, ...]] = dict.fromkeys(modules, ())
    for batch in batches:
        optimizer.zero_grad()
        loss_of(model(input_ids=batch["input_ids"]).logits, batch["labels"]).backward()
        for name in gradients:
            gradients[name] += (reference.weight_gradient(model.get_submodule(name), bias),)
        optimizer.step()
    return gradients


def adam_of(first: Tensor, second: Tensor) -> Tensor:
    """Returns V after two steps, with the bias of its start corrected."""
    return (1 - BETA2) * (BETA2 * first**2 + second**2) / (1 - BETA2**2)


def adafactor_of(first: Tensor, second: Tensor) -> Tensor:
    """Returns V after two steps with a decay of 1 - step^-0.8."""
    return (1 - 2**-0.8) * first**2 + 2**-0.8 * second**2


def assert_normalizer_is_of(normalizer: Normalizer, moment: Tensor) -> None:
    """Asserts that a normalizer was made of V [o, i], whole or by its means."""
    tensors = normalizer.tensors()
    if "second_moment" in tensors:
        expected = {"second_moment": moment}
    else:
        expected = {"row": moment.mean(1), "column": moment.mean(0)}
    assert tensors.keys() == expected.keys()
    for part, tensor in tensors.items():
        assert tensor.dtype == torch.float32 and tensor.device.type == "cpu"
        atol = 1e-6 * float(expected[part].max())
        torch.testing.assert_close(tensor.double(), expected[part].double(), rtol=1e-5, atol=atol)


def moments_by_hand(model: nn.Module) -> dict[str, Tensor]:
    """Returns arbitrary V by the names of the parameters."""
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()}


def optimizer_with(moments: dict[str, Tensor], model: nn.Module, *groups: Iterable[str]) -> dict[str, Any]:
    """Returns the state dict of an AdamW with these groups of parameters, after so many steps that no bias is left."""
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW([{"params": [parameters[name] for name in group]} for group in groups])
    for name in (name for group in groups for name in group):
        optimizer.state[parameters[name]] = {"step": torch.tensor(1e6), "exp_avg_sq": moments[name]}
    return optimizer.state_dict()


def saved(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


def read(path: Path, kind: Any, **settings: bool) -> dict[str, Normalizer]:
    model = gpt2()
    return read_checkpoint_normalizers(path, model, select_modules(model), kind, **settings)


def matrix_of(values: dict[str, Tensor], name: str, tracked: TrackedModule) -> Tensor:
    """Returns the [o, i] of a module from values by parameter; none is square here, so the shape tells the sides."""
    if tracked.expert_map is None:
        matrix = values[f"{name}.weight"]
    else:
        parameter, expert = name.rsplit(".", 1)
        matrix = values[parameter][int(expert)]
    assert tracked.out_features != tracked.in_features
    return matrix if matrix.shape == (tracked.out_features, tracked.in_features) else matrix.T


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_an_embedding_is_read_with_its_entries_as_inputs(runs, optim):
    run, model = runs[optim], gpt2()
    modules = select_modules(model, ["transformer.wte", "transformer.wpe"])
    given = read_checkpoint_normalizers(run.checkpoint, model, modules, "adafactor")
    gradients = replay(model, OPTIMIZERS[optim](model.parameters()), run.batches, modules)
    for name in modules:
        moment = (adafactor_of if optim == "adafactor" else adam_of)(*gradients[name])
        assert_normalizer_is_of(given[name], moment)


@pytest.mark.parametrize("bias", [False, True], ids=["weights", "biases"])
@pytest.mark.parametrize("kind", ["adafactor", "adam"])
def test_a_trainers_adamw_gives_the_second_moments_of_plain_autograd(runs, kind, bias):
    run, model = runs["adamw_torch"], gpt2()
    modules = select_modules(model)
    given = read_checkpoint_normalizers(run.checkpoint, model, modules, kind, include_bias=bias)
    gradients = replay(model, OPTIMIZERS["adamw_torch"](model.parameters()), run.batches, modules, bias)
    assert list(given) == list(modules)
    for name in modules:
        assert_normalizer_is_of(given[name], adam_of(*gradients[name]))
    square = adam_of(*gradients[SQUARE])[:, :24]
    with pytest.raises(AssertionError):  # the transpose would have been told apart
        torch.testing.assert_close(square, square.T, rtol=0.1, atol=0)


@pytest.mark.parametrize("bias", [False, True], ids=["weights", "biases"])
def test_a_trainers_adafactor_gives_the_second_moments_of_plain_autograd(runs, bias):
    run, model = runs["adafactor"], gpt2()
    modules = select_modules(model)
    given = read_checkpoint_normalizers(run.checkpoint, model, modules, "adafactor", include_bias=bias)
    gradients = replay(model, OPTIMIZERS["adafactor"](model.parameters()), run.batches, modules, bias)
    assert list(given) == list(modules)
    for name in modules:
        assert_normalizer_is_of(given[name], adafactor_of(*gradients[name]))


def test_torchs_adafactor_gives_the_second_moments_of_plain_autograd(runs, tmp_path):
    model = gpt2()
    modules = select_modules(model)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=RATE)
    gradients = replay(model, optimizer, runs["adafactor"].batches, modules, bias=True)
    path = saved(tmp_path / "optimizer.pt", optimizer.state_dict())
    given = read_checkpoint_normalizers(path, model, modules, "adafactor", include_bias=True)
    for name in modules:
        assert_normalizer_is_of(given[name], adafactor_of(*gradients[name]))


def test_files_in_the_trainers_order_in_the_models_order_and_with_names_give_the_same(runs, tmp_path):
    run = runs["adamw_torch"]
    in_order, named, compiled = gpt2(), gpt2(), gpt2()
    plain = torch.optim.AdamW(in_order.parameters(), lr=RATE, weight_decay=0)
    replay(in_order, plain, run.batches)
    backwards = torch.optim.AdamW(reversed(list(named.named_parameters())), lr=RATE, weight_decay=0)
    replay(named, backwards, run.batches)
    wrapped = [(f"_orig_mod.module.{name}", parameter) for name, parameter in compiled.named_parameters()]
    prefixed = torch.optim.AdamW(wrapped, lr=RATE, weight_decay=0)
    replay(compiled, prefixed, run.batches)

    files = [run.checkpoint / "optimizer.pt"] + [
        saved(tmp_path / f"{k}.pt", optimizer.state_dict())
        for k, optimizer in enumerate((plain, backwards, prefixed))
    ]
    orders = [
        [tuple(moment["exp_avg_sq"].shape) for _, moment in sorted(state["state"].items())]
        for state in (torch.serialization.load(file, weights_only=True) for file in files)
    ]
    assert orders[0] != orders[1] == orders[2][::-1] == orders[3]

    modules = select_modules(in_order)
    first, *others = (read_checkpoint_normalizers(file, in_order, modules, "adam") for file in files)
    for other in others:
        for name in modules:
            assert_normalizer_is_of(other[name], first[name].tensors()["second_moment"])


@pytest.mark.parametrize("architecture", ["gpt_j", "bloom", "qwen3", "gemma3", "olmo2", "cohere", "mixtral"])
def test_a_trainers_groups_are_known_for_each_architecture(tmp_path, architecture):
    model = architectures.model(architecture)
    moments = moments_by_hand(model)
    decayed = set(transformers.Trainer.get_decay_parameter_names(None, model))
    groups = [[name for name in moments if (name in decayed) == decays] for decays in (True, False)]
    path = saved(tmp_path / "optimizer.pt", optimizer_with(moments, model, *groups))
    modules = {k: v for k, v in select_modules(model).items() if v.out_features != v.in_features}
    given = read_checkpoint_normalizers(path, model, modules, "adam")
    for name, tracked in modules.items():
        assert_normalizer_is_of(given[name], matrix_of(moments, name, tracked))


def test_a_trainer_before_transformers_5_decayed_norms_that_are_no_layernorm(tmp_path):
    model = architectures.model("qwen2")
    moments = moments_by_hand(model)
    groups = [[name for name in moments if ("bias" in name) == spared] for spared in (False, True)]
    assert any("norm" in name for name in groups[0]) and groups[1]
    path = saved(tmp_path / "optimizer.pt", optimizer_with(moments, model, *groups))
    name = "model.layers.1.mlp.up_proj"
    given = read_checkpoint_normalizers(path, model, select_modules(model, [name]), "adam")
    assert_normalizer_is_of(given[name], moments[f"{name}.weight"])


def test_a_state_whose_parameters_are_names_is_read_as_fsdp_gathers_it(tmp_path):
    model = gpt2()
    moments = moments_by_hand(model)
    state = {name: {"step": torch.tensor(1e6), "exp_avg_sq": moment} for name, moment in moments.items()}
    groups = [{"params": list(moments)[::-1], "betas": (0.9, 0.999)}]
    path = saved(tmp_path / "optimizer.bin", {"state": state, "param_groups": groups})
    given = read_checkpoint_normalizers(path, model, select_modules(model, [SQUARE]), "adam")
    assert_normalizer_is_of(given[SQUARE], moments[f"{SQUARE}.weight"].T)


@pytest.mark.parametrize("bias", [False, True], ids=["weights", "biases"])
@pytest.mark.parametrize("suffix", ["", ".exp_avg_sq", "means"])
def test_safetensors_of_moments_are_read_by_name(tmp_path, suffix, bias):
    model, path = gpt2(), tmp_path / "moments.safetensors"
    moments = moments_by_hand(model)
    tensors: dict[str, Tensor] = {}
    for name, moment in moments.items():
        if suffix == "means" and moment.dim() > 1:
            tensors |= {f"{name}.exp_avg_sq_row": moment.mean(1), f"{name}.exp_avg_sq_col": moment.mean(0)}
        else:
            tensors[name + suffix.removeprefix("means")] = moment
    save_file(tensors, path)
    modules = select_modules(model)
    kinds = ("adafactor",) if suffix == "means" else ("adafactor", "adam")
    for kind in kinds:
        given = read_checkpoint_normalizers(path, model, modules, kind, include_bias=bias)
        for name in modules:
            columns = [moments[f"{name}.weight"].T] + [moments[f"{name}.bias"][:, None]] * bias
            assert_normalizer_is_of(given[name], torch.cat(columns, dim=1))


def test_a_tied_weight_has_the_moments_of_either_name(tmp_path):
    model = gpt2()
    moment = torch.rand(tiny.VOCABULARY, 24)
    for name in ("transformer.wte.weight", "lm_head.weight"):
        save_file({name: moment}, tmp_path / "moments.safetensors")
        given = read_checkpoint_normalizers(
            tmp_path / "moments.safetensors", model, select_modules(model, ["lm_head"]), "adam"
        )
        assert_normalizer_is_of(given["lm_head"], moment)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor"])
@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_each_fused_expert_has_the_moments_of_its_own_slice(tmp_path, architecture, optim):
    model = architectures.model(architecture)
    optimizer = OPTIMIZERS[optim](model.parameters())
    ids = torch.randint(1, tiny.VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0))
    replay(model, optimizer, [{"input_ids": ids, "labels": ids}])
    squares = {name: parameter.grad.square() for name, parameter in model.named_parameters()}
    path = saved(tmp_path / "optimizer.pt", optimizer.state_dict())
    modules = {name: tracked for name, tracked in select_modules(model).items() if tracked.expert_map}
    given = read_checkpoint_normalizers(path, model, modules, "adafactor", include_bias=True)
    assert {name.split(".")[-2] for name in given} == {"gate_up_proj", "down_proj"}
    for name, tracked in modules.items():  # after one step, V is the squared gradient for either optimizer
        assert_normalizer_is_of(given[name], matrix_of(squares, name, tracked))


def test_a_file_of_the_trained_parameters_alone_is_read_if_the_model_says_which_were_trained(tmp_path):
    model = gpt2()
    model.transformer.wte.weight.requires_grad_(False)
    moments = moments_by_hand(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    path = saved(tmp_path / "optimizer.pt", optimizer_with(moments, model, trained))
    given = read_checkpoint_normalizers(path, model, select_modules(model, [SQUARE]), "adam")
    assert_normalizer_is_of(given[SQUARE], moments[f"{SQUARE}.weight"].T)
    model.requires_grad_(False)
    with pytest.raises(InvalidInput, match=r"27 parameters, .* made with names"):
        read_checkpoint_normalizers(path, model, select_modules(model, [SQUARE]), "adam")


def test_a_file_of_lora_adapters_alone_is_read_for_the_adapters(tmp_path):
    run, model = train(tmp_path, lora(), "adamw_torch"), lora()
    modules = select_modules(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = replay(model, OPTIMIZERS["adamw_torch"](trained), run.batches, modules)
    for _ in ("as it is trained", "frozen, as it is indexed"):
        given = read_checkpoint_normalizers(run.checkpoint, model, modules, "adam")
        assert len(given) == 12
        for name in modules:
            assert_normalizer_is_of(given[name], adam_of(*gradients[name]))
        with pytest.raises(InvalidInput, match=r"for 8 of the 20 tracked modules: .*base_layer"):
            read_checkpoint_normalizers(run.checkpoint, model, select_modules(model, r"\.h\."), "adam")
        model.requires_grad_(False)


class Evil:
    """Makes the directory `trace` when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("container", ["zip", "legacy", "bare"])
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path, container):
    trace, path = tmp_path / "trace", tmp_path / "optimizer.pt"
    state = {"state": {0: {"step": 1, "exp_avg_sq": Evil(trace)}}, "param_groups": [{"params": [0]}]}
    if container == "bare":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(InvalidInput, match="nothing else is ever unpickled") as refused:
        read(path, "adam")
    assert "weights_only" not in str(refused.value)
    assert not trace.exists()
    pickle.loads(pickle.dumps(state))
    assert trace.exists()  # so plain unpickling would have run it


def changed(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Returns a state dict of GPT-2 in the model's order that is good but for one change."""
    model = gpt2()
    moments = moments_by_hand(model)
    state = optimizer_with(moments, model, moments)
    change(state)
    return state


def eight_bit(loaded: dict[str, Any]) -> None:
    for k in loaded["state"]:
        loaded["state"][k] = {
            "step": 1,
            "state1": torch.zeros(3, dtype=torch.uint8),
            "absmax1": torch.ones(1),
        }


def set_whole(number: int, make: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], None]:
    def change(loaded: dict[str, Any]) -> None:
        loaded["state"][number]["exp_avg_sq"] = make(loaded["state"][number]["exp_avg_sq"])

    return change


C_ATTN = r"transformer\.h\.0\.attn\.c_attn"
"""Its weight is the fifth parameter."""
UNFIT = f"moments of module '{C_ATTN}' are negative or not finite"
MISSING = (
    rf"no second moments for 1 of the 8 tracked modules: {C_ATTN}\. Choose `modules` that were trained, or"
)
UNREADABLE = "cannot be read as an optimizer's state"
CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "never stepped": (lambda loaded: loaded["state"].clear(), "second moments .*: it has them of none"),
    "8-bit": (eight_bit, r"state of a parameter is step, state1, absmax1; expected exp_avg_sq"),
    "integers": (set_whole(2, Tensor.int), r"state of a parameter is step, exp_avg_sq; expected exp_avg_sq"),
    "other shape": (
        set_whole(4, Tensor.t),
        rf"another model: .* \(72, 24\) are not of {C_ATTN}\.weight \(24, 72\)",
    ),
    "not a number": (set_whole(4, lambda whole: whole.index_fill(0, torch.tensor(3), torch.nan)), UNFIT),
    "infinite": (set_whole(4, lambda whole: whole * 1e300), UNFIT),
    "negative": (set_whole(4, lambda whole: whole - 1), UNFIT),
    "one without a state": (lambda loaded: loaded["state"].pop(4), MISSING),
    "one without a step": (lambda loaded: loaded["state"][4].update(step=torch.tensor(0.0)), MISSING),
    "one too few": (
        lambda loaded: loaded["param_groups"][0]["params"].pop(),
        r"it has 27 parameters, in groups of \[27\]; expected .* groups of \[28\] or \[10, 18\]",
    ),
    "other names": (
        lambda loaded: loaded["param_groups"][0].update(param_names=[f"other.{k}" for k in range(28)]),
        r"no second moments of this model's parameters: it has them of other\.0, other\.1, other\.2",
    ),
    "too few names": (lambda loaded: loaded["param_groups"][0].update(param_names=["a"]), UNREADABLE),
    "no groups": (lambda loaded: loaded.pop("param_groups"), UNREADABLE),
    "groups of another make": (lambda loaded: loaded.update(param_groups=[3]), UNREADABLE),
    "states of another make": (lambda loaded: loaded.update(state=[1]), UNREADABLE),
    "no decay": (lambda loaded: loaded["param_groups"][0].update(betas=(0.9, 1.0)), UNREADABLE),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_state_dict_that_does_not_fit_is_refused_and_the_message_says_why(tmp_path, change, message):
    path = saved(tmp_path / "optimizer.pt", changed(change))
    with pytest.raises(InvalidInput, match=message):
        read(path, "adam")


def test_a_missing_bias_counts_only_where_biases_are_tracked(tmp_path):
    path = saved(tmp_path / "optimizer.pt", changed(lambda loaded: loaded["state"].pop(5)))
    assert len(read(path, "adam")) == 8
    with pytest.raises(InvalidInput, match=r"for 1 of the 8 .* trained with their biases"):
        read(path, "adam", include_bias=True)


def test_states_of_sgd_are_refused(tmp_path):
    model = gpt2()
    batch = torch.zeros(1, 4, dtype=torch.long)
    for momentum, message in ((0.9, "is momentum_buffer; expected exp_avg_sq"), (0, "it has them of none")):
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=momentum)
        replay(model, optimizer, [{"input_ids": batch, "labels": batch}])
        path = saved(tmp_path / "optimizer.pt", optimizer.state_dict())
        with pytest.raises(InvalidInput, match=message):
            read(path, "adafactor")


def test_a_checkpoint_of_another_model_is_refused(runs):
    model = tiny.model("llama")
    with pytest.raises(InvalidInput, match=r"another model.* has 28 parameters, in groups of \[10, 18\]"):
        read_checkpoint_normalizers(runs["adamw_torch"].checkpoint, model, select_modules(model), "adam")


def test_means_are_not_enough_for_adam(runs):
    with pytest.raises(
        InvalidInput, match="only Adafactor's row and column means; expected normalizer adafactor"
    ):
        read(runs["adafactor"].checkpoint, "adam")


@pytest.mark.parametrize("kind", ["none", "kfac"])
def test_kinds_that_are_no_second_moments_are_refused(runs, kind):
    with pytest.raises(InvalidInput, match="expected adafactor or adam"):
        read(runs["adafactor"].checkpoint, kind)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("", None, "no optimizer state at .*optimizer.pt; expected"),
        ("nothing.pt", None, "no optimizer state at .*nothing.pt; expected"),
        ("optimizer.pt", b"", "cannot be read as an optimizer's state"),
        ("optimizer.pt", b"not a pickle at all", "cannot be read as an optimizer's state"),
        ("moments.safetensors", b"not safetensors", "cannot be read as a safetensors file"),
    ],
)
def test_a_file_that_is_missing_or_no_checkpoint_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        read(tmp_path / name, "adam")


def test_a_file_cut_short_is_refused(runs, tmp_path):
    whole = (runs["adamw_torch"].checkpoint / "optimizer.pt").read_bytes()
    (tmp_path / "optimizer.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInput, match="cannot be read as an optimizer's state"):
        read(tmp_path, "adam")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("weight.exp_avg_sq_row",), "is exp_avg_sq_row; expected"),
        (("weight.exp_avg",), r"it has them of transformer\.h\.0\.attn\.c_attn\.weight\.exp_avg"),
    ],
)
def test_safetensors_without_whole_moments_are_refused(tmp_path, parts, message):
    path, name = tmp_path / "moments.safetensors", "transformer.h.0.attn.c_attn"
    save_file({f"{name}.{part}": torch.rand(24) for part in parts}, path)
    with pytest.raises(InvalidInput, match=message):
        read(path, "adafactor")


def test_a_models_own_weights_are_not_taken_for_moments(runs):
    with pytest.raises(InvalidInput, match="negative"):
        read(runs["adamw_torch"].checkpoint / "model.safetensors", "adafactor")
