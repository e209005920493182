"""The fingerprint of a model: a sha256 over the content of every file that decides its weights or its tokens.

Everything that is read of a model matches a pattern in `MODEL_FILE_PATTERNS`, and nothing else is fetched from the hub.
READMEs, logs of the training and the state of an optimizer match none, and may change.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from bergson_core.utils.atomic_files import file_sha256

MODEL_FILE_PATTERNS: Final = (
    # Weights, of models and of adapters.
    *("*.safetensors", "*.safetensors.index.json"),
    # Configurations. There may be others for some versions of transformers, as config.4.0.0.json.
    *("config*.json", "generation_config.json", "adapter_config.json"),
    # Tokenizers: those of the library tokenizers, SentencePiece, tiktoken, and vocabularies with merges.
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    *("*.model", "*.spm", "*.tiktoken", "*.codes", "*.tokenizer"),
    *("*vocab*.json", "*vocab*.txt", "merges*.txt", "dict*.txt"),
    # Files that the tokenizers of single architectures read beside these.
    *("byte_maps.json", "emoji.json", "normalizer.json", "word_*.json"),
    # Chat templates, the additional ones in a directory of their own.
    *("chat_template*.json", "*.jinja", "*/*.jinja"),
)
"""What is read of a model's directory, as patterns for `Path.glob` and for the hub."""
_FIRST_RELEASE_PATTERNS: Final = ("*.json", "*.safetensors")


@dataclass(frozen=True)
class ModelFiles:
    """The files that decide a model's weights and tokens, as they were when they were hashed.

    Attributes:
        directories: The directory of the model, and that of its adapters if it has some.
        sha256_by_name: The sha256 of each file, by name. The names of an adapter's files begin with `adapters/`.
    """

    directories: tuple[Path, ...]
    sha256_by_name: Mapping[str, str]

    @classmethod
    def read(cls, directory: Path, adapters: Path) -> "ModelFiles":
        """Hashes the files of the model in `directory`, and of the adapters in `adapters` if this is another one."""
        hashes = _hash_files(directory)
        if adapters == directory:
            return cls((directory,), hashes)
        hashes |= {f"adapters/{name}": sha256 for name, sha256 in _hash_files(adapters).items()}
        return cls((directory, adapters), hashes)

    @cached_property
    def sha256(self) -> str:
        """The fingerprint: a sha256 over the names and hashes of all files."""
        lines = (f"{name}\0{sha256}\n" for name, sha256 in sorted(self.sha256_by_name.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @cached_property
    def first_release_sha256(self) -> str:
        """The fingerprint that release 0.1.0 would store. It covers no templates, merges or SentencePiece models."""
        digest = hashlib.sha256()
        for directory in self.directories:
            for path in _find_files(directory, _FIRST_RELEASE_PATTERNS).values():
                digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
        return digest.hexdigest()

    def find_changed(self, sha256_by_name: Mapping[str, str]) -> list[str]:
        """Returns the names of the files that were added, removed or changed since they had these hashes."""
        changed = self.sha256_by_name.items() ^ sha256_by_name.items()
        return sorted({name for name, _ in changed})


def _hash_files(directory: Path) -> dict[str, str]:
    files = _find_files(directory, MODEL_FILE_PATTERNS)
    return {name: file_sha256(path) for name, path in files.items()}


def _find_files(directory: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    """Returns the files that match one of the patterns, by their sorted paths below the directory."""
    paths = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    return {path.relative_to(directory).as_posix(): path for path in sorted(paths)}
