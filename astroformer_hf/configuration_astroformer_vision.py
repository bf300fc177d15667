# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the Astroformer image models."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_astroformer import AstroformerBaseConfig
from .model_classes import IMAGE_MODELS, auto_map


MOST_PIXELS = 10**5  # in height or width


@strict
class AstroformerVisionConfig(AstroformerBaseConfig):
    r"""Configuration of an Astroformer image model. Names are ViT's where ViT has one.

    Args:
        image_size (`int` or a pair of them, defaults to 224): height and width of the images, in pixels. Others can be
            given with `interpolate_pos_encoding=True`.
        patch_size (`int` or a pair of them, defaults to 16): height and width of a patch, in pixels; divides
            `image_size`.
        num_channels (`int`, defaults to 3): channels of the images.
        hidden_dropout_prob, attention_probs_dropout_prob (`float`, default to 0.0): as for text.
        pooling (`str`, defaults to `"mean"`): how an image becomes one vector, "mean" over its patches or "cls", a
            class token before them.
        initializer_range, layer_norm_eps, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size,
            hidden_act, classifier_dropout, attention_type, feature_map, num_hidden_neurons, num_random_features,
            presynaptic_alpha, use_astrocyte_hebbian, use_calcium_feedback, astrocyte_scale, astrocyte_code,
            astrocyte_resting_activity, calcium_normalization, synaptic_decay, initial_memory_spans, presynaptic_target,
            calcium_sources, hebbian_rule, segment_length, num_memory_tokens, memory_retention, memory_backprop: as of
            `AstroformerConfig`, but `astrocyte_code` defaults to `"sinusoidal"`, `astrocyte_scale` and
            `astrocyte_resting_activity` to 1.0, `initial_memory_spans` to `(1.0, 32.0)`, and `synaptic_decay`, which
            can be "gated" in segments alone, to `"learned"` in the arm "neuron_astrocyte". The unit of distance for
            `astrocyte_scale` is a patch, and so is that of memory spans, which are counted along rows plus along
            columns. With synapses that leak, time and memory grow with the square of the number of patches. In
            segments, patches are a sequence, row after row, and all this is as for text.

    Raises:
        ValueError: a value out of range, or a keyword that looks like a misspelt field.
        StrictDataclassFieldValidationError: a value of the wrong type.
    """

    model_type = "astroformer_vision"
    default_decay = "learned"
    auto_map_of_class = auto_map("astroformer_vision", "AstroformerVisionConfig", IMAGE_MODELS)

    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    # what trains best on a grid
    astrocyte_code: str = "sinusoidal"
    astrocyte_scale: float | int = 1.0
    astrocyte_resting_activity: float | int = 1.0
    initial_memory_spans: list[float | int] | tuple[float | int, ...] = (1.0, 32.0)
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3

    @property
    def num_position_dimensions(self) -> int:
        """Of the places of patches: two on the grid; one where they are read in segments, as a sequence."""
        return 2 if self.segment_length is None else 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in an image of `image_size`."""
        (height, width), (patch_height, patch_width) = pair(self.image_size), pair(self.patch_size)
        return height // patch_height, width // patch_width

    @property
    def has_class_token(self) -> bool:
        return self.pooling == "cls"

    @property
    def num_table_positions(self) -> int:
        """Rows of the "learned" astrocyte code."""
        if self.longest_sequence is not None:
            return self.longest_sequence
        rows, columns = self.grid
        return rows * columns + self.has_class_token

    def validate_architecture(self) -> None:
        """Checks every field and the fields against each other; the library calls it again before saving."""
        if self.pooling not in ("mean", "cls"):
            raise ValueError(f"pooling must be one of 'mean', 'cls', got {self.pooling!r}")
        super().validate_architecture()
        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            if len(pair(value)) != 2 or not 0 < min(pair(value)) <= max(pair(value)) <= MOST_PIXELS:
                raise ValueError(f"{name} must be one or two numbers from 1 to {MOST_PIXELS:,} pixels, got {value!r}")
        if any(size % patch for size, patch in zip(pair(self.image_size), pair(self.patch_size), strict=True)):
            raise ValueError(
                f"image_size must be a multiple of patch_size, got image_size {self.image_size!r} and patch_size "
                f"{self.patch_size!r}"
            )
        if self.synaptic_decay == "gated" and self.segment_length is None:
            raise ValueError(
                "synaptic_decay must be 'none' or 'learned' for images, whose patches have no order, got 'gated'; only "
                "where they are read in segments (segment_length) they have one"
            )
        if self.is_decoder:
            raise ValueError("is_decoder must be False for images, got True")
        if self.segment_length is not None and self.has_class_token:
            raise ValueError(
                "pooling must be 'mean' with segment_length, because a class token would see the first segment alone, "
                "got 'cls'"
            )


def pair(size: Any) -> tuple[int, int]:
    """Height and width from a number that stands for both, or from the two."""
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


__all__ = ["AstroformerVisionConfig"]
