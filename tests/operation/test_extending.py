# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""A feature map and an astrocyte code of one's own, in one file outside of the package, on every backend.

Nothing else is touched: what they are registered as reaches the operation, configurations, models, caches and options
of the scripts. `docs/extending.md` tells how to write them.
"""

import math
from typing import NamedTuple

import matrix
import pytest
import torch
from variants import tiny_config

from astroformer_hf import AstroformerConfig, AstroformerModel, astrocyte_code, feature_maps
from astroformer_hf.astrocyte_code import AstrocyteCode, of_heads, register_astrocyte_code
from astroformer_hf.feature_maps import FeatureMap, register_feature_map


def _signed(x):
    """Two neurons for each, one excited and one inhibited by the input: as many features again."""
    return torch.cat((x, -x), dim=-1).clamp(max=20).exp()


SIGNED = FeatureMap("signed", _signed, resting_level=lambda activity: math.log(activity), features_per_neuron=2)
SOFTPLUS = FeatureMap(
    "softplus",
    torch.nn.functional.softplus,
    untrained_activity=math.log(2),
    resting_level=lambda activity: math.log(math.expm1(activity * math.log(2))),
)


class MeanState(NamedTuple):
    """What has been read so far: `(batch, heads, m)` and `(batch, 1, 1)`."""

    total: torch.Tensor
    num_tokens: torch.Tensor


class MeanAstrocyteCode(AstrocyteCode):
    """R_t = w mean(k) + b, over the tokens that t can read: the astrocyte as a whole, without space."""

    has_state = True

    def __init__(self, config):
        super().__init__(config)
        self.gain = torch.nn.Parameter(torch.empty(config.num_attention_heads, 1, config.num_hidden_neurons))

    def initial_values(self, config):
        return [*super().initial_values(config), (self.gain, torch.tensor(1.0))]

    def make(self, key, layout, geometry=None, state=None, shard=None):
        gain, bias = of_heads(shard, self.gain, self.resting_bias)
        batch_size, _, length, _ = key.shape
        reads = torch.ones(batch_size, 1, length, length, dtype=key.dtype, device=key.device)
        if layout.padding_mask is not None:
            reads = reads * layout.padding_mask[:, None, None, :]
            key = key.masked_fill(~layout.padding_mask[:, None, :, None], 0)
        reads = reads.tril() if layout.causal else reads
        totals, counts = reads @ key, reads.sum(-1, keepdim=True)  # (B, H, N, m), (B, 1, N, 1)
        if state is not None:
            totals, counts = totals + state.total[:, :, None], counts + state.num_tokens[:, :, None]
        code = totals / counts.clamp(min=1) * gain + bias
        after = MeanState(totals[:, :, -1], counts[:, :, -1]) if layout.causal else None
        return code, after


@pytest.fixture(autouse=True)
def registered():
    registries = (feature_maps.FEATURE_MAPS, astrocyte_code.ASTROCYTE_CODES)
    before = [dict(registry) for registry in registries]
    register_feature_map(SIGNED)
    register_feature_map(SOFTPLUS)
    register_astrocyte_code("mean")(MeanAstrocyteCode)
    yield
    for registry, own in zip(registries, before, strict=True):  # for the other tests
        registry.clear()
        registry.update(own)


@pytest.mark.parametrize("backend", matrix.BACKENDS)
@pytest.mark.parametrize("check", matrix.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "feature_map, code", [("signed", "activity"), ("softplus", "learned"), ("elu", "mean"), ("signed", "mean")]
)
def test_they_pass_what_the_package_s_own_pass(feature_map, code, check, backend):
    check(feature_map, code, backend)


@pytest.mark.parametrize("backend", matrix.BACKENDS)
def test_they_are_saved_and_loaded(backend, tmp_path):
    matrix.check_saving("signed", "mean", backend, tmp_path)


def test_the_scripts_offer_them():
    from training.options import choices_of

    assert {"signed", "softplus"} <= set(choices_of("feature_map")) and "mean" in choices_of("astrocyte_code")


def test_a_name_that_is_not_registered_is_refused_with_a_hint(tmp_path):
    AstroformerModel(tiny_config(feature_map="softplus")).save_pretrained(tmp_path)
    del feature_maps.FEATURE_MAPS["softplus"]
    with pytest.raises(
        ValueError, match="'softplus'; one of your own must be registered before, by register_feature_map"
    ):
        AstroformerConfig.from_pretrained(tmp_path)


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match="feature map 'exp'"):
        register_feature_map(FeatureMap("exp", torch.exp))
    with pytest.raises(ValueError, match="astrocyte code 'activity'"):
        register_astrocyte_code("activity")(MeanAstrocyteCode)
