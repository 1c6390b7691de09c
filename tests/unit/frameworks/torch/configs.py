"""Small random models of ``transformers``, made the same each time."""

from __future__ import annotations

import torch

VOCABULARY = 128


def make(name, **changes):
    """A causal model in float32: ``llama``, ``qwen3-moe`` or ``gpt2``, with ``changes`` of its configuration."""
    import transformers

    sizes = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    grouped = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
               "intermediate_size": 128, "max_position_embeddings": 256}  # fmt: skip
    if name == "llama":
        config = transformers.LlamaConfig(**(sizes | grouped | changes))
        kind = transformers.LlamaForCausalLM
    elif name == "qwen3-moe":
        experts = {"head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                   "decoder_sparse_step": 1, "norm_topk_prob": True}  # fmt: skip
        config = transformers.Qwen3MoeConfig(**(sizes | grouped | experts | changes))
        kind = transformers.Qwen3MoeForCausalLM
    elif name == "gpt2":
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = transformers.GPT2Config(
            **(sizes | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256} | dropout | changes)
        )
        kind = transformers.GPT2LMHeadModel
    else:
        raise AssertionError(name)
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)  # as wide as trained weights: logits that differ by more than rounding
    return model.eval()
