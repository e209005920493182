"""Models are not trusted: none of their code runs, they make no other file be read, and nothing in them runs for ever.

Other attacks are tested elsewhere under tests/: datasets in core/security/test_datasets.py; pickles in
core/gradients/test_optimizer_checkpoint.py, core/indexing/test_build.py and core/models/test_lora.py, which has the
expressions of adapters too; paths and links in worker/process/test_path_checks.py; weights that are not finite in
core/models/test_losses.py.
"""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from bergson_core.errors import InvalidInput, ModelNotFound
from bergson_core.models.loading import load_model
from bergson_core.tokens import chat_template
from bergson_core.tokens.tokenization import tokenize
from bergson_core.utils import safe_regex
from tests import tiny


def save_model_with_config(directory: Path, **fields: Any) -> str:
    """Saves a model whose config has these fields, and returns its directory."""
    path = tiny.save_model(directory) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return str(directory)


@pytest.mark.parametrize("known", [True, False], ids=["a known type", "a type of its own"])
def test_a_module_beside_a_model_is_never_imported(tmp_path, known):
    names: dict[str, Any] = {
        "AutoConfig": "evil.C",
        "AutoModelForCausalLM": "evil.M",
        "AutoTokenizer": ["evil.T", "evil.T"],
    }
    fields = {"auto_map": names} | ({} if known else {"model_type": "evil", "architectures": ["M"]})
    model = save_model_with_config(tmp_path / "model", **fields)
    tokenizer_config = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    (tmp_path / "model" / "tokenizer_config.json").write_text(
        json.dumps(tokenizer_config | {"auto_map": names})
    )
    canary = tmp_path / "canary"
    (tmp_path / "model" / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nC = M = T = object\n")
    if known:
        load_model(model)
    else:
        with pytest.raises(ModelNotFound):
            load_model(model)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attn_implementation": "evil/kernel"}, "code from a third party"),
        ({"_attn_implementation": {"": "evil/kernel"}}, "code from a third party"),
        ({"text_config": {"_attn_implementation_internal": "flash_attention_2"}}, "code from a third party"),
        ({"experts_implementation": "evil/kernel"}, "code from a third party"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "not quantised"),
        ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, "not quantised"),
        ({"transformers_weights": "../other/model.safetensors"}, "expected a file in the same directory"),
        ({"num_hidden_layers": 10**9}, "expected 0 to 10,000"),
        ({"num_hidden_layers": 10**400}, "not a configuration"),
        ({"num_hidden_layers": 3}, "no weights for gpt_neox.layers.2"),
        ({"hidden_size": 10**9}, "cannot be loaded"),
        ({"vocab_size": 10**12}, "cannot be loaded"),
        ({"hidden_size": "24"}, "cannot be loaded"),
        ({"num_attention_heads": 0}, "cannot be loaded"),
    ],
    ids=str,
)
def test_a_config_that_asks_for_too_much_is_refused(tmp_path, fields, message):
    with pytest.raises(ModelNotFound, match=message):
        load_model(save_model_with_config(tmp_path / "model", **fields))


