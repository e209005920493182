"""Which hub ids and local paths the builds of a service may name."""

import json
from pathlib import Path

import pytest

from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.source import DatasetSpec
from tests.worker.fakes import make_spec
from worker.process.path_checks import require_allowed_dataset, require_allowed_paths
from worker.settings import Settings

ONE_REDIS = True


@pytest.fixture
def root(settings: Settings) -> Path:
    settings.data_dir.mkdir()
    return settings.data_dir


@pytest.mark.parametrize(
    "name", ["gpt2", "EleutherAI/pythia-160m", "roneneldan/TinyStories-1M", "a.b/c_d-1", "missing/data.jsonl"]
)
def test_hub_ids_pass(root: Path, name: str):
    require_allowed_paths(make_spec(model=name), Settings(data_dir=root))
    require_allowed_paths(make_spec(documents=None, dataset={"path": name}), Settings(data_dir=root))


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "{root}/../outside",
        "{root}/link",
        "{root}/link/below",
        "{root}-beside",
        "../outside",
        "./outside",
        "~/outside",
        "~nobody-of-that-name/x",
        "https://example.org/data.jsonl",
        "hf://datasets/a/b",
        "file:///etc/passwd",
        "a/b/c",
        "nul\0byte",
        "",
    ],
)
def test_paths_outside_of_the_allowed_roots_are_refused(root: Path, name: str):
    (root.parent / "outside").mkdir()
    (root / "link").symlink_to(root.parent / "outside")
    name = name.format(root=root)
    with_model = BuildSpec.model_construct(model=name, dataset=None)
    with pytest.raises(InvalidInput, match=r"model: "):
        require_allowed_paths(with_model, Settings(data_dir=root))
    with_dataset = make_spec(documents=None, dataset={"path": name or "x/"})
    with pytest.raises(InvalidInput, match=r"dataset\.path: "):
        require_allowed_paths(with_dataset, Settings(data_dir=root))
    with_optimizer = make_spec(gradients={"optimizer_state": name or "x/"})
    with pytest.raises(InvalidInput, match=r"gradients\.optimizer_state: "):
        require_allowed_paths(with_optimizer, Settings(data_dir=root))


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + "/*.jsonl"])
def test_a_name_that_is_too_long_for_a_file_is_invalid_input(root: Path, name: str):
    for path in (name, f"{root}/{name}"):
        dataset = DatasetSpec.model_construct(path=path)
        with pytest.raises(InvalidInput, match=r"dataset\.path: |no file matches"):
            require_allowed_dataset(dataset, Settings(data_dir=root))
    with pytest.raises(InvalidInput, match=r"model: "):
        require_allowed_paths(
            BuildSpec.model_construct(model=f"{root}/{name}", dataset=None), Settings(data_dir=root)
        )


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        ("{root}/corpora/*.jsonl", True),
        ("{root}/corpora/[a].jsonl", True),
        ("{root}/corp*/**/a.jsonl", True),
        ("{root}/../outside/*.jsonl", False),
        ("{root}/*/../../outside/x.jsonl", False),
        ("{root}/linked/*.jsonl", False),
        ("{root}/*/x.jsonl", False),
        ("{root}/mixed/*.jsonl", False),
        ("{root}/indexes/*/rows.jsonl", False),
        ("{root}/index*/*/rows.jsonl", False),
        ("{root}/*.json", False),
        ("/etc/*.txt", False),
        ("/**/*.jsonl", False),
        ("*.jsonl", False),
        ("~/*.jsonl", False),
        ("~nobody-of-that-name/*.jsonl", False),
        ("nul\0byte*.jsonl", False),
        ("{root}/corpora/none*.jsonl", False),
    ],
)
def test_every_file_that_a_pattern_matches_has_to_be_allowed(
    root: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, allowed: bool
):
    outside = root.parent / "outside"
    for directory in (outside, root / "corpora", root / "mixed", root / "indexes" / "facts"):
        directory.mkdir(parents=True)
    for path in (
        outside / "x.jsonl",
        root / "corpora" / "a.jsonl",
        root / "mixed" / "a.jsonl",
        root / "keys.json",
    ):
        path.write_text("{}")
    (root / "indexes" / "facts" / "rows.jsonl").write_text("{}")
    (root / "linked").symlink_to(outside)
    (root / "mixed" / "b.jsonl").symlink_to(outside / "x.jsonl")
    monkeypatch.chdir(outside)
    monkeypatch.setenv("HOME", str(outside))
    spec = make_spec(documents=None, dataset={"path": pattern.format(root=root)})
    if allowed:
        require_allowed_paths(spec, Settings(data_dir=root))
    else:
        with pytest.raises(InvalidInput):
            require_allowed_paths(spec, Settings(data_dir=root))


