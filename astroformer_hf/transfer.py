# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""How swapped models learn from the softmax attention that they replace, on text or images without labels.

Two stages. `transfer_attention`: the synapses of each layer learn to give what softmax attention gives for the same
queries, keys and values, all layers in one pass over the data; nothing else changes. `DistillationTrainer`: the whole
model learns to give what the original gives.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments, default_data_collator

from .swapped_attention import ATTENTION_ERRORS, AttentionSwap, attention_layers, relative_error


TRANSFER_ARGUMENTS: dict[str, Any] = {
    "output_dir": "outputs/transfer",
    "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
    "learning_rate": 3e-2,  # 1e-2 is too slow; 3e-1 diverges
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.0,
    "logging_steps": 10,
    "save_strategy": "no",
    "report_to": "none",
}


@contextlib.contextmanager
def attention_errors() -> Iterator[list[torch.Tensor]]:
    """Within it, the layers of swapped models give softmax attention, and what their synapses would give is compared.

    Yields:
        A list to which every swapped layer adds its error, in order: the squared difference of the two outputs over
        the squared output of softmax attention, summed over all real tokens.
    """
    errors: list[torch.Tensor] = []
    token = ATTENTION_ERRORS.set(errors)
    try:
        yield errors
    finally:
        ATTENTION_ERRORS.reset(token)


@contextlib.contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Within it, a model answers as in use: what it should give, the original gives without dropout."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class TransferTrainer(Trainer):
    """Trains the synapses of a swapped model, layer by layer, towards the softmax attention that they replace."""

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".synapses." in name)
        super().__init__(model, *args, **kwargs)
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        with attention_errors() as errors, without_dropout(model):
            outputs = model(**{name: x for name, x in inputs.items() if name != "labels"})
        loss = torch.stack(errors).mean()
        return (loss, outputs) if return_outputs else loss


