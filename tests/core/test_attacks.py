"""What comes with models and data is not trusted: no code of theirs runs, no file beside them is read.

Elsewhere: pickles in tests/core/test_optimizer_state.py, test_build.py and test_adapters.py; paths and links in
tests/worker/test_handlers.py; weights that are no numbers in test_losses.py.
"""

import gzip
import json
import shutil
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, data_files
from safetensors.torch import load_file

from bergson_core import chats, hub_datasets, parquet_files, patterns
from bergson_core.documents import load_documents, open_dataset
from bergson_core.errors import DatasetNotFound, InvalidInput, ModelNotFound
from bergson_core.models import load_model
from bergson_core.specs import BuildSpec, ColumnsSpec, DatasetSpec
from tests import tiny


def changed(directory: Path, **fields: Any) -> str:
    """A model with other fields in its config."""
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
    model = changed(tmp_path / "model", **fields)
    changed_tokenizer = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    (tmp_path / "model" / "tokenizer_config.json").write_text(
        json.dumps(changed_tokenizer | {"auto_map": names})
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
    ("fields", "says"),
    [
        ({"attn_implementation": "evil/kernel"}, "foreign code"),
        ({"_attn_implementation": {"": "evil/kernel"}}, "foreign code"),
        ({"text_config": {"_attn_implementation_internal": "flash_attention_2"}}, "foreign code"),
        ({"experts_implementation": "evil/kernel"}, "foreign code"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "not quantised"),
        ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, "not quantised"),
        ({"transformers_weights": "../other/model.safetensors"}, "expected a file beside it"),
        ({"num_hidden_layers": 10**9}, "expected 0 to 10,000"),
        ({"num_hidden_layers": 10**400}, "no configuration"),
        ({"num_hidden_layers": 3}, "no weights for gpt_neox.layers.2"),
        ({"hidden_size": 10**9}, "cannot be loaded"),
        ({"vocab_size": 10**12}, "cannot be loaded"),
        ({"hidden_size": "24"}, "cannot be loaded"),
        ({"num_attention_heads": 0}, "cannot be loaded"),
    ],
    ids=str,
)
def test_a_config_that_asks_for_too_much_is_refused(tmp_path, fields, says):
    with pytest.raises(ModelNotFound, match=says):
        load_model(changed(tmp_path / "model", **fields))


