# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What every feature map and every astrocyte code must do, on every backend: checks that take their names.

`test_extending.py` runs them over a map and a code that the package does not have, `test_matrix.py` over those that it
has. `CHECKS` lists them; each takes the names of a feature map, of a code and of a backend.
"""

import contextlib

import torch
from variants import tiny_config

from astroformer_hf import (
    AstroformerForCausalLM,
    AstroformerModel,
    attention_backend,
    neuron_astrocyte_attention,
    neuron_astrocyte_cpu,
    neuron_astrocyte_network,
)
from astroformer_hf.feature_maps import FEATURE_MAPS
from astroformer_hf.token_layout import sequence_layout


BACKENDS = ["plain"]
if neuron_astrocyte_cpu.LIBRARY.is_available():
    BACKENDS.append("cpp")
if torch.cuda.is_available():
    BACKENDS.append("triton")

LENGTHS = (1, 2, 63, 130)
PADDED = {"left": slice(0, 20), "right": slice(50, 70), "inner": slice(7, 41, 2)}


def device_of(backend):
    return "cuda" if backend == "triton" else "cpu"


def assert_close(found, expected, tolerance):
    """Within `tolerance` of the largest entry."""
    size = max(expected.abs().max().item(), 1e-2) if expected.numel() else 1
    torch.testing.assert_close(found.double().cpu(), expected.double().cpu(), rtol=tolerance, atol=tolerance * size)


def make_model(feature_map, code, backend, **changes):
    """A decoder or encoder of two layers, in the narrowest dtype that is exact there."""
    cls = AstroformerForCausalLM if changes.get("is_decoder") else AstroformerModel
    model = cls(tiny_config(feature_map=feature_map, astrocyte_code=code, num_random_features=24, **changes)).eval()
    return model.to(device_of(backend), torch.float64 if backend == "plain" else torch.float32)


def tolerance_of(backend):
    return 1e-8 if backend == "plain" else 1e-3


def check_values_and_gradients(feature_map, code, backend):
    """The operation against the network token by token, in both directions, with padding and a state."""
    dtype, device = (torch.float64 if backend == "plain" else torch.float32), device_of(backend)
    for length in LENGTHS:
        for causal in (False, True):
            inputs = [torch.randn(2, 3, length, size, dtype=torch.float64) for size in (8, 8, 5, 8)]
            mask = torch.rand(2, length) > 0.3
            options = {"alpha": 0.5, "feature_map": feature_map, "causal": causal, "output_final_state": True}
            results = []
            for function, to, where in (
                (neuron_astrocyte_network, torch.float64, "cpu"),
                (neuron_astrocyte_attention, dtype, device),
            ):
                given = [x.to(where, to).requires_grad_() for x in inputs]
                named = (
                    contextlib.nullcontext() if to == torch.float64 and where == "cpu" else attention_backend(backend)
                )
                with named:
                    output, state = function(*given, mask.to(where), **options)
                found = [output, *state]
                loss = sum((x * torch.linspace(-1, 1, x.numel()).to(x).view(x.shape)).sum() for x in found)
                results.append([*found, *torch.autograd.grad(loss, given)])
            for found, expected in zip(*reversed(results), strict=True):
                assert_close(found, expected, 1e-8 if backend == "plain" else 5e-4)


def check_code_in_pieces(feature_map, code, backend):
    """R of a causal code in pieces, each going on from the state of the one before, is R of the whole; and R at a token
    depends on nothing later."""
    model = make_model(feature_map, code, backend, is_decoder=True)
    module, device = model.astroformer.layers[0].attention.astrocyte_code, torch.device(device_of(backend))
    key = torch.randn(2, 4, 70, 8).to(model.dtype).to(device)
    mask = torch.ones(2, 70, dtype=torch.long, device=device)
    mask[0, PADDED["left"]], mask[1, PADDED["inner"]] = 0, 0
    real = mask.bool()[:, None, :, None]

    def made(key, ends):
        parts, state, start = [], None, 0
        for end in ends:
            layout = sequence_layout(end - start, device, mask[:, :end], causal=True, past_length=start)
            part, state = module.make(key[:, :, start:end], layout, None, state)
            parts.append(part.expand(2, *part.shape[-3:]))
            start = end
        assert (state is not None) == type(module).has_state
        return torch.cat(parts, dim=2) * real

    whole = made(key, (70,))
    assert_close(made(key, (1, 25, 26, 70)), whole, tolerance_of(backend))
    later = torch.cat((key[:, :, :30], torch.randn_like(key[:, :, 30:])), dim=2)
    assert_close(made(later, (70,))[:, :, :30], whole[:, :, :30], tolerance_of(backend))


def check_padding(feature_map, code, backend):
    """A model's hidden states of the real tokens, and gradients, are those without the padding, wherever it stands."""
    for is_decoder in (False, True):
        model = make_model(feature_map, code, backend, is_decoder=is_decoder, use_cache=False)
        base = getattr(model, "astroformer", model)
        device = model.device
        for padded in PADDED.values():
            input_ids = torch.randint(1, 50, (1, 70), device=device)
            mask = torch.ones_like(input_ids)
            mask[0, padded] = 0
            results = []
            for ids, attention_mask in ((input_ids, mask), (input_ids[mask.bool()][None], None)):
                model.zero_grad()
                with attention_backend(backend):
                    hidden = base(ids, attention_mask=attention_mask).last_hidden_state
                    hidden = hidden if attention_mask is None else hidden[mask.bool()][None]
                    (hidden * torch.linspace(-1, 1, hidden.numel()).to(hidden).view(hidden.shape)).sum().backward()
                gradients = [p.grad.clone() for p in base.layers.parameters() if p.grad is not None]
                results.append([hidden, *gradients])
            for found, expected in zip(*results, strict=True):
                # positions and numbers of tokens are in float32 whatever the model is in
                assert_close(found, expected, max(tolerance_of(backend), 1e-5))


