# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Small models of the library with random weights, and which of them take neuron-astrocyte attention.

The tests make each one and call it; docs/pretrained.md lists them.
"""

from typing import Any, NamedTuple

import torch
import transformers


TEXT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # large enough for attention to matter
    "pad_token_id": 0,
}
GROUPED = {**TEXT, "num_key_value_heads": 2, "head_dim": 16, "bos_token_id": 1, "eos_token_id": 2}
IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
}
SEQUENCE_TO_SEQUENCE = {
    "vocab_size": 60,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}


class LibraryModel(NamedTuple):
    """A model of the library.

    Attributes:
        name: of its class.
        fields: of its configuration.
        refused: of a model that is refused, a part of the error.
        reason: what its attention does beyond a causal mask and padding.
    """

    name: str
    fields: dict[str, Any]
    refused: str = ""
    reason: str = ""

    def make(self, attn_implementation: str, **changes: Any) -> transformers.PreTrainedModel:
        model_class = getattr(transformers, self.name)
        torch.manual_seed(0)
        fields = {**self.fields, **changes, "attn_implementation": attn_implementation}
        return model_class(model_class.config_class(**fields)).eval()

    def inputs(self) -> dict[str, torch.Tensor]:
        if "image_size" in self.fields:
            return {"pixel_values": torch.randn(2, 3, 16, 16)}
        inputs = {"input_ids": torch.randint(3, 60, (2, 9)), "attention_mask": torch.ones(2, 9).long()}
        if self.fields.get("add_cross_attention"):
            inputs["encoder_hidden_states"] = torch.randn(2, 9, 32)
        return inputs

    @property
    def generates(self) -> bool:
        return self.name.endswith(("LMHeadModel", "ForCausalLM"))


GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
OPT = {**TEXT, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}
DISTILBERT = {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "initializer_range": 0.3}

SUPPORTED = [
    LibraryModel("BertModel", TEXT),
    LibraryModel("RobertaModel", {**TEXT, "pad_token_id": 1}),
    LibraryModel("DistilBertModel", DISTILBERT),
    LibraryModel("ElectraModel", {**TEXT, "embedding_size": 32}),
    LibraryModel("AlbertModel", {**TEXT, "embedding_size": 16}),
    LibraryModel("ViTModel", IMAGE),
    LibraryModel("DeiTModel", IMAGE),
    LibraryModel("Dinov2Model", IMAGE),
    LibraryModel("CLIPTextModel", TEXT),
    LibraryModel("BertLMHeadModel", {**TEXT, "is_decoder": True}),
    LibraryModel("LlamaForCausalLM", GROUPED),
    LibraryModel("MistralForCausalLM", {**GROUPED, "sliding_window": None}),
    LibraryModel("Qwen2ForCausalLM", GROUPED),
    LibraryModel("Qwen3ForCausalLM", GROUPED),
    LibraryModel("GemmaForCausalLM", GROUPED),
    LibraryModel("GPT2LMHeadModel", GPT2),
    LibraryModel("GPTNeoXForCausalLM", {**TEXT, "bos_token_id": 1, "eos_token_id": 2}),
    LibraryModel("OPTForCausalLM", OPT),
]
WINDOW = "the mask of 'sliding_window"
NO_INTERFACE = ("whose attention is not an implementation that can be chosen", "an attention that cannot be chosen")
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4}
REFUSED = [
    LibraryModel("MistralForCausalLM", {**GROUPED, "sliding_window": 4}, WINDOW, "`sliding_window` is set"),
    LibraryModel("Gemma2ForCausalLM", GROUPED, WINDOW, "a sliding window, bounded scores"),
    LibraryModel("GptOssForCausalLM", {**GROUPED, "num_local_experts": 2}, WINDOW, "a sliding window, sinks"),
    LibraryModel("ModernBertModel", TEXT, WINDOW, "a sliding window"),
    LibraryModel("T5EncoderModel", T5, "position_bias", "a bias for each distance"),
    LibraryModel("BertLMHeadModel", {**TEXT, "is_decoder": True, "add_cross_attention": True}, "cross-attention"),
    LibraryModel("BartModel", SEQUENCE_TO_SEQUENCE, "cross-attention"),
    LibraryModel("SwinModel", SWIN, "an attention mask of shape", "windows of patches"),
    LibraryModel("DebertaV2Model", TEXT, *NO_INTERFACE),
    LibraryModel("MPNetModel", TEXT, *NO_INTERFACE),
    LibraryModel("BloomForCausalLM", {"vocab_size": 60, "hidden_size": 32, "n_layer": 2, "n_head": 4}, *NO_INTERFACE),
    LibraryModel("FalconForCausalLM", {"vocab_size": 60, "hidden_size": 32, "num_attention_heads": 4}, *NO_INTERFACE),
    LibraryModel("XLNetModel", {"vocab_size": 60, "d_model": 32, "n_layer": 2, "n_head": 4}, *NO_INTERFACE),
    LibraryModel("LongformerModel", {**TEXT, "attention_window": 4}, *NO_INTERFACE),
]
