"""Tiny models of many architectures with random weights, made from their configs, so that nothing is downloaded.

The weights are spread widely enough that attention, routing and capped logits matter. Biases and norms are not at their
defaults, which would hide errors. Windows of sliding attention are shorter than the documents of the tests.
"""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tests.tiny import VOCABULARY

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_GROUPED = _SIZES | {"num_key_value_heads": 1}
_GEMMA = _GROUPED | {
    "head_dim": 12,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
}
_EXPERTS = _GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20}

DENSE: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gpt_j": (
        "GPTJ",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 24,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 64,
            "rotary_dim": 4,
        },
    ),
    "opt": ("OPT", _SIZES | {"ffn_dim": 40, "word_embed_proj_dim": 16}),
    "opt_post_norm": ("OPT", _SIZES | {"ffn_dim": 40, "do_layer_norm_before": False}),
    "bloom": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": 24, "n_layer": 2, "n_head": 2}),
    "falcon": ("Falcon", _SIZES | {"bias": True}),
    "falcon_new": (
        "Falcon",
        _SIZES | {"new_decoder_architecture": True, "num_kv_heads": 1, "alibi": True},
    ),
    "mistral": ("Mistral", _GROUPED | {"sliding_window": 6}),
    "qwen2": ("Qwen2", _GROUPED | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", _GROUPED | {"head_dim": 12}),
    "gemma2": ("Gemma2", _GEMMA | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3", _GEMMA),
    "phi3": ("Phi3", _GROUPED | {"sliding_window": 6}),
    "olmo2": ("Olmo2", _GROUPED),
    "stablelm": (
        "StableLm",
        _GROUPED | {"use_parallel_residual": True, "use_qkv_bias": True, "partial_rotary_factor": 0.5},
    ),
    "cohere": ("Cohere", _GROUPED | {"logit_scale": 0.5}),
}
_LATENT = _SIZES | {
    "num_key_value_heads": 2,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
MIXTURES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2Moe", _EXPERTS | {"shared_expert_intermediate_size": 16}),
    "qwen3_moe": ("Qwen3Moe", _EXPERTS | {"head_dim": 12, "norm_topk_prob": True}),
    "olmoe": ("Olmoe", _GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v3": (
        "DeepseekV3",
        _LATENT
        | {
            "moe_intermediate_size": 20,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "nemotron_h": (
        "NemotronH",
        _GROUPED
        | {
            "layers_block_type": ["attention", "moe", "mamba", "moe"],
            "head_dim": 12,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "moe_shared_expert_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
            "mamba_num_heads": 4,
            "mamba_head_dim": 6,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
        },
    ),
    "granite_moe": ("GraniteMoe", _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": (
        "GptOss",
        _GROUPED | {"head_dim": 12, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
    ),
}

_TINY = {"vocab_size": VOCABULARY, "pad_token_id": 0}
OTHERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "phi": ("Phi", _SIZES),
    "mpt": ("Mpt", _TINY | {"d_model": 24, "n_heads": 2, "n_layers": 2, "max_seq_len": 64}),
    "gpt_neo": (
        "GPTNeo",
        _TINY
        | {
            "hidden_size": 24,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 40,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "codegen": ("CodeGen", _TINY | {"n_embd": 24, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
    "xglm": ("XGLM", _TINY | {"d_model": 24, "num_layers": 2, "attention_heads": 2, "ffn_dim": 40}),
    "gemma": ("Gemma", _GROUPED | {"head_dim": 12}),
    "smollm3": ("SmolLM3", _GROUPED),
    "bert": ("BertLMHead", _SIZES | {"is_decoder": True}),
    "ctrl": ("CTRLLMHead", {"vocab_size": VOCABULARY, "n_embd": 24, "n_layer": 2, "n_head": 2, "dff": 40}),
    "cpmant": (
        "CpmAnt",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "dim_head": 12,
            "dim_ff": 40,
        },
    ),
    "recurrent_gemma": (
        "RecurrentGemma",
        _GROUPED | {"lru_width": 24, "block_types": ["recurrent", "attention"], "intermediate_size": 80},
    ),
    "rwkv": (
        "Rwkv",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "attention_hidden_size": 24,
            "intermediate_size": 40,
        },
    ),
    "qwen3_next": (
        "Qwen3Next",
        _EXPERTS
        | {
            "head_dim": 12,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 4,
            "linear_value_head_dim": 4,
        },
    ),
    "mamba": (
        "Mamba",
        {"vocab_size": VOCABULARY, "hidden_size": 24, "state_size": 4, "num_hidden_layers": 2},
    ),
}
"""Further architectures, of which only the names and shapes of the modules matter."""

PARTLY_TRACKED: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama4": ("Llama4", _GROUPED | {"intermediate_size_mlp": 40, "num_local_experts": 4, "head_dim": 12}),
}
"""Mixtures of experts whose experts are not tracked."""


def model(
    architecture: str, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any
) -> PreTrainedModel:
    """Returns a model in evaluation mode; `changes` are passed to its config."""
    family, settings = (DENSE | MIXTURES | OTHERS | PARTLY_TRACKED)[architecture]
    prefix = {"Gemma3": "Gemma3Text", "Llama4": "Llama4Text"}.get(family, family.removesuffix("LMHead"))
    config = getattr(transformers, f"{prefix}Config")(**settings | changes)
    torch.manual_seed(seed)
    model_class = f"{family}Model" if family.endswith("LMHead") else f"{family}ForCausalLM"
    network = getattr(transformers, model_class)(config).to(dtype).eval()
    if architecture in MIXTURES:
        network.set_experts_implementation("eager")
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.normal_(std=0.15)
    return network
