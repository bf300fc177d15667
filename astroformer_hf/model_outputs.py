# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The library's outputs, each with the memory of models that read in segments: `(batch, num_memory_tokens,
hidden_size)`, after the last token of each text; None of other models."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    ImageClassifierOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)


@dataclass
class AstroformerBaseModelOutput(BaseModelOutput):
    memory: torch.Tensor | None = None


@dataclass
class AstroformerBaseModelOutputWithPast(BaseModelOutputWithPast):
    memory: torch.Tensor | None = None


@dataclass
class AstroformerCausalLMOutputWithPast(CausalLMOutputWithPast):
    memory: torch.Tensor | None = None


@dataclass
class AstroformerImageClassifierOutput(ImageClassifierOutput):
    memory: torch.Tensor | None = None


@dataclass
class AstroformerMaskedLMOutput(MaskedLMOutput):
    memory: torch.Tensor | None = None


@dataclass
class AstroformerMultipleChoiceModelOutput(MultipleChoiceModelOutput):
    memory: torch.Tensor | None = None


@dataclass
class AstroformerQuestionAnsweringModelOutput(QuestionAnsweringModelOutput):
    memory: torch.Tensor | None = None


@dataclass
class AstroformerSequenceClassifierOutput(SequenceClassifierOutput):
    memory: torch.Tensor | None = None


@dataclass
class AstroformerTokenClassifierOutput(TokenClassifierOutput):
    memory: torch.Tensor | None = None
