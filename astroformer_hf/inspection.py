# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Looking inside a model: what its tripartite synapses hold after an input, layer by layer."""

import math
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .astrocyte_code import AstrocyteCode, upcast
from .attention_operation import neuron_astrocyte_attention_weights, shares
from .attention_passes import (
    activities,
    astrocyte_feedback,
    calcium_response,
    full_precision,
    presynaptic_release,
)
from .feature_maps import phi
from .input_checks import isinstance_by_name
from .layers_astroformer import AstroformerAttention, materialized
from .library_compatibility import CACHE_NAME, CACHE_NAMES


class SynapseRecord(NamedTuple):
    """What the synapses of a layer hold after an input, in float32 on the CPU. B batch, H heads, N tokens, m hidden
    neurons, F features that phi makes of them, d head size.

    Attributes:
        hebbian_neuron: H_neuron, `(B, H, F, d)`: (1/m) phi(K)^T V, of which, where synapses leak from token to token,
            what is left after the last.
        hebbian_astro: H_astro, `(B, H, F, d)`: (1/m) phi(R)^T V likewise; 0 without an astrocyte Hebbian term.
        calcium_response: C, `(B, H, N)`: phi(Q) g with the sum of the calcium, whatever `calcium_normalization` says.
            Where nothing leaks it grows with the length of the text, and in a causal model, which has the calcium up to
            each token, along the text. 0 at padding.
        feedback: P, `(B, H, N)`: 1 / C, or 1 where the model has no feedback. 0 at padding.
        attention: the effective attention, `(B, H, N, N)`: what the values are multiplied with, the layer's factor and
            the covariance rule included; the `attentions` of the model.
        astrocyte_code: R, `(B, H, N, m)`; None without an astrocyte Hebbian term.
        retention: f_t, `(B, H, N)`: the share of all that was written that is left when a token comes, 1 at padding;
            None where nothing leaks from token to token.
        memory_span: `(B, H)`: the tokens (on a grid, patches) after which a share 1/e is left, at the mean rate of the
            real tokens; infinite where nothing leaks.
        release: calcium^(alpha - 1), `(B, H, N, F)`: in which proportion to its weight each synapse answers a token;
            None unless alpha acts at the synapse.
        coupling: r_ij between the processes at the tokens, `(B, N, N)`, 0 at padding; None likewise. The code
            "activity" leaves out its diagonal and normalises its rows.
        padding_mask: `(B, N)` bool, True where a token is real.
    """

    hebbian_neuron: torch.Tensor
    hebbian_astro: torch.Tensor
    calcium_response: torch.Tensor
    feedback: torch.Tensor
    attention: torch.Tensor
    astrocyte_code: torch.Tensor | None
    retention: torch.Tensor | None
    memory_span: torch.Tensor
    release: torch.Tensor | None
    coupling: torch.Tensor | None
    padding_mask: torch.Tensor


@torch.no_grad()
def look_inside(model: PreTrainedModel, **inputs: Any) -> tuple[ModelOutput, list[SynapseRecord]]:
    """Runs a model and records its synapses.

    Memory is quadratic in the length, because the effective attention is built.

    Args:
        model (`PreTrainedModel`): an Astroformer of any head, for text or images, of the arm "neuron_astrocyte" or
            "linear"; also one whose code came with its checkpoint.
        inputs: what its forward pass takes, such as `input_ids` and `attention_mask`, or `pixel_values`.

    Returns:
        The model's output, and a list with a `SynapseRecord` for each layer.

    Raises:
        ValueError: the model has no such synapses, or the inputs go on from a cache.
    """
    layers = [module for module in model.modules() if isinstance_by_name(module, AstroformerAttention)]
    if not layers or layers[0].attention_type == "softmax":
        found = layers[0].attention_type if layers else type(model).__name__
        raise ValueError(f"model must have neuron-astrocyte or linear attention, got {found!r}")
    if (segment_length := getattr(model.config, "segment_length", None)) is not None:
        raise ValueError(
            f"look_inside takes models that read a text at once, and this one has segment_length={segment_length}"
        )
    cache = next((inputs[name] for name in CACHE_NAMES if inputs.get(name) is not None), None)
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError(
            f"look_inside takes whole texts, and {CACHE_NAME} holds {cache.get_seq_length()} tokens: leave it out, and "
            "give them as well"
        )
    heard = {}
    was_training = model.training
    with ExitStack() as hooks:
        for layer in layers:
            hook = layer.register_forward_pre_hook(lambda module, arguments: heard.update({module: arguments[:2]}))
            hooks.callback(hook.remove)
        hooks.callback(model.train, was_training)
        output = model.eval()(**inputs)
    return output, [_record(layer, *heard[layer]) for layer in layers]


