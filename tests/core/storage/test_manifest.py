"""The manifest meets its published JSON schema, and a manifest of another version is refused with advice."""

import json
from pathlib import Path

import jsonschema
import pytest

from bergson_core.errors import IndexCorrupt, IndexNotFound
from bergson_core.storage.manifest import FORMAT_VERSION, iter_published_indexes, read_manifest

SCHEMA = Path(__file__).parents[3] / "docs" / "manifest.schema.json"


def test_a_manifest_meets_the_schema_and_another_version_does_not(index):
    schema, manifest = json.loads(SCHEMA.read_text()), json.loads((index / "manifest.json").read_text())
    jsonschema.validate(manifest, schema)
    for wrong in ({"format_version": FORMAT_VERSION + 1}, {"rows": "many"}, {"shards": None}, {"more": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(manifest | wrong, schema)


def test_a_manifest_names_each_file_once(index):
    manifest = read_manifest(index)
    parts = (manifest, *manifest.shards, *manifest.profiles)
    assert len(manifest.all_files()) == sum(len(part.files) for part in parts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format_version": 99}', "version 99; this release reads version"),
        ("[]", "version None"),
        ("{", "cannot be read"),
        (f'{{"format_version": {FORMAT_VERSION}}}', "not a manifest"),
    ],
)
def test_a_file_that_is_no_manifest_of_this_version_is_refused(tmp_path, content, message):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(IndexCorrupt, match=message):
        read_manifest(tmp_path)


def test_a_directory_without_a_manifest_or_of_a_deleted_index_is_not_listed(index, tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / ".deleted-1").symlink_to(index)
    assert list(iter_published_indexes(tmp_path)) == []
    with pytest.raises(IndexNotFound):
        read_manifest(tmp_path / "half")