@dataclasses.dataclass(frozen=True)
class TransferReport:
    """What a transfer achieved.

    Attributes:
        layers: the numbers of the swapped layers.
        before, after: of each, the relative squared error (see `attention_errors`) on the validation inputs.
        steps, seconds: of the training.
    """

    layers: tuple[int, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    steps: int
    seconds: float

    def easiest(self, number: int) -> tuple[int, ...]:
        """The layers with the smallest error."""
        if not 0 <= number <= len(self.layers):
            raise ValueError(f"number must be from 0 to {len(self.layers)}, got {number}")
        ranked = sorted(zip(self.after, self.layers, strict=True))
        return tuple(sorted(layer for _, layer in ranked[:number]))


@torch.no_grad()
def measure_attention_errors(
    model: PreTrainedModel, inputs: Dataset, data_collator: Any = default_data_collator, batch_size: int = 16
) -> tuple[float, ...]:
    """The mean error of each swapped layer over a data set, see `attention_errors`."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    found = []
    for batch in DataLoader(inputs, batch_size=batch_size, collate_fn=data_collator):
        with attention_errors() as errors:
            model(**{name: x.to(device) for name, x in batch.items() if name != "labels"})
        found.append(torch.stack(errors).double().cpu())
    model.train(was_training)
    return tuple(torch.stack(found).mean(0).tolist())


def transfer_attention(
    swapped: PreTrainedModel,
    teacher: PreTrainedModel | None,
    inputs: Dataset,
    *,
    validation_inputs: Dataset | None = None,
    data_collator: Any = None,
    resume_from_checkpoint: str | bool | None = None,
    **training_arguments: Any,
) -> TransferReport:
    """Has the synapses of a swapped model learn what the softmax attention gives that they replaced.

    The softmax attention is computed from the model's own queries, keys and values, which are those of the original: no
    second model runs.

    Args:
        swapped (`PreTrainedModel`): the model, as of `swap_attention`. Its synapses are trained; what else can be
            trained can be again afterwards.
        teacher (`PreTrainedModel`, *optional*): the original, to be sure that it is: its weights are compared.
        inputs (`Dataset`): what the model is given, without labels: examples with `input_ids` and perhaps
            `attention_mask`, or `pixel_values`.
        validation_inputs (`Dataset`, *optional*): on which the errors are measured; the first 64 of `inputs` by
            default.
        data_collator (function, *optional*): makes a batch of examples; by default the library's, which takes those of
            one length.
        resume_from_checkpoint (`str` or `bool`, *optional*): as of `Trainer.train`, where checkpoints are saved.
        training_arguments: fields of `TrainingArguments` other than those of `TRANSFER_ARGUMENTS`.

    Returns:
        `TransferReport`.

    Raises:
        ValueError: the model is not swapped, or `teacher` is not the original.
    """
    swap = getattr(swapped.config, "attention_swap", None)
    if swap is None:
        raise ValueError(f"the attention of this {type(swapped).__name__} is not swapped: call swap_attention first")
    if teacher is not None:
        _check_original(swapped, teacher)
    if validation_inputs is None:
        validation_inputs = torch.utils.data.Subset(inputs, range(min(64, len(inputs))))  # type: ignore[arg-type]
    data_collator = data_collator or default_data_collator
    arguments = TrainingArguments(**{**TRANSFER_ARGUMENTS, **training_arguments})
    trainable = {name: parameter.requires_grad for name, parameter in swapped.named_parameters()}
    batch_size = arguments.per_device_eval_batch_size
    before = measure_attention_errors(swapped, validation_inputs, data_collator, batch_size)
    start = time.perf_counter()
    trainer = TransferTrainer(swapped, arguments, train_dataset=inputs, data_collator=data_collator)
    try:
        trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    finally:
        for name, parameter in swapped.named_parameters():
            parameter.requires_grad_(trainable[name])
    seconds = time.perf_counter() - start
    after = measure_attention_errors(swapped, validation_inputs, data_collator, batch_size)
    if not all(map(math.isfinite, after)):
        raise ValueError(f"the transfer diverged at learning_rate={arguments.learning_rate}: try a smaller one")
    layers = AttentionSwap(**swap).layers
    return TransferReport(layers, before, after, trainer.state.global_step, round(seconds, 1))


def _check_original(swapped: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raises a ValueError if a model has other weights than the one that was swapped."""
    weights = teacher.state_dict()
    differing = [
        name
        for name, x in swapped.state_dict().items()
        if ".synapses." not in name and (name not in weights or not torch.equal(weights[name].to(x), x))
    ]
    if differing:
        raise ValueError(
            f"teacher is not the original of swapped: {len(differing)} weights differ, the first is {differing[0]!r}. "
            "Where the model was trained since, use DistillationTrainer"
        )


def keep_swapped(model: PreTrainedModel, layers: tuple[int, ...]) -> PreTrainedModel:
    """Gives the other layers of a swapped model their softmax attention back, in place.

    Args:
        model (`PreTrainedModel`): a swapped model.
        layers (tuple of `int`): those that stay swapped, as of `TransferReport.easiest`.
    """
    found: list[Any] = attention_layers(model)
    swap = AttentionSwap(**model.config.attention_swap)
    unknown = set(layers) - set(swap.layers)
    if unknown:
        raise ValueError(f"layers {sorted(unknown)} are not swapped; those that are: {swap.layers}")
    swap = dataclasses.replace(swap, layers=tuple(sorted(layers)))
    for i, module in enumerate(found):
        if i in layers:
            module.synapses.swap = swap
        elif getattr(module, "synapses", None) is not None:
            del module.synapses
    model.config.attention_swap = dataclasses.asdict(swap)
    return model


class DistillationTrainer(Trainer):
    """Trains a swapped model towards the outputs of the original.

    The loss is the mean over the layers of the squared differences of their hidden states, over the squared hidden
    states of the original; and, where both give logits, the divergence of the answers, per token or per example, see
    `divergence`. Padding counts in neither. There is no dropout, and no gradient checkpointing, which needs it.

    Args:
        teacher (`PreTrainedModel`): the original.
        hidden_weight, logits_weight (`float`): of the two parts.
        synapses_learning_rate (`float`, *optional*): of the synapses, which have learned less; that of all by default.
    """

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel,
        hidden_weight: float = 1.0,
        logits_weight: float = 1.0,
        synapses_learning_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.synapses_learning_rate = synapses_learning_rate
        self.teacher = teacher.eval().requires_grad_(False).to(self.args.device)
        self.hidden_weight, self.logits_weight = hidden_weight, logits_weight
        self.model_accepts_loss_kwargs = False
        self.can_return_loss = True  # without labels, see `prediction_step`

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.synapses_learning_rate is not None:
            model: Any = self.model
            synapses = {id(p) for name, p in model.named_parameters() if ".synapses." in name}
            for group in list(optimizer.param_groups):
                own = [p for p in group["params"] if id(p) in synapses]
                group["params"] = [p for p in group["params"] if id(p) not in synapses]
                if own:
                    optimizer.add_param_group({**group, "params": own, "lr": self.synapses_learning_rate})
        return optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = {name: x for name, x in inputs.items() if name != "labels"}
        with torch.no_grad():
            expected = self.teacher(**inputs, output_hidden_states=True)
        with without_dropout(model):
            outputs = model(**inputs, output_hidden_states=True)
        real = inputs.get("attention_mask")
        real = None if real is None else real.flatten(0, -2)  # of multiple choice, `(batch, choices, length)`
        loss = (
            self.hidden_weight
            * torch.stack(
                [
                    relative_error(found, wanted, real if real is not None and real.shape == found.shape[:2] else None)
                    for found, wanted in zip(outputs.hidden_states[1:], expected.hidden_states[1:], strict=True)
                ]
            ).mean()
        )
        if self.logits_weight:
            problem_type = getattr(self.teacher.config, "problem_type", None)
            for name in ("logits", "start_logits", "end_logits"):
                if name in outputs:
                    found, wanted = outputs[name], expected[name]
                    if name != "logits" and real is not None:  # an answer that begins or ends at a token
                        found, wanted = (x.masked_fill(real == 0, torch.finfo(x.dtype).min) for x in (found, wanted))
                    loss = loss + self.logits_weight * divergence(found, wanted, real, problem_type)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As of the library; the loss needs no labels."""
        label_names = self.label_names
        if not all(name in inputs for name in label_names):
            self.label_names = []
        try:
            return super().prediction_step(model, inputs, *args, **kwargs)
        finally:
            self.label_names = label_names


def divergence(
    found: torch.Tensor, wanted: torch.Tensor, real: torch.Tensor | None, problem_type: str | None = None
) -> torch.Tensor:
    """The mean Kullback-Leibler divergence of answers by their logits.

    Args:
        found, wanted (`torch.Tensor`): `(batch, classes)` or `(batch, length, classes)`.
        real (`torch.Tensor`, *optional*): `(batch, length)`, 0 at padding.
        problem_type (`str`, *optional*): as of the library's configurations. Of one logit, and for "regression", what
            diverges are normal distributions of variance 1 around the numbers; for "multi_label_classification" the
            answers yes and no of each label, by themselves; else the classes, of which one is right.
    """
    found, wanted = found.float(), wanted.float()
    logsigmoid = nn.functional.logsigmoid
    if problem_type == "regression" or wanted.shape[-1] == 1:
        per_answer = (found - wanted).square().sum(-1) / 2
    elif problem_type == "multi_label_classification":
        yes, no = (logsigmoid(sign * wanted) - logsigmoid(sign * found) for sign in (1, -1))
        per_answer = (wanted.sigmoid() * yes + (-wanted).sigmoid() * no).sum(-1)
    else:
        per_answer = nn.functional.kl_div(
            found.log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
    if real is None or real.shape != per_answer.shape:
        return per_answer.mean()
    return (per_answer * real).sum() / real.sum().clamp(min=1)


__all__ = [
    "DistillationTrainer",
    "TransferReport",
    "TransferTrainer",
    "attention_errors",
    "keep_swapped",
    "measure_attention_errors",
    "transfer_attention",
]