@pytest.mark.parametrize("target", ["{root}/../outside", "{root}/indexes/secret", "{root}/mine/file"])
@pytest.mark.parametrize("location", ["file", "train", "train/data-00000-of-00001.arrow"])
def test_a_directory_with_a_link_to_a_forbidden_path_is_refused(root: Path, target: str, location: str):
    link = root / "mine" / location
    link.parent.mkdir(parents=True)
    link.symlink_to(target.format(root=root))
    (root / "mine" / "dataset_dict.json").write_text("{}")  # save_to_disk wrote the directory
    with_dataset = make_spec(documents=None, dataset={"path": str(root / "mine")})
    with_optimizer = make_spec(gradients={"optimizer_state": str(root / "mine")})
    for spec in (make_spec(model=str(root / "mine")), with_dataset, with_optimizer):
        if target.endswith("file") and location != "file":
            require_allowed_paths(spec, Settings(data_dir=root))
        else:
            with pytest.raises(InvalidInput, match=f"expected .*; got '{link}'"):
                require_allowed_paths(spec, Settings(data_dir=root))


@pytest.mark.parametrize(
    ("link", "passes"),
    [
        ("linked", True),
        ("notes.md", True),
        ("below/rows.jsonl", True),
        ("b.jsonl", False),
        ("b.csv.gz", False),
        ("dataset_dict.json", False),
    ],
)
def test_in_a_directory_of_files_only_links_in_place_of_files_count(root: Path, link: str, passes: bool):
    (root / "mine" / "below").mkdir(parents=True)
    (root / "mine" / "a.jsonl").write_text("{}")
    (root / "mine" / link).symlink_to(root.parent)
    spec = make_spec(documents=None, dataset={"path": str(root / "mine")})
    if passes:
        require_allowed_paths(spec, Settings(data_dir=root))
    else:
        with pytest.raises(InvalidInput, match=f"got '{root}/mine/{link}'"):
            require_allowed_paths(spec, Settings(data_dir=root))


@pytest.mark.parametrize(
    ("pattern", "link"),
    [
        ("*/secret.jsonl", "link"),
        ("*/*.jsonl", "link"),
        ("l?nk/secret.jsonl", "link"),
        ("**/secret.jsonl", "link"),
        ("**/secret.jsonl", "sub/link"),
        ("**", "sub/link"),
        ("*/link/below/secret.jsonl", "sub/link"),
        ("*/*/../secret.jsonl", "sub/link"),
        ("*.jsonl", "file.jsonl"),
        ("**/*.jsonl", "sub/file.jsonl"),
        ("*", "file.jsonl"),
    ],
)
def test_a_pattern_does_not_say_whether_a_file_exists_behind_a_link(root: Path, pattern: str, link: str):
    mine, outside = root / "mine", root.parent / "outside"
    (mine / "sub").mkdir(parents=True)
    (mine / "a.jsonl").write_text("{}")
    is_file = link.endswith(".jsonl")
    (mine / link).symlink_to(outside / "below" / "secret.jsonl" if is_file else outside)
    dataset = DatasetSpec(path=f"{mine}/{pattern}")
    messages = []
    for create in (lambda: None, (outside / "below").mkdir, (outside / "below" / "secret.jsonl").touch):
        outside.mkdir(exist_ok=True)
        create()
        with pytest.raises(InvalidInput) as refusal:
            require_allowed_dataset(dataset, Settings(data_dir=root))
        messages.append(str(refusal.value))
    (outside / "secret.jsonl").touch()
    with pytest.raises(InvalidInput) as refusal:
        require_allowed_dataset(dataset, Settings(data_dir=root))
    assert {*messages, str(refusal.value)} == {messages[0]}
    assert f"got '{mine}/{link}'" in messages[0] or ".." in pattern


def test_links_that_a_pattern_does_not_lead_through_and_links_to_allowed_directories_do_not_matter(
    root: Path,
):
    (root / "mine" / "sub").mkdir(parents=True)
    (root / "mine" / "sub" / "a.jsonl").write_text("{}")
    (root / "mine" / "same").symlink_to(root / "mine" / "sub")
    (root / "mine" / "circle").symlink_to(root / "mine")
    (root / "mine" / "outside").symlink_to(root.parent)
    for pattern in ("s*/*.jsonl", "sub/**/*.jsonl", "circle/circle/s[au]*/*.jsonl"):
        require_allowed_dataset(DatasetSpec(path=f"{root}/mine/{pattern}"), Settings(data_dir=root))


@pytest.mark.parametrize(
    "name",
    [
        "keys.json",
        "uploads/other.jsonl",
        "indexes/secret/takedowns.jsonl",
        "redis/appendonly.aof",
        "link/keys.json",
        "links/anybody/69cb.json",
    ],
)
def test_files_of_the_service_are_no_dataset(root: Path, name: str):
    (root / "link").symlink_to(root)
    spec = make_spec(documents=None, dataset={"path": str(root / name)})
    for settings in (Settings(data_dir=root), Settings(data_dir=root, allowed_roots=(root.parent,))):
        with pytest.raises(InvalidInput, match="outside of what the service itself keeps"):
            require_allowed_paths(spec, settings)