@pytest.mark.parametrize("content", ["", "[", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"], ids=range(4))
def test_a_config_that_is_no_json_is_refused(tmp_path, content):
    (tiny.save_model(tmp_path / "model") / "config.json").write_text(content)
    with pytest.raises(ModelNotFound, match="no configuration"):
        load_model(str(tmp_path / "model"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path, name):
    with (tiny.save_model(tmp_path / "model") / name).open("r+") as file:
        file.truncate(2**40)  # of zeros, which take no room
    with pytest.raises(ModelNotFound, match=r"1,099,511,627,776 bytes; expected at most"):
        load_model(str(tmp_path / "model"))


def test_an_index_of_weights_names_no_files_elsewhere(tmp_path):
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
        with pytest.raises(ModelNotFound, match="expected files of its own"):
            load(name)


def test_a_tokenizer_names_no_files_elsewhere(tmp_path):
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


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["gzip", "zip", "zip after text"])
def test_what_is_packed_is_not_unpacked_under_another_name(tmp_path, kind, streaming):
    path, line = tmp_path / "bomb.jsonl", b'{"text": "a"}\n' * 1000
    if kind == "gzip":
        path.write_bytes(gzip.compress(line))
    else:
        path.write_bytes(line if kind == "zip after text" else b"")
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a.jsonl", line)
    with pytest.raises(DatasetNotFound, match="compressed or an archive"):
        load_documents(spec_of(path, streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["once", "pages", "nested"])
def test_a_parquet_file_that_unpacks_to_more_than_it_may_be_is_refused(
    tmp_path, monkeypatch, kind, streaming
):
    monkeypatch.setattr(parquet_files, "_ANYWAY", 2**24)
    path, text = tmp_path / "bomb.parquet", "a" * 2**20
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array([text]))
    columns = {"once": once, "pages": [text] * 40, "nested": [[{"content": text}]] * 40}
    table = pa.table({"text": columns[kind]})
    pq.write_table(table, path, compression="zstd", use_dictionary=kind == "once")
    assert path.stat().st_size < 100_000
    with pytest.raises(DatasetNotFound, match="at most 100 times its size"):
        load_documents(spec_of(path, streaming=streaming))


def test_a_parquet_file_whose_columns_repeat_is_read(tmp_path):
    table = pa.table({"text": [f"text {n}" for n in range(3000)], "source": ["wiki"] * 3000})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2000)
    documents = load_documents(spec_of(tmp_path / "a.parquet", "source"))
    assert [one.prompt for chunk in documents.chunks() for one in chunk] == table["text"].to_pylist()
    assert documents.read([2999])[0].metadata == {"source": "wiki"}


def spec_of(path: Path, *metadata: str, streaming: bool = False) -> BuildSpec:
    dataset = DatasetSpec(path=str(path), streaming=streaming)
    return BuildSpec(model="m", dataset=dataset, columns=ColumnsSpec(metadata=metadata))


@pytest.mark.parametrize("name", ["[ab].jsonl", "*.jsonl", "a?.jsonl", "a::b.jsonl"])
def test_a_file_whose_name_is_a_pattern_finds_no_other_files(tmp_path, name):
    (tmp_path / name).write_text('{"text": "mine"}\n')
    (tmp_path / "a.jsonl").write_text('{"text": "theirs"}\n')
    with pytest.raises(DatasetNotFound, match="expected a path without"):
        open_dataset(DatasetSpec(path=str(tmp_path / name)))


@pytest.mark.parametrize("absolute", [True, False])
def test_a_saved_dataset_names_no_files_elsewhere(tmp_path, absolute):
    for name in ("secret", "mine"):
        Dataset.from_list([{"text": name}]).save_to_disk(tmp_path / name)
    named = (tmp_path / "secret" if absolute else Path("../secret")) / "data-00000-of-00001.arrow"
    path = tmp_path / "mine" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_data_files": [{"filename": str(named)}]}))
    with pytest.raises(DatasetNotFound, match="expected files of its own"):
        open_dataset(DatasetSpec(path=str(tmp_path / "mine")))


def test_a_saved_dataset_names_no_splits_elsewhere(tmp_path):
    for name in ("secret", "mine"):
        DatasetDict({"train": Dataset.from_list([{"text": name}])}).save_to_disk(tmp_path / name)
    (tmp_path / "mine" / "dataset_dict.json").write_text('{"splits": ["../secret/train"]}')
    shutil.rmtree(tmp_path / "mine" / "train")
    with pytest.raises(DatasetNotFound, match="expected files of its own"):
        open_dataset(DatasetSpec(path=str(tmp_path / "mine"), split="../secret/train"))


OF_HUB = "hf://datasets/org/data@0123456789012345678901234567890123456789"


@pytest.fixture
def looked_up(monkeypatch):
    """Patterns that the datasets library looks for, where nothing is found."""
    found: list[str] = []

    def resolve(pattern: str, base_path: str, **_options: Any) -> list[str]:
        found.append(pattern)
        return []

    monkeypatch.setattr(data_files, "resolve_pattern", resolve)
    return found


def load_named(monkeypatch: pytest.MonkeyPatch, pattern: str, base_path: str = OF_HUB) -> None:
    """As if the README of the hub's `org/data` named this as its data."""

    def load_dataset(*_args: Any, **_options: Any) -> None:
        data_files.DataFilesDict.from_patterns({"train": [pattern]}, base_path=base_path)
        data_files.DataFilesPatternsDict.from_patterns({"train": [pattern]}).resolve(base_path)
        with suppress(data_files.EmptyDatasetError):
            data_files.get_data_patterns(base_path)

    monkeypatch.setattr(hub_datasets, "load_dataset", load_dataset)
    open_dataset(DatasetSpec(path="org/data"))


@pytest.mark.parametrize(
    "named",
    [
        *(
            "/etc/passwd",
            "file:///etc/passwd",
            "../other/x.csv",
            "data/../../x.csv",
            "data/%2e%2e/%2e%2e/x.csv",
        ),
        *("http://169.254.169.254/x.json", "ftp://10.0.0.1/x.csv", "hf://datasets/org/secret@main/x.csv"),
        *("zip://x.csv::http://10.0.0.1/x.zip", "https://huggingface.co/datasets/org/secret/resolve/main/x"),
    ],
)
def test_a_dataset_of_the_hub_names_no_files_elsewhere(monkeypatch, looked_up, named):
    with pytest.raises(DatasetNotFound, match="expected files of its own"):
        load_named(monkeypatch, named)
    assert looked_up == []


@pytest.mark.parametrize("directory", ["/etc", "hf://datasets/org/secret@main", OF_HUB + "/../.."])
def test_a_dataset_of_the_hub_is_in_no_directory_elsewhere(monkeypatch, looked_up, directory):
    with pytest.raises(DatasetNotFound, match="expected files of its own"):
        load_named(monkeypatch, "**", directory)
    assert looked_up == []


def test_a_dataset_of_the_hub_names_files_of_its_own(monkeypatch, looked_up):
    resolve = data_files.resolve_pattern
    for named in ("data/train-*", "https://huggingface.co/datasets/org/data/resolve/main/x.parquet"):
        load_named(monkeypatch, named)
        assert named in looked_up
    assert data_files.resolve_pattern is resolve


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["Audio", "Image"])
def test_no_path_or_url_in_a_row_is_opened(tmp_path, kind, nested):
    struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    value: Any = {"bytes": None, "path": "http://127.0.0.1:9/x"}
    column = pa.array([[value]], pa.list_(struct_type)) if nested else pa.array([value], struct_type)
    feature = {"_type": "List", "feature": {"_type": kind}} if nested else {"_type": kind}
    columns = {"text": ["a"], "it": column}
    features = {"text": {"dtype": "string", "_type": "Value"}, "it": feature}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(about), tmp_path / "rows.parquet")
    with pytest.raises(InvalidInput, match="'it' holds"):
        load_documents(spec_of(tmp_path / "rows.parquet", "it"))
    assert load_documents(spec_of(tmp_path / "rows.parquet")).read(range(1))[0].prompt == "a"


