# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The arms: variants of attention in one skeleton, as fields of the configuration."""

from dataclasses import dataclass, replace

from astroformer_hf.configuration_astroformer import BEFORE_IT_EXISTED


@dataclass(frozen=True)
class Arm:
    """A variant of attention.

    Args:
        title (`str`): what it is, for tables.
        fields (`dict`): what it sets in the configuration. How an astrocyte code starts depends on the data: see
            `presets.Setting.start_of_code`.
        base (`str`, *optional*): which of `presets.Setting.forms` it starts from: what `fields` changes of it is what
            sets the arm apart.
        rate_of (`str`, *optional*): the arm whose learning rate it takes. Such an arm has no sweep of its own, few
            seeds, and only some tasks: see `presets.Setting.further_arms`.
    """

    title: str
    fields: dict
    base: str | None = None
    rate_of: str | None = None


NO_HEBBIAN = {"use_astrocyte_hebbian": False}
NO_PRESYNAPTIC = {"presynaptic_alpha": 1}

# In the order in which they are trained.
ARMS = {
    "softmax": Arm("softmax attention", {"attention_type": "softmax"}),
    "linear": Arm("linear attention: no astrocyte, α = 1", {"attention_type": "linear"}),
    "full": Arm("all three effects", {}, base="full"),
    "hebbian_activity": Arm(
        "linear + astrocyte Hebbian, code activity", {"astrocyte_code": "activity", **NO_PRESYNAPTIC}
    ),
    "presynaptic_0.75": Arm("linear + presynaptic α = 0.75", {**NO_HEBBIAN, "presynaptic_alpha": 0.75}),
    "hebbian_learned": Arm("linear + astrocyte Hebbian, code learned", {"astrocyte_code": "learned", **NO_PRESYNAPTIC}),
    "full_without_feedback": Arm("all three effects, without feedback", {"use_calcium_feedback": False}, base="full"),
    "hebbian_sinusoidal": Arm(
        "linear + astrocyte Hebbian, code sinusoidal", {"astrocyte_code": "sinusoidal", **NO_PRESYNAPTIC}
    ),
    "presynaptic_0.25": Arm("linear + presynaptic α = 0.25", {**NO_HEBBIAN, "presynaptic_alpha": 0.25}),
    "presynaptic_0.5": Arm("linear + presynaptic α = 0.5", {**NO_HEBBIAN, "presynaptic_alpha": 0.5}),
    "random_features": Arm(
        "fixed random features, the predecessor", {"feature_map": "favor", **NO_HEBBIAN, **NO_PRESYNAPTIC}
    ),
}

# What the paper does not have is off, whatever the defaults of the package are.
ARMS = {name: replace(arm, fields={**BEFORE_IT_EXISTED, **arm.fields}) for name, arm in ARMS.items()}

# --------------------------------------------------------------------------------------------------------------------
# The preset "switches"
# --------------------------------------------------------------------------------------------------------------------

# Every switch, off. Each arm of the preset names them all, so that its records mean the same whatever the defaults of
# the package become.
OFF = {
    "attention_type": "neuron_astrocyte",
    "use_astrocyte_hebbian": False,
    "presynaptic_alpha": 1,
    "use_calcium_feedback": True,
    "calcium_normalization": "mean",
    **BEFORE_IT_EXISTED,
}
SOFTMAX, LINEAR = {**OFF, "attention_type": "softmax"}, {**OFF, "attention_type": "linear"}
SYNAPSE = {"presynaptic_target": "synapse"}
ALL_SOURCES = {"calcium_sources": "all"}
CONVOLUTION = {"short_convolution": 4}


def with_code(code):
    """Linear attention and an astrocyte with this code."""
    return {**OFF, "use_astrocyte_hebbian": True, "astrocyte_code": code}


def leaky(attention, decay):
    """An attention whose synapses leak; how long they remember at first is in `presets.Setting.forms`."""
    return {**attention, "synaptic_decay": decay}


MAIN_SWITCH_ARMS = {
    "softmax": Arm("softmax attention", SOFTMAX),
    "best": Arm("neuron-astrocyte attention, best form", {}, base="best"),
    "linear": Arm("linear attention: no astrocyte, α = 1", LINEAR),
    "paper": Arm("neuron-astrocyte attention, the paper's form", {}, base="paper"),
    "softmax_decay": Arm("softmax attention with learned decay", leaky(SOFTMAX, "learned"), base="leaky"),
    "best_without_decay": Arm("best form, without decay", {"synaptic_decay": "none"}, base="best"),
    "best_without_synapse_target": Arm(
        "best form, α = 1", {"presynaptic_target": "response", "presynaptic_alpha": 1}, base="best"
    ),
    "best_without_calcium_sources": Arm(
        "best form, calcium of the neurons alone", {"calcium_sources": "neurons"}, base="best"
    ),
    "best_without_astrocyte": Arm(
        "best form, without H_astro", {"use_astrocyte_hebbian": False, "calcium_sources": "neurons"}, base="best"
    ),
    "best_without_feedback": Arm("best form, without feedback", {"use_calcium_feedback": False}, base="best"),
}


