"""Only causal language models are accepted: what would be loaded as one, and is none, is refused with the reason."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset
from transformers import PreTrainedModel

from bergson_core import GradientProcessor, collect_gradients, load_model
from bergson_core.errors import InvalidInput, ModelNotFound
from bergson_core.models.language_model import as_language_model
from tests import tiny

_SIZES = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
_GPT2 = {"vocab_size": tiny.VOCABULARY, "n_embd": 24, "n_layer": 2, "n_head": 2, "pad_token_id": 0}
_T5 = {"vocab_size": tiny.VOCABULARY, "d_model": 24, "d_kv": 12, "d_ff": 40, "num_layers": 2, "num_heads": 2}
_BART = {
    "vocab_size": tiny.VOCABULARY,
    "d_model": 24,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "forced_eos_token_id": None,
}
_VIT = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
_XLNET = {"vocab_size": tiny.VOCABULARY, "d_model": 24, "n_layer": 2, "n_head": 2, "d_inner": 40}


def make(class_name: str, config: str, settings: dict) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        torch.manual_seed(0)
        made = getattr(transformers, f"{config}Config")(**settings)
        return getattr(transformers, class_name)(made).eval()

    return build


NOT_CAUSAL: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "a BERT that is no decoder": (
        make("BertLMHeadModel", "Bert", _SIZES),
        r"later tokens \(.*is_decoder False",
    ),
    "a RoBERTa that is no decoder": (make("RobertaForCausalLM", "Roberta", _SIZES), "later tokens"),
    "an XLNet": (make("XLNetLMHeadModel", "XLNet", _XLNET), "later tokens"),
    "a masked language model": (make("BertForMaskedLM", "Bert", _SIZES), "class BertForMaskedLM"),
    "a masked RoBERTa": (make("RobertaForMaskedLM", "Roberta", _SIZES), "class RobertaForMaskedLM"),
    "a discriminator": (
        make("ElectraForPreTraining", "Electra", _SIZES | {"embedding_size": 24}),
        "ElectraForPreTraining",
    ),
    "a classifier": (
        make("LlamaForSequenceClassification", "Llama", _SIZES),
        "LlamaForSequenceClassification",
    ),
    "a classifier whose head is tied": (
        make("GPT2ForSequenceClassification", "GPT2", _GPT2),
        "GPT2ForSequenceClassification.*expected a causal language model, such as GPT2LMHeadModel",
    ),
    "a classifier of tokens": (
        make("LlamaForTokenClassification", "Llama", _SIZES),
        "LlamaForTokenClassification",
    ),
    "a reader": (make("LlamaForQuestionAnswering", "Llama", _SIZES), "LlamaForQuestionAnswering"),
    "a backbone": (make("LlamaModel", "Llama", _SIZES), "head"),
    "a T5": (make("T5ForConditionalGeneration", "T5", _T5), "encoder-decoder"),
    "a BART": (make("BartForConditionalGeneration", "Bart", _BART), "encoder-decoder"),
    "a vision model": (make("ViTForImageClassification", "ViT", _VIT), "'vit'|ViTForImageClassification"),
}
CAUSAL: dict[str, Callable[[], PreTrainedModel]] = {
    "a BERT that is a decoder": make("BertLMHeadModel", "Bert", _SIZES | {"is_decoder": True}),
    "a RoBERTa that is a decoder": make("RobertaForCausalLM", "Roberta", _SIZES | {"is_decoder": True}),
    "the decoder of a BART": make("BartForCausalLM", "Bart", _BART),
    "a recurrent model": make(
        "MambaForCausalLM",
        "Mamba",
        {"vocab_size": tiny.VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2},
    ),
    "a model with dropout": make("GPT2LMHeadModel", "GPT2", _GPT2 | {"resid_pdrop": 0.9, "embd_pdrop": 0.9}),
}


def save(model: PreTrainedModel, directory: Path) -> str:
    model.save_pretrained(directory)
    tiny.tokenizer(tiny.texts(20)).save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("kind", NOT_CAUSAL)
def test_a_model_that_is_not_causal_is_refused_at_load_with_the_reason(kind, tmp_path):
    build, reason = NOT_CAUSAL[kind]
    path = save(build(), tmp_path / "model")
    with pytest.raises(
        ModelNotFound, match=f"{path} cannot be .* as a causal language model: .*({reason})"
    ) as error:
        load_model(path)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("kind", NOT_CAUSAL)
def test_a_model_in_memory_that_is_not_causal_is_refused_too(kind):
    build, reason = NOT_CAUSAL[kind]
    dataset = Dataset.from_dict({"text": tiny.texts(4)})
    with pytest.raises(InvalidInput, match=reason):
        collect_gradients(build(), dataset, tiny.tokenizer(tiny.texts(20)), GradientProcessor(4))


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_causal_model_of_any_family_is_loaded(kind, tmp_path):
    model = CAUSAL[kind]()
    assert as_language_model(model.train()).model is model
    assert model.training
    assert load_model(save(model, tmp_path / "model")).tokenizer is not None


def test_a_classifier_that_says_nothing_of_its_class_lacks_its_head(tmp_path):
    model = make("LlamaForSequenceClassification", "Llama", _SIZES)()
    path = save(model, tmp_path / "model")
    config = transformers.AutoConfig.from_pretrained(path)
    config.architectures = None
    config.save_pretrained(path)
    with pytest.raises(
        ModelNotFound, match=r"no weights for lm_head\.weight; expected a model with its head"
    ):
        load_model(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.005, 0.02, 0.2])
def test_the_check_does_not_depend_on_precision_or_weights(dtype, spread):
    settings = _SIZES | {"num_hidden_layers": 1, "hidden_size": 16, "initializer_range": spread}
    for is_decoder in (True, False):
        config = transformers.BertConfig(**settings | {"is_decoder": is_decoder})
        torch.manual_seed(0)
        model = transformers.BertLMHeadModel(config).to(dtype)
        if is_decoder:
            as_language_model(model)
        else:
            with pytest.raises(InvalidInput, match="later tokens"):
                as_language_model(model)


def test_a_model_of_another_library_that_takes_no_tokens_is_left_alone():
    assert as_language_model(torch.nn.Linear(2, 2)).backbone is None
