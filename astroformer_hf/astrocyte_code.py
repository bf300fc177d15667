# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The astrocyte code R: where the processes of the astrocyte lie, as seen by the hidden neurons.

Three codes are made from the coupling r between the processes, which falls with their distance (`token_layout.py`),
each with a learned resting level b per hidden neuron:

    "learned"      R = r W_rel + b     W_rel a learned table, one row per position: the paper's (AT, section III)
    "sinusoidal"   R = r S W + b       S the sines and cosines of the positions, W learned: any length
    "activity"     R = r' K W + b      r' = r without its diagonal, rows normalised over the real tokens; W learned: the
                                       process at a synapse integrates the activity of its neighbours, the term
                                       sum_kl T_ijkl psi(p_kl) of the astrocyte's dynamics (Kozachkov, Slotine and
                                       Krotov, "Neuron-Astrocyte Associative Memory", 2023)

Causally r_ij is 0 for j > i, and R depends on nothing that comes later. In "learned" and "sinusoidal" the astrocyte
tiles the whole line of positions, whether or not a token sits at each, so that R at a position depends neither on the
batch nor on its padded length.

Initial values. An untrained neuron has about the activity phi(0), and an untrained code that starts at R = 0 is heard
as loudly as that at every position: for "learned" and "sinusoidal", H_astro then dilutes H_neuron by a plain average of
all values. So their tables start near zero and b starts where phi(b) is `config.astrocyte_resting_activity` times the
activity of an untrained neuron: the astrocyte's term starts small and grows as far as it helps. For "activity", whose
code tells the tokens apart from the start, a loud start can be the better one. The b adds nothing to what the paper's
code can express (r is invertible, so W_rel could hold it); it gives the optimiser one number to move. There is no small
start for "favor", whose features integrate to 1 for every R, nor for "activity" with "relu", where the keys outweigh so
small a b.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import nn

from .attention_contract import CodeRecipe, MaterializedCode
from .feature_maps import FEATURE_MAPS
from .head_shards import HeadShard
from .token_layout import GridLayout, SequenceLayout, without_shared_batch


Layout = SequenceLayout | GridLayout


# --------------------------------------------------------------------------------------------------------------------
# The codes
# --------------------------------------------------------------------------------------------------------------------


ASTROCYTE_CODES: dict[str, type["AstrocyteCode"]] = {}


def register_astrocyte_code(name: str) -> Callable[[type["AstrocyteCode"]], type["AstrocyteCode"]]:
    """Decorator that makes an `AstrocyteCode` known as `config.astrocyte_code`. Registering a class again replaces it.

    Args:
        name (`str`): what configurations call it.

    Raises:
        ValueError: a class of another name has it.
    """

    def register(code: type["AstrocyteCode"]) -> type["AstrocyteCode"]:
        if ASTROCYTE_CODES.get(name, code).__name__ != code.__name__:
            raise ValueError(f"there is an astrocyte code {name!r} already, {ASTROCYTE_CODES[name].__name__}")
        ASTROCYTE_CODES[name] = code
        return code

    return register


class AstrocyteCode(nn.Module):
    """The base of every astrocyte code: the resting level b, `(heads, 1, hidden_neurons)`, and what a layer calls.

    A code of its own implements `make`, and is registered by `register_astrocyte_code`; see `docs/extending.md`.

    Attributes:
        scale: the scale of the coupling.
        has_state: whether `make` returns a state for causal layouts, from which the next call goes on: a tuple of
            tensors, each with the batch first, of sizes that do not depend on the length. The cache keeps it.
        has_table: whether there is a learned row for each position, so that inputs have a greatest length.
    """

    has_state: ClassVar[bool] = False
    has_table: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.scale = float(config.astrocyte_scale)
        self.resting_bias = nn.Parameter(torch.empty(config.num_attention_heads, 1, config.num_hidden_neurons))

    def initial_values(self, config: Any) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """Pairs of a parameter and its initial value, a tensor that broadcasts to it."""
        resting_level = FEATURE_MAPS[config.feature_map].resting_level
        level = 0.0 if resting_level is None else resting_level(config.astrocyte_resting_activity)
        return [(self.resting_bias, torch.tensor(level))]

    def geometry(self, layout: Layout) -> Any:
        """What the codes of all layers have in common, which a model works out once; None if nothing."""
        return None

    def forward(
        self, key: torch.Tensor, layout: Layout, geometry: Any = None, state: Any = None, shard: HeadShard | None = None
    ) -> CodeRecipe:
        """What attention takes. A layer calls it as a module, so that hooks that bring its parameters run.

        Args:
            key (`torch.Tensor`): `(batch, heads, length, hidden_neurons)`, float32 (float64 for float64).
            layout: where the tokens lie, see `token_layout.py`.
            geometry (*optional*): the result of `geometry`; worked out here without it.
            state (tuple of `torch.Tensor`, *optional*): causally, what the call before returned.
            shard (`HeadShard`, *optional*): where the keys are not of all heads.
        """
        return MaterializedCode(*self.make(key, layout, geometry, state, shard))

    def make(
        self, key: torch.Tensor, layout: Layout, geometry: Any = None, state: Any = None, shard: HeadShard | None = None
    ) -> tuple[torch.Tensor, Any]:
        """R, `(heads, length, hidden_neurons)` or with a leading batch, and the state after the last token (None for
        codes that have none). Arguments as of `forward`."""
        raise NotImplementedError(f"{type(self).__name__} must implement `make`")

    @property
    def dtype(self) -> torch.dtype:
        return upcast(self.resting_bias).dtype


