# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Feature maps phi: from the input of the hidden neurons to their activity, which is never negative.

One record per map, in `FEATURE_MAPS`. Everything else that depends on the map follows from its record: what the
configuration accepts, how an untrained astrocyte starts, the cache's sizes, and how each backend computes it. A map
that the kernels do not have is applied by PyTorch before them, and they run with the identity; so
`register_feature_map` is all that a new one needs (see `docs/extending.md`).

Letters in shape comments: m hidden neurons (the size of a query), F features that phi makes of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch


# exp saturates here, so that products of two activities, summed over any length, stay inside float32.
EXP_CEILING = 30.0

# The same for the exponent of how loud a key is, see `HedgehogMap`.
MOST_GAIN = 20.0

# Number and seed of the random features that "favor" uses when it is given none.
DEFAULT_RANDOM_FEATURES = 256
DEFAULT_RANDOM_SEED = 0

Tensor = torch.Tensor


@dataclass(frozen=True)
class FeatureMap:
    """A feature map phi, with what depends on it.

    Args:
        name (`str`): its name in `config.feature_map` and in the operation's `feature_map`.
        phi (function): from `(..., m)` to activities `(..., F)`, differentiable and never negative, in the dtype of its
            input, which is float32 or float64. A random map also takes its projection, `(random_features, m)`.
        untrained_activity (`float` or function, defaults to 1.0): about phi(x) for the x near 0 of a freshly
            initialised neuron; a function where it depends on the number of features F.
        resting_level (function, *optional*): the b with phi(b) = `resting_activity` times `untrained_activity`, by that
            number; without it the astrocyte starts at R = 0.
        features_per_neuron (`int`, defaults to 1): F / m, of a map that is not random.
        in_kernels (`bool`, defaults to `False`): whether the C++ and Triton kernels compute phi themselves. Where they
            do not, PyTorch applies it first.
        has_random_projection (`bool`, defaults to `False`): whether phi takes a projection, which a model draws and
            saves with its weights.
    """

    name: str
    phi: Callable[..., Tensor]
    untrained_activity: float | Callable[[int], float] = 1.0
    resting_level: Callable[[float], float] | None = None
    features_per_neuron: int = 1
    in_kernels: bool = False
    has_random_projection: bool = False

    def __call__(self, x: Tensor, random_projection: Tensor | None = None) -> Tensor:
        return self.phi(x, random_projection) if self.has_random_projection else self.phi(x)

    def num_features(self, num_hidden_neurons: int, num_random_features: int) -> int:
        """F, for m hidden neurons and, of a random map, so many random features."""
        return num_random_features if self.has_random_projection else self.features_per_neuron * num_hidden_neurons

    def activity_before_training(self, num_features: int) -> float:
        """About the activity phi(x) of a freshly initialised neuron, whose x is near 0."""
        activity = self.untrained_activity
        return activity(num_features) if callable(activity) else activity


FEATURE_MAPS: dict[str, FeatureMap] = {}


def register_feature_map(feature_map: FeatureMap) -> FeatureMap:
    """Makes a feature map known by its name, to the operation, configurations and models; returns it.

    Raises:
        ValueError: another map has that name.
    """
    if feature_map.name == "identity" or FEATURE_MAPS.get(feature_map.name, feature_map) != feature_map:
        raise ValueError(f"there is a feature map {feature_map.name!r} already")
    FEATURE_MAPS[feature_map.name] = feature_map
    return feature_map


def phi(x: Tensor, feature_map: str, random_projection: Tensor | None = None) -> Tensor:
    """The activity phi(x) by the name of a map; of "identity", which stands for features that are made already, x."""
    return x if feature_map == "identity" else FEATURE_MAPS[feature_map](x, random_projection)


# --------------------------------------------------------------------------------------------------------------------
# The maps
# --------------------------------------------------------------------------------------------------------------------


def _elu(x: Tensor) -> Tensor:
    # elu(x) + 1, in a form that keeps exp(x) below the rounding of 1
    return x.clamp(max=0).exp() + x.relu()


def _exp(x: Tensor) -> Tensor:
    return x.clamp(max=EXP_CEILING).exp()