@pytest.mark.parametrize("content", ["", "[", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"], ids=range(4))
def test_a_config_that_is_no_json_is_refused(tmp_path, content):
    (tiny.save_model(tmp_path / "model") / "config.json").write_text(content)
    with pytest.raises(ModelNotFound, match="not a configuration"):
        load_model(str(tmp_path / "model"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path, name):
    with (tiny.save_model(tmp_path / "model") / name).open("r+") as file:
        file.truncate(2**40)  # of zeros, which take no room
    with pytest.raises(ModelNotFound, match=r"1,099,511,627,776 bytes; expected at most"):
        load_model(str(tmp_path / "model"))


def test_an_index_of_weights_that_names_files_elsewhere_is_refused(tmp_path):
    for seed, name in enumerate(("mine", "secret")):
        tiny.save_model(tmp_path / name, seed=seed)
    tensors = load_file(tmp_path / "mine" / "model.safetensors")
    (tmp_path / "mine" / "model.safetensors").rename(tmp_path / "mine" / "other.safetensors")

    def load(shard: str) -> None:
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
        (tmp_path / "mine" / "model.safetensors.index.json").write_text(json.dumps(index))
        load_model(str(tmp_path / "mine"))

    load("other.safetensors")
    for name in ("../secret/model.safetensors", str(tmp_path / "secret" / "model.safetensors")):
        with pytest.raises(ModelNotFound, match="expected only files in its own directory"):
            load(name)


def test_files_elsewhere_that_a_tokenizer_names_are_not_read(tmp_path):
    other = tiny.save_model(tmp_path / "other")
    tiny.tokenizer(["zzz qqq"] * 3).save_pretrained(other)
    before = load_model(str(tiny.save_model(tmp_path / "model"))).tokenizer
    path = tmp_path / "model" / "tokenizer_config.json"
    named = dict.fromkeys(("tokenizer_file", "vocab_file"), str(other / "tokenizer.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    after = load_model(str(tmp_path / "model")).tokenizer
    assert before is not None and after is not None
    assert after.tokenize("zzz qqq") == before.tokenize("zzz qqq")


def header(size: int | None = None, **tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + b"\0" * 64


@pytest.mark.parametrize(
    "content",
    [
        header(2**60),
        header(a={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}),
        header(
            a={"dtype": "F32", "shape": [16], "data_offsets": [0, 64]},
            b={"dtype": "F32", "shape": [8], "data_offsets": [32, 64]},
        ),
        b"",
    ],
    ids=["a header of 2**60 bytes", "a tensor of 2**42 bytes", "tensors that overlap", "nothing"],
)
def test_weights_that_lie_about_their_size_are_refused(tmp_path, content):
    (tiny.save_model(tmp_path / "model") / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelNotFound, match="cannot be loaded"):
        load_model(str(tmp_path / "model"))


@pytest.mark.parametrize("pattern", [r"([\w.]+)+!", r"(\w*\w*)*$$!", "(.*)*x*!"])
def test_a_regular_expression_that_would_run_for_ever_is_stopped(monkeypatch, pattern):
    monkeypatch.setattr(safe_regex, "TIME_LIMIT_S", 1)
    with pytest.raises(InvalidInput, match="takes more than 1 s"):
        safe_regex.find_matching_names(pattern, ["gpt_neox.layers.0.attention.query_key_value" * 2])


def test_a_regular_expression_of_a_tokenizer_that_backtracks_for_ever_is_an_error(tmp_path):
    path = tiny.save_model(tmp_path / "model") / "tokenizer.json"
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pre_tokenizer": split}))
    tokenizer = load_model(str(path.parent)).tokenizer
    assert tokenizer is not None
    for completions in (None, ["a" * 40 + "!"]):
        with pytest.raises(InvalidInput, match="failed on a text"):
            tokenize(tokenizer, ["a" * 40 + "!"], completions)


LOOP = "{% for a in range(99999) %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (LOOP * 5 + "{% endfor %}" * 5, "takes more than"),
        ("{{ 'a' * 10 ** 11 }}", "MemoryError"),
        ("{{ 'a' * 10 ** 6 }}", "1000001 characters"),
        ("{% set x = ''.__class__.__mro__[1].__subclasses__() %}{{ x }}", "SecurityError"),
    ],
    ids=["loops", "more than memory", "too long", "out of the sandbox"],
)
def test_a_chat_template_is_limited_in_time_memory_and_output(monkeypatch, template, message):
    monkeypatch.setattr(chat_template, "TIME_LIMIT_S", 1 if LOOP in template else chat_template.TIME_LIMIT_S)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% generation %}a{% endgeneration %}" + template
    with pytest.raises(InvalidInput, match=message):
        chat_template.tokenize_chats(tokenizer, [[{"role": "user", "content": "hi"}]])


def test_a_regular_expression_matches_what_pythons_re_matches():
    assert safe_regex.find_matching_names(r"(?<=h\.)\d+\.ü", ["h.0.ü", "h.x.ü", "0.ü"]) == {"h.0.ü"}