def _record(layer: Any, hidden_states: torch.Tensor, shared: Any) -> SynapseRecord:
    # the layer and what it shares are of our classes, or of their copies in code that came with a checkpoint
    layout = shared.layout
    if layout.document_ids is not None:
        raise ValueError("look_inside takes one document per row, and these are packed; give each a row, padded")
    with full_precision(hidden_states):
        *projected, shard = layer.project(hidden_states)
        if shard is not None:
            raise ValueError("model must be whole on this process, got one that is sharded by a tensor-parallel plan")
        query, key, value = map(upcast, projected)
        code, mask = None, layout.padding_mask
        if layer.astrocyte_code is not None:
            code = materialized(layer.astrocyte_code(key, layout, shared.geometry), key, layout)
        leak = layer.leak(hidden_states, shared, None)
        leak_of_operation = layer.leak_of_operation(leak)
        log_decay, proximity = leak_of_operation["log_decay"], leak_of_operation["proximity"]
        operation = {
            **layer.operation,
            **leak_of_operation,
            "random_projection": layer.random_projection,
            "causal": layout.causal,
        }
        attention = neuron_astrocyte_attention_weights(query, key, code, mask, **operation) * shared.output_scale
        if layer.covariance_gain is not None:
            attention = attention + layer.covariance_term(query, key, value, shared, None, None, leak, True)[1]

        feature_map, num_hidden_neurons = layer.operation["feature_map"], layer.num_hidden_neurons
        alpha, sources = layer.operation["alpha"], layer.operation["calcium_sources"]
        process_input = code
        if layer.random_projection is not None:
            query, key = (phi(x, feature_map, layer.random_projection) for x in (query, key))
            process_input = None if code is None else phi(code, feature_map, layer.random_projection)
            feature_map = "identity"
        presynaptic, process = activities(key, process_input, mask, feature_map)
        share = shares(log_decay, proximity, mask, None, layout.causal, presynaptic)
        if mask is None:
            mask = torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device)
        written = value.masked_fill(~mask[:, None, :, None], 0) / num_hidden_neurons
        if log_decay is not None:
            written = written * share[..., -1, :, None]
        hebbian_neuron = presynaptic.transpose(-1, -2) @ written
        hebbian_astro = torch.zeros_like(hebbian_neuron)
        if code is not None:
            hebbian_astro = process.expand_as(presynaptic).transpose(-1, -2) @ written
        calcium = share @ (presynaptic + process if sources == "all" else presynaptic)
        response = calcium_response(phi(query, feature_map), calcium, alpha).squeeze(-1)
        response = response.masked_fill(~mask[:, None], 0)
        feedback = astrocyte_feedback(response) if layer.operation["feedback"] else mask[:, None].expand_as(response)
        release = presynaptic_release(calcium, alpha) if layer.operation["presynaptic_target"] == "synapse" else None

    batch_size, length = mask.shape
    if code is not None:
        code = code.expand(batch_size, *code.shape[-3:])
    coupling = None
    if code is not None:
        own_code = next(x for x in layer.astrocyte_code.modules() if isinstance_by_name(x, AstrocyteCode))
        coupling = _coupling(own_code.scale, layout, batch_size, length)
        coupling = coupling * mask[:, None, :] * mask[:, :, None]
    retention, memory_span = None, torch.full((batch_size, layer.num_heads), math.inf)
    if log_decay is not None:
        log_decay = log_decay.expand(batch_size, -1, -1).masked_fill(~mask[:, None], 0)
        retention = log_decay.exp()
        memory_span = -mask.sum(-1, keepdim=True) / log_decay.sum(-1)
    elif proximity is not None:
        farthest = shared.distances.argmax()
        rates = -leak["log_proximity"].flatten(1)[:, farthest] / shared.distances.flatten()[farthest]
        memory_span = (1 / rates).expand(batch_size, -1)
    found = (hebbian_neuron, hebbian_astro, response, feedback, attention, code, retention, memory_span, release)
    return SynapseRecord._make([*(None if x is None else x.float().cpu() for x in (*found, coupling)), mask.cpu()])


def _coupling(scale: float, layout: Any, batch_size: int, length: int) -> torch.Tensor:
    """r_ij = exp(-scale * distance): `(batch, length, length)`; 0 for j > i causally."""
    coupling = layout.coupling(scale, torch.float32)
    if coupling is None:
        positions = layout.position_ids.float()
        coupling = torch.exp(-scale * (positions[:, :, None] - positions[:, None, :]).abs())
        coupling = coupling.tril() if layout.causal else coupling
    return coupling.expand(batch_size, length, length)