@register_astrocyte_code("learned")
class LearnedAstrocyteCode(AstrocyteCode):
    """R = r W_rel + b with a learned row of W_rel per position, and no position past the last row."""

    has_table = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        shape = (config.num_attention_heads, config.num_table_positions, config.num_hidden_neurons)
        self.relative_embedding = nn.Parameter(torch.empty(shape))  # W_rel

    def initial_values(self, config: Any) -> list[tuple[nn.Parameter, torch.Tensor]]:
        # so that R, too, starts within that range
        std = config.initializer_range / coupling_row_sum(self.scale, config.num_position_dimensions)
        return [*super().initial_values(config), (self.relative_embedding, _normal_like(self.relative_embedding, std))]

    def geometry(self, layout: Layout) -> Any:
        return layout.coupling_of_table(self.scale, self.dtype)

    def make(
        self, key: torch.Tensor, layout: Layout, geometry: Any = None, state: Any = None, shard: HeadShard | None = None
    ) -> tuple[torch.Tensor, Any]:
        table, bias = of_heads(shard, self.relative_embedding, self.resting_bias)
        return layout.coupled_table(upcast(table), self.scale, geometry) + bias, None


@register_astrocyte_code("sinusoidal")
class SinusoidalAstrocyteCode(AstrocyteCode):
    """R = r S W + b with the sines and cosines S of the positions: like "learned", without a table."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_frequencies = max(1, config.num_hidden_neurons // 2)
        num_waves = 2 * self.num_frequencies * config.num_position_dimensions
        self.weight = nn.Parameter(torch.empty(config.num_attention_heads, num_waves, config.num_hidden_neurons))  # W

    def initial_values(self, config: Any) -> list[tuple[nn.Parameter, torch.Tensor]]:
        dimensions = config.num_position_dimensions
        # half of the waves' power is in each of sine and cosine
        std = config.initializer_range / coupling_row_sum(self.scale, dimensions)
        std = std / math.sqrt(self.num_frequencies * dimensions)
        return [*super().initial_values(config), (self.weight, _normal_like(self.weight, std))]

    def geometry(self, layout: Layout) -> Any:
        return layout.coupled_waves(self.num_frequencies, self.scale, self.dtype)  # r S, (1 or B, N, waves)

    def make(
        self, key: torch.Tensor, layout: Layout, geometry: Any = None, state: Any = None, shard: HeadShard | None = None
    ) -> tuple[torch.Tensor, Any]:
        waves = self.geometry(layout) if geometry is None else geometry
        weight, bias = of_heads(shard, self.weight, self.resting_bias)
        weight = upcast(weight)
        return without_shared_batch(waves[:, None].to(weight) @ weight + bias), None  # (1 or B, H, N, m)


@register_astrocyte_code("activity")
class ActivityAstrocyteCode(AstrocyteCode):
    """R = r' K W + b: each process integrates the activity that its neighbours' neurons see.

    On a line `forward` returns what R is made of, for passes that make it as they go.
    """

    has_state = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        shape = (config.num_attention_heads, config.num_hidden_neurons, config.num_hidden_neurons)
        self.weight = nn.Parameter(torch.empty(shape))  # W

    def initial_values(self, config: Any) -> list[tuple[nn.Parameter, torch.Tensor]]:
        return [*super().initial_values(config), (self.weight, torch.eye(self.weight.shape[-1]))]

    def geometry(self, layout: Layout) -> Any:
        return layout.neighbour_weights(self.scale, self.dtype)

    def forward(
        self, key: torch.Tensor, layout: Layout, geometry: Any = None, state: Any = None, shard: HeadShard | None = None
    ) -> CodeRecipe:
        weight, bias = of_heads(shard, self.weight, self.resting_bias)
        return layout.activity(upcast(key), self.scale, upcast(weight), upcast(bias), state, geometry)

    def make(
        self, key: torch.Tensor, layout: Layout, geometry: Any = None, state: Any = None, shard: HeadShard | None = None
    ) -> tuple[torch.Tensor, Any]:
        recipe = self(key, layout, geometry, state, shard)
        return recipe.materialize(upcast(key), layout.padding_mask, layout.causal, layout.document_ids)


@lru_cache
def coupling_row_sum(scale: float, dimensions: int) -> float:
    """What one process receives from a uniform astrocyte: the sum of exp(-scale * distance) over all others and itself.

    On the line this is coth(scale / 2); on a grid it is summed up to where it is below rounding, or 64 patches away.
    """
    if dimensions == 1:
        return 1 / math.tanh(scale / 2)
    reach = min(math.ceil(36 / scale), 64)
    steps = range(-reach, reach + 1)
    return math.fsum(math.exp(-scale * math.hypot(i, j)) for i in steps for j in steps)


def of_heads(shard: HeadShard | None, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The rows of parameters, `(heads, ...)`, that belong to a `HeadShard`; all of them for None."""
    return parameters if shard is None else tuple(map(shard.rows, parameters))


def _normal_like(parameter: torch.Tensor, std: float) -> torch.Tensor:
    return std * torch.randn_like(parameter)


def upcast(x: torch.Tensor) -> torch.Tensor:
    """`x` in float32 at least: sums run in it, whatever the dtype of their terms."""
    return x if x.dtype == torch.float64 else x.float()