def further_arm(title, rate_of, fields, base=None):
    return Arm(title, fields, base, rate_of)


FURTHER_SWITCH_ARMS = {
    "softmax_convolution": further_arm("softmax, convolution of 4", "softmax", {**SOFTMAX, **CONVOLUTION}),
    "linear_convolution": further_arm("linear, convolution of 4", "linear", {**LINEAR, **CONVOLUTION}),
    "softmax_decay_gated": further_arm(
        "softmax with gated decay", "softmax_decay", leaky(SOFTMAX, "gated"), base="leaky"
    ),
    "linear_decay": further_arm("linear + learned decay", "linear", leaky(LINEAR, "learned"), base="leaky"),
    "linear_decay_gated": further_arm("linear + gated decay", "linear", leaky(LINEAR, "gated"), base="leaky"),
    **{
        f"code_{code}": further_arm(f"linear + astrocyte Hebbian, code {code}", "linear", with_code(code))
        for code in ("activity", "learned", "sinusoidal")
    },
    "code_activity_all_sources": further_arm(
        "linear + astrocyte Hebbian, code activity, calcium of all sources",
        "linear",
        {**with_code("activity"), **ALL_SOURCES},
    ),
    **{
        f"response_{alpha}": further_arm(
            f"linear + α = {alpha} in the response", "linear", {**OFF, "presynaptic_alpha": alpha}
        )
        for alpha in (0.25, 0.5, 0.75)
    },
    **{
        f"synapse_{alpha}": further_arm(
            f"linear + α = {alpha} at the synapse", "linear", {**OFF, "presynaptic_alpha": alpha, **SYNAPSE}
        )
        for alpha in (0.25, 0.5, 0.75)
    },
}
COVARIANCE = {"hebbian_rule": "covariance"}
# The covariance rule and its control; where attention is causal, the latter has no place for it in its cache.
COVARIANCE_ARMS = {
    "softmax_covariance": further_arm("softmax + covariance", "softmax", {**SOFTMAX, **COVARIANCE}),
    "linear_covariance": further_arm("linear + covariance", "linear", {**LINEAR, **COVARIANCE}),
    "best_covariance": further_arm("best form + covariance", "best", COVARIANCE, base="best"),
}
SWITCH_ARMS = {**MAIN_SWITCH_ARMS, **FURTHER_SWITCH_ARMS, **COVARIANCE_ARMS}

# --------------------------------------------------------------------------------------------------------------------
# The preset "long"
# --------------------------------------------------------------------------------------------------------------------

IN_SEGMENTS = {
    "num_memory_tokens": 8,
    "memory_retention": "none",
    "memory_backprop": "replay",
    "pooling": "mean",
}


def segments_arm(title, fields, rate_of="segments"):
    """The best form in segments, of the length that `presets.Setting.forms` says."""
    return Arm(f"best form in segments, {title}", {**IN_SEGMENTS, **fields}, "segments", rate_of)


# A mean over all tokens reads every segment, and the memory is what its tokens know of those before. Where the last
# token answers, all that it knows of other segments has gone through the memory.
SEGMENT_ARMS = {
    "segments_off": segments_arm("no memory", {"num_memory_tokens": 0}),
    "segments_ltp": segments_arm("retention by the share of all segments", {"memory_retention": "ltp"}),
    "segments_streaming": segments_arm("streaming retention", {"memory_retention": "streaming"}),
    "segments_full": segments_arm("all segments kept instead of replay", {"memory_backprop": "full"}),
    "segments_1": segments_arm("gradients through one memory", {"memory_backprop": 1}),
    "segments_last": segments_arm("the last token answers", {"pooling": "last"}),
    "segments_last_off": segments_arm("the last token answers, no memory", {"pooling": "last", "num_memory_tokens": 0}),
}
LONG_ARMS = {
    **{
        name: MAIN_SWITCH_ARMS[name]
        for name in ("softmax", "best", "linear", "paper", "softmax_decay", "best_without_decay")
    },
    **{
        name: replace(FURTHER_SWITCH_ARMS[name], rate_of=None)
        for name in ("softmax_convolution", "linear_convolution", "code_activity")
    },
    "segments": segments_arm("no retention, replay", {}, rate_of=None),
    **SEGMENT_ARMS,
}

ALL_ARMS = tuple({**ARMS, **SWITCH_ARMS, **LONG_ARMS})  # the names of all presets' arms