def _favor(x: Tensor, random_projection: Tensor) -> Tensor:
    num_features, num_hidden_neurons = random_projection.shape
    x = x * num_hidden_neurons**-0.25  # phi(q) phi(k) then estimates exp(q k / sqrt(m))
    exponent = x @ random_projection.to(x).T - x.square().sum(-1, keepdim=True) / 2
    return exponent.clamp(max=EXP_CEILING).exp() * num_features**-0.5


# 0.1 is about the mean of relu(x) for the x of an untrained neuron, whose standard deviation is some tenths
UNTRAINED_RELU = 0.1

register_feature_map(
    FeatureMap(
        "elu",
        _elu,
        resting_level=lambda activity: activity - 1.0 if activity > 1 else math.log(activity),
        in_kernels=True,
    )
)
register_feature_map(
    FeatureMap(
        "relu",
        torch.relu,
        untrained_activity=UNTRAINED_RELU,
        resting_level=lambda activity: activity * UNTRAINED_RELU,
        in_kernels=True,
    )
)
register_feature_map(FeatureMap("exp", _exp, resting_level=math.log, in_kernels=True))
register_feature_map(
    FeatureMap(
        "favor",
        _favor,
        # features that integrate to 1 for every x; hence no level at which they rest
        untrained_activity=lambda num_features: num_features**-0.5,
        has_random_projection=True,
    )
)

# --------------------------------------------------------------------------------------------------------------------
# Random projections
# --------------------------------------------------------------------------------------------------------------------


def draw_random_projection(
    num_features: int, num_hidden_neurons: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draws the matrix W of the "favor" feature map: Gaussian rows that are orthogonal in blocks of m.

    Orthogonal rows estimate the softmax kernel with less variance than independent ones, without bias
    (Choromanski et al., "Rethinking Attention with Performers", ICLR 2021, section 2.4).

    Args:
        num_features (`int`): number of random features, the rows of W.
        num_hidden_neurons (`int`): size of a query, the columns of W.
        generator (`torch.Generator`, *optional*): source of randomness on the CPU; the global one by default.

    Returns:
        `torch.Tensor` of shape `(num_features, num_hidden_neurons)`, float32, on the CPU.
    """
    # in this dtype also where a model is built in half precision, which has no such decomposition
    options: dict[str, Any] = {"generator": generator, "device": "cpu", "dtype": torch.float32}
    blocks = []
    for _ in range(-(-num_features // num_hidden_neurons)):
        gaussian = torch.randn(num_hidden_neurons, num_hidden_neurons, **options)
        q, r = torch.linalg.qr(gaussian)
        blocks.append((q * r.diagonal().sign()).T)  # with these signs, and only so, every direction is as likely
    directions = torch.cat(blocks)[:num_features]
    norms = torch.randn(num_features, num_hidden_neurons, **options).norm(dim=-1, keepdim=True)
    return directions * norms


@lru_cache(maxsize=16)
def _drawn_once(num_hidden_neurons: int) -> Tensor:
    generator = torch.Generator().manual_seed(DEFAULT_RANDOM_SEED)
    return draw_random_projection(DEFAULT_RANDOM_FEATURES, num_hidden_neurons, generator)


def default_random_projection(feature_map: str, num_hidden_neurons: int, device: torch.device) -> Tensor | None:
    """The projection of a random map that is given none, the same in every process; None for the other maps."""
    if not FEATURE_MAPS[feature_map].has_random_projection:
        return None
    return _drawn_once(num_hidden_neurons).to(device)


class HedgehogMap(NamedTuple):
    """The learned feature map "hedgehog" (Zhang et al., "The Hedgehog and the Porcupine", ICLR 2024), one per head.

    phi(x) is the softmax of x W and -x W over the features. The softmax loses how long a key is, which for softmax
    attention says how much of it is heard: so the features of a key k may be times exp(a k).

    Attributes:
        weight: W, `(heads, size, features / 2)`.
        loudness: a, `(heads, size, 1)`; None: 1 for every x.
    """

    weight: Tensor
    loudness: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """phi of `(batch, heads, length, size)`, `(batch, heads, length, features)`, in the dtype of x."""
        mapped = x @ self.weight.to(x.dtype)
        features = torch.cat((mapped, -mapped), dim=-1).softmax(-1)
        if self.loudness is None:
            return features
        gain = x @ self.loudness.to(x.dtype)
        return features * gain.clamp(-MOST_GAIN, MOST_GAIN).exp()
