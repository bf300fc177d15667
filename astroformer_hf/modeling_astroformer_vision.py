# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Astroformer image models: the blocks of the text models over the patches of an image."""

from typing import Any, cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_astroformer_vision import AstroformerVisionConfig, pair
from .forward_keywords import check_library_keywords, checks_keywords
from .head_shards import refuse_sharded_sequence
from .losses import pool, sequence_classification_loss
from .model_outputs import AstroformerBaseModelOutput, AstroformerImageClassifierOutput
from .modeling_astroformer import AstroformerEncoder, AstroformerPreTrainedModel, classifier_dropout, recorded
from .segments import check_memory, read_in_segments, refuse_recording, texts_of
from .token_layout import GridLayout, grid_layout, sinusoidal_features
from .traced_values import hold_shape


class AstroformerVisionEmbeddings(nn.Module):
    """Patches, linearly projected, and the sines and cosines of their rows and columns: `(batch, length, hidden_size)`.

    Patches stand in rows from the top left, after the class token if there is one. Positions enter with the power that
    an untrained patch has, up to the contrast of the image.
    """

    def __init__(self, config: AstroformerVisionConfig) -> None:
        super().__init__()
        self.patch_size = pair(config.patch_size)
        self.image_size = pair(config.image_size)
        self.own_grid = config.grid
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, self.patch_size, stride=self.patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size)) if config.has_class_token else None
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        patch_values = config.num_channels * self.patch_size[0] * self.patch_size[1]
        # a wave's mean square is 1/2; a sum over the values of a patch, each of about unit variance
        self.position_scale = config.initializer_range * (2 * patch_values) ** 0.5

    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False
    ) -> tuple[torch.Tensor, GridLayout]:
        """The embeddings, and the `GridLayout` of the patches; arguments as of `AstroformerVisionModel.forward`."""
        if pixel_values.dim() != 4 or pixel_values.shape[1] != self.projection.in_channels:
            raise ValueError(
                f"pixel_values must have shape (batch, num_channels={self.projection.in_channels}, height, width), got "
                f"{tuple(pixel_values.shape)}"
            )
        pixel_values = hold_shape(pixel_values, "pixel_values")
        size = tuple(pixel_values.shape[-2:])
        if size != self.image_size and not interpolate_pos_encoding:
            raise ValueError(
                f"pixel_values must be of the image_size {self.image_size}, got {size}; give "
                "interpolate_pos_encoding=True for images of another size"
            )
        if any(s % p for s, p in zip(size, self.patch_size, strict=True)):
            raise ValueError(f"pixel_values must have a size that is a multiple of {self.patch_size}, got {size}")
        patches = self.projection(pixel_values.to(self.projection.weight.dtype))  # (B, hidden_size, rows, columns)
        layout = grid_layout(patches.shape[-2:], self.own_grid, int(self.cls_token is not None), patches.device)
        embeddings = patches.flatten(2).transpose(1, 2)
        hidden_size = embeddings.shape[-1]
        num_frequencies = -(-hidden_size // 4)
        axes = [sinusoidal_features(axis[None], num_frequencies, torch.float32) for axis in layout.coordinates.T]
        waves = torch.cat(axes, dim=-1)[..., :hidden_size]
        embeddings = embeddings + (self.position_scale * waves).to(embeddings.dtype)
        if self.cls_token is not None:
            embeddings = torch.cat((self.cls_token.expand(embeddings.shape[0], -1, -1), embeddings), dim=1)
        return self.dropout(self.norm(embeddings)), layout


class AstroformerVisionPreTrainedModel(AstroformerPreTrainedModel):
    """Initialisation, loading and saving that all Astroformer image models share."""

    config: AstroformerVisionConfig  # type: ignore[assignment]  # not a text model's
    base_model_prefix = "astroformer_vision"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    _no_split_modules = ["AstroformerVisionEmbeddings", "AstroformerLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AstroformerVisionEmbeddings) and module.cls_token is not None:
            init.normal_(module.cls_token, std=self.config.initializer_range)


class AstroformerVisionModel(AstroformerVisionPreTrainedModel, AstroformerEncoder):
    """The bare encoder: from images to the hidden states of their patches."""

    def __init__(self, config: AstroformerVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = AstroformerVisionEmbeddings(config)
        self.build_layers(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.projection

    @checks_keywords()
    @capture_outputs
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        memory: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | AstroformerBaseModelOutput:
        """Encodes a batch of images.

        Args:
            pixel_values (`torch.Tensor`): `(batch, num_channels, height, width)`, normalised by the image processor.
            interpolate_pos_encoding (`bool`, defaults to `False`): whether to take images of another size than
                `config.image_size`: their patches are laid out over the same extent.
            memory (`torch.Tensor`, *optional*): as of `AstroformerModel.forward`, where `config.segment_length` is set
                and the patches are read as a sequence, row after row.
            output_hidden_states, output_attentions, return_dict (`bool`, *optional*): as in every library model.

        Returns:
            `BaseModelOutput` with `last_hidden_state` of shape `(batch, length, hidden_size)`: one row per
            patch, in rows from the top left, after that of the class token with `pooling="cls"`.

        Raises:
            ValueError: for inputs that do not fit; the message names the argument.
        """
        if pixel_values is None:
            raise ValueError("give pixel_values")
        refuse_sharded_sequence(pixel_values=pixel_values)
        check_library_keywords(kwargs, self.config)
        refuse_recording(kwargs, self.config)
        embeddings, layout = self.embeddings(pixel_values, interpolate_pos_encoding)
        check_memory(memory, self.config, embeddings.shape[0])
        if self.config.segment_length is not None:
            texts = texts_of(embeddings)
            hidden_states, memory = read_in_segments(self, lambda pick, _: pick(embeddings), texts, memory)
            return AstroformerBaseModelOutput(last_hidden_state=hidden_states, memory=memory)
        hidden_states = self.encode(embeddings, layout, kwargs.get("output_attentions"))
        return AstroformerBaseModelOutput(last_hidden_state=hidden_states)


class AstroformerForImageClassification(AstroformerVisionPreTrainedModel):
    """Encoder, pooling and a linear classifier, for single-label and multi-label classification and for regression."""

    def __init__(self, config: AstroformerVisionConfig) -> None:
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.astroformer_vision = AstroformerVisionModel(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @checks_keywords(beside=AstroformerVisionModel.forward)
    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> tuple | AstroformerImageClassifierOutput:
        """Classifies a batch of images.

        Args:
            pixel_values, interpolate_pos_encoding: see `AstroformerVisionModel.forward`.
            labels, num_items_in_batch: see `AstroformerForSequenceClassification.forward`.

        Returns:
            `ImageClassifierOutput` with `logits` of shape `(batch, num_labels)` and `loss` if there are
            labels.

        Raises:
            ValueError: for inputs or labels that do not fit; the message names the argument.
        """
        outputs = self.astroformer_vision(pixel_values, interpolate_pos_encoding, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(pool(outputs.last_hidden_state, None, self.config.pooling)))
        loss = None
        if labels is not None:
            loss = sequence_classification_loss(logits, labels, self.config, num_items_in_batch)
        return AstroformerImageClassifierOutput(loss=loss, logits=logits, **recorded(outputs))