@pytest.mark.parametrize(
    ("patterns", "name", "passes"),
    [
        ("EleutherAI/*,gpt2", "EleutherAI/pythia-160m", True),
        ("EleutherAI/*,gpt2", "gpt2", True),
        ("EleutherAI/*,gpt2", "evil/model", False),
        ("EleutherAI/*,gpt2", "eleutherai/pythia", False),
        ("", "gpt2", False),
    ],
)
def test_the_operator_says_which_hub_ids_pass(
    root: Path, monkeypatch: pytest.MonkeyPatch, patterns: str, name: str, passes: bool
):
    monkeypatch.setenv("BERGSON_ALLOWED_MODELS", patterns)
    monkeypatch.setenv("BERGSON_ALLOWED_DATASETS", patterns)
    settings = Settings(data_dir=root)
    for spec in (make_spec(model=name), make_spec(model=str(root), documents=None, dataset={"path": name})):
        if passes:
            require_allowed_paths(spec, settings)
        else:
            with pytest.raises(InvalidInput, match="BERGSON_ALLOWED_"):
                require_allowed_paths(spec, settings)


def test_the_base_model_of_adapters_must_be_allowed_too(root: Path):
    adapters = root / "adapters"
    adapters.mkdir()

    def check_with_base(base: str) -> None:
        config = {"peft_type": "LORA", "base_model_name_or_path": base}
        (adapters / "adapter_config.json").write_text(json.dumps(config))
        require_allowed_paths(make_spec(model=str(adapters)), Settings(data_dir=root))

    check_with_base(str(root / "model"))
    check_with_base("org/model")
    with pytest.raises(InvalidInput, match="the model of its adapters: expected a hub id or a path below"):
        check_with_base("/etc")


def test_an_optimizer_checkpoint_is_never_taken_from_the_hub(root: Path):
    with pytest.raises(InvalidInput, match="expected a path below"):
        require_allowed_paths(
            make_spec(gradients={"optimizer_state": "org/optimizer"}), Settings(data_dir=root)
        )
    require_allowed_paths(
        make_spec(gradients={"optimizer_state": str(root / "optimizer.pt")}), Settings(data_dir=root)
    )


def test_a_local_directory_with_the_name_of_a_hub_id_must_be_allowed_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    (root.parent / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(root.parent)
    with pytest.raises(InvalidInput, match="expected a hub id or a path below"):
        require_allowed_paths(make_spec(model="org/model"), Settings(data_dir=root))


def test_paths_below_an_allowed_root_pass(root: Path, monkeypatch: pytest.MonkeyPatch):
    (root / "corpora").mkdir()
    (root / "link").symlink_to(root / "corpora")
    monkeypatch.chdir(root)
    for name in (str(root / "corpora" / "x.jsonl"), str(root / "link"), "./corpora", "corpora"):
        require_allowed_paths(make_spec(model=name), Settings(data_dir=root))


def test_a_root_that_is_a_link_allows_what_it_points_to(root: Path, tmp_path: Path):
    (tmp_path / "alias").symlink_to(root)
    settings = Settings(data_dir=root, allowed_roots=(tmp_path / "alias",))
    require_allowed_paths(make_spec(model=str(root / "model")), settings)


def test_every_checkpoint_has_to_be_allowed(root: Path) -> None:
    allowed = str(root / "step-1")
    settings = Settings(data_dir=root, allowed_models=("org/*",))
    require_allowed_paths(make_spec(model=None, models=[allowed, "org/run@step2"]), settings)
    for name in ("/etc", "other/run@step1", "org/run@step1/../x", "./org/run@step1"):
        with pytest.raises(InvalidInput, match=r"models\.0: "):
            require_allowed_paths(make_spec(model=None, models=[name, allowed]), settings)
        with pytest.raises(InvalidInput, match=r"models\.1: "):
            require_allowed_paths(make_spec(model=None, models=[allowed, name]), settings)


@pytest.mark.parametrize("name", ["/etc", "../outside", "https://example.org/model"])
def test_a_reference_model_has_to_be_allowed_as_any_model(root: Path, name: str):
    pairs = {"columns": {"chosen": "good", "rejected": "bad"}, "documents": [{"good": "a", "bad": "b"}]}
    require_allowed_paths(make_spec(**pairs, reference_model="gpt2"), Settings(data_dir=root))
    with pytest.raises(InvalidInput, match="reference_model: "):
        require_allowed_paths(make_spec(**pairs, reference_model=name), Settings(data_dir=root))