def check_decoding(feature_map, code, backend):
    """Token by token and in pieces with the cache, and with the beams of a cache put in another order, as at once."""
    model = make_model(feature_map, code, backend, is_decoder=True)
    input_ids = torch.randint(1, 50, (2, 40), device=model.device)
    mask = torch.ones_like(input_ids)
    mask[0, :9] = 0
    with torch.no_grad(), attention_backend(backend):
        whole = model(input_ids, attention_mask=mask, use_cache=False).logits
        cache, parts, start = None, [], 0
        for end in (11, 12, 13, 30, 40):
            output = model(input_ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
            cache, start = output.past_key_values, end
            parts.append(output.logits)
            if end == 13:
                cache.reorder_cache(torch.tensor([1, 0]))
                cache.reorder_cache(torch.tensor([1, 0]))
        real = mask.bool()
        assert_close(torch.cat(parts, dim=1)[real], whole[real], tolerance_of(backend))
        assert cache.num_bytes == sum(layer.num_bytes for layer in cache.layers) > 0


def check_saving(feature_map, code, backend, folder):
    """A model that is saved and loaded answers the same to the bit."""
    model = make_model(feature_map, code, backend, is_decoder=True)
    input_ids = torch.randint(1, 50, (2, 9), device=model.device)
    model.save_pretrained(folder)
    loaded = AstroformerForCausalLM.from_pretrained(folder).to(model.device).eval()
    assert (loaded.config.feature_map, loaded.config.astrocyte_code) == (feature_map, code)
    with torch.no_grad(), attention_backend(backend):
        assert torch.equal(loaded(input_ids).logits, model(input_ids).logits)


def check_start(feature_map, code, backend):
    """The resting level makes an untrained astrocyte as loud as the configuration says, where the map has one."""
    found = FEATURE_MAPS[feature_map]
    if found.resting_level is None:
        return
    model = make_model(feature_map, code, backend, astrocyte_resting_activity=0.3)
    bias = model.layers[0].attention.astrocyte_code.resting_bias.double()
    expected = 0.3 * found.activity_before_training(found.num_features(8, 24))
    torch.testing.assert_close(found(bias)[..., 0].mean().item(), expected, rtol=1e-4, atol=1e-6)


CHECKS = (
    check_values_and_gradients,
    check_code_in_pieces,
    check_padding,
    check_decoding,
    check_start,
)