@pytest.mark.parametrize("pattern", [r"([\w.]+)+!", r"(\w*\w*)*$$!", "(.*)*x*!"])
def test_an_expression_that_would_take_for_ever_is_stopped(monkeypatch, pattern):
    monkeypatch.setattr(patterns, "LIMIT_S", 1)
    with pytest.raises(InvalidInput, match="takes more than 1 s"):
        patterns.matching(pattern, ["gpt_neox.layers.0.attention.query_key_value" * 2])


LOOP = "{% for a in range(99999) %}"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (LOOP * 5 + "{% endfor %}" * 5, "takes more than"),
        ("{{ 'a' * 10 ** 11 }}", "MemoryError"),
        ("{{ 'a' * 10 ** 6 }}", "1000001 characters"),
        ("{% set x = ''.__class__.__mro__[1].__subclasses__() %}{{ x }}", "SecurityError"),
    ],
    ids=["loops", "more than memory", "too long", "out of the sandbox"],
)
def test_a_chat_template_is_bounded_in_time_memory_and_what_it_says(monkeypatch, template, says):
    monkeypatch.setattr(chats, "LIMIT_S", 1 if LOOP in template else chats.LIMIT_S)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% generation %}a{% endgeneration %}" + template
    with pytest.raises(InvalidInput, match=says):
        chats.tokenize_chats(tokenizer, [[{"role": "user", "content": "hi"}]])


def test_an_expression_finds_what_python_finds():
    assert patterns.matching(r"(?<=h\.)\d+\.ü", ["h.0.ü", "h.x.ü", "0.ü"]) == {"h.0.ü"}
