# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The arms: variants of attention in one skeleton, as fields of the configuration."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """A variant of attention.

    Args:
        title (`str`): what it is, for tables.
        fields (`dict`): what it sets in the configuration. How an astrocyte code starts depends on the data: see
            `presets.Setting.start_of_code`.
        is_full (`bool`): whether code and alpha are those of the full arm, `presets.Setting.full`.
    """

    title: str
    fields: dict
    is_full: bool = False


NO_HEBBIAN = {"use_astrocyte_hebbian": False}
NO_PRESYNAPTIC = {"presynaptic_alpha": 1}

# In the order in which they are trained.
ARMS = {
    "softmax": Arm("softmax attention", {"attention_type": "softmax"}),
    "linear": Arm("linear attention: no astrocyte, α = 1", {"attention_type": "linear"}),
    "full": Arm("all three effects", {}, is_full=True),
    "hebbian_activity": Arm(
        "linear + astrocyte Hebbian, code activity", {"astrocyte_code": "activity", **NO_PRESYNAPTIC}
    ),
    "presynaptic_0.75": Arm("linear + presynaptic α = 0.75", {**NO_HEBBIAN, "presynaptic_alpha": 0.75}),
    "hebbian_learned": Arm("linear + astrocyte Hebbian, code learned", {"astrocyte_code": "learned", **NO_PRESYNAPTIC}),
    "full_without_feedback": Arm("all three effects, without feedback", {"use_calcium_feedback": False}, is_full=True),
    "hebbian_sinusoidal": Arm(
        "linear + astrocyte Hebbian, code sinusoidal", {"astrocyte_code": "sinusoidal", **NO_PRESYNAPTIC}
    ),
    "presynaptic_0.25": Arm("linear + presynaptic α = 0.25", {**NO_HEBBIAN, "presynaptic_alpha": 0.25}),
    "presynaptic_0.5": Arm("linear + presynaptic α = 0.5", {**NO_HEBBIAN, "presynaptic_alpha": 0.5}),
    "random_features": Arm(
        "fixed random features, the predecessor", {"feature_map": "favor", **NO_HEBBIAN, **NO_PRESYNAPTIC}
    ),
}
