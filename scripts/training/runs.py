# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""One training run, from a ready `Trainer` to the saved model and its `results.json`."""

from pathlib import Path

import torch
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import SaveStrategy, SchedulerType

from training.data import some_of
from training.files import write_json
from training.half_precision import warn_of_slow_bfloat16
from training.provenance import hardware, peak_memory_bytes, versions
from training.resuming import EpochOrder, KeptSampler, Stopwatch, check_batch_size, finished_state
from training.run_records import learning_curve, quality, title
from training.short_convolution import load_weights


LOWER_IS_BETTER = ("loss", "mse", "perplexity")  # of the metrics that a best checkpoint is chosen by


class ExactTrainer(Trainer):
    """A `Trainer` whose evaluation loss is the mean over all labels.

    The library's is a mean of the means of batches, some of which hold more labels than others; and where several
    processes evaluate, the last batches are filled up with examples that were counted before. And a run that goes on in
    the middle of an epoch takes the examples in the order in which it would have without the interruption.
    """

    is_causal = False  # whether a token's label is the next token
    _losses: list

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.order = EpochOrder()
        self.add_callback(self.order)

    def _get_train_sampler(self, *args, **kwargs):
        sampler = super()._get_train_sampler(*args, **kwargs)
        # of the others, the orders come from the number of the epoch
        return KeptSampler(sampler, self.order) if isinstance(sampler, LengthGroupedSampler) else sampler

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        loss, logits, labels = super().prediction_step(model, inputs, False, ignore_keys)
        if loss is not None:
            losses = losses_of_examples(logits, labels, self.model.config, self.is_causal)
            self._losses.append(self.accelerator.gather_for_metrics(losses))  # which leaves out what was filled up
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    def evaluation_loop(self, *args, **kwargs):
        self._losses = []
        output = super().evaluation_loop(*args, **kwargs)
        if self._losses:
            loss, number = torch.cat([losses.double().cpu() for losses in self._losses]).sum(0).tolist()
            (name,) = [name for name in output.metrics if name.endswith("_loss")]
            output.metrics[name] = loss / number
        return output


def losses_of_examples(logits, labels, config, is_causal=False):
    """The summed loss of each example and the number of its labels: `(batch, 2)`."""
    logits, problem_type = logits.float(), getattr(config, "problem_type", None)
    if problem_type == "regression":
        each = (logits - labels.float().view_as(logits)).square()
        counted = torch.ones_like(each)
    elif problem_type == "multi_label_classification":
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
        counted = torch.ones_like(each)
    else:
        if is_causal:
            logits, labels = logits[:, :-1], labels[:, 1:]
        each = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
        each, counted = each.view(labels.shape), (labels != -100).float()
    return torch.stack((each.reshape(len(each), -1).sum(-1), counted.reshape(len(each), -1).sum(-1)), dim=-1)


def train(trainer, resume_from, results, record, *, command, test=None, max_curve_samples=None):
    """Trains, evaluates the best checkpoint (or the last, without --load_best_model_at_end), saves it, and lets
    `record` write what a run leaves beside its weights.

    Args:
        trainer (`Trainer`): ready to train.
        resume_from (`str`, *optional*): a checkpoint to go on from.
        results (`dict`): what is known of the run beforehand; metrics, times, versions and so on are added to it.
        record (function): takes the results and the output folder; runs on the main process only, before
            `results.json`, the mark of a run's end, is written.
        command (`str`): what repeats the run, for its record (see `provenance.command`).
        test (`tuple`, *optional*): name and examples of a further split to measure the model on at the end.
        max_curve_samples (`int`, *optional*): how many of the validation examples are measured on along the way, which
            a best checkpoint is chosen by; the run ends with all of them.

    Returns:
        The metrics on the validation split, by their plain names.
    """
    args, parameters = trainer.args, trainer.model.num_parameters()
    validation = trainer.eval_dataset
    trainer.eval_dataset = some_of(validation, max_curve_samples)
    batch_size = trainer.get_total_train_batch_size(args)
    stopwatch = Stopwatch(bool(resume_from), batch_size)
    if args.bf16 and args.device.type == "cpu":
        warn_of_slow_bfloat16()
    if resume_from:
        check_batch_size(resume_from, batch_size, args.world_size)
        if trainer.is_world_process_zero():
            print(f"Continuing from {resume_from}")
    best_by = args.metric_for_best_model
    args.greater_is_better = best_by.removeprefix("eval_") not in LOWER_IS_BETTER
    trainer.add_callback(stopwatch)
    finished = finished_state(resume_from, args)
    if finished is None:
        needs_best = args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST
        if not needs_best and args.lr_scheduler_type != SchedulerType.REDUCE_ON_PLATEAU:
            args.metric_for_best_model = (
                None  # or the best checkpoint is kept, at --save_total_limit 1 instead of the last
            )
        trainer.train(resume_from_checkpoint=resume_from)
        args.metric_for_best_model = best_by
        seconds, processor_seconds = stopwatch.seconds, stopwatch.processor_seconds
    else:  # killed after its last step: `Trainer` would take one step more
        best = finished.best_model_checkpoint if args.load_best_model_at_end else None
        if hasattr(trainer.model.config, "short_convolution"):
            load_weights(trainer.model, best or resume_from)
        else:
            weights = type(trainer.model).from_pretrained(best or resume_from)
            trainer.model.load_state_dict(weights.state_dict())
        trainer.state = finished
        taken = finished.stateful_callbacks["Stopwatch"]["attributes"]
        seconds, processor_seconds = taken["before"], taken.get("processor_before", taken["before"])
    curve = learning_curve(trainer.state.log_history)
    metrics = quality(trainer.evaluate(validation))
    if test is not None:
        test_name, examples = test
        results = {
            **results,
            "test_split": test_name,
            "test_metrics": quality(trainer.evaluate(examples, metric_key_prefix="test"), "test_"),
            "test_samples": len(examples),
        }
    if trainer.is_fsdp_enabled:  # one file, as of a single process
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()
    if trainer.is_world_process_zero():
        config = trainer.model.config
        results = {
            "task": results["task"],
            "dataset": results["dataset"],
            "split": results["split"],
            "arm": getattr(config, "attention_type", config._attn_implementation),
            "seed": args.seed,
            "metrics": metrics,
            "learning_curve": curve,
            "parameters": parameters,
            **results,
            "checkpoint": "best" if args.load_best_model_at_end else "last",
            "learning_rate": args.learning_rate,
            "world_size": args.world_size,
            "effective_batch_size": batch_size,
            "steps": trainer.state.max_steps,
            "train_samples": len(trainer.train_dataset),
            "eval_samples": len(validation),
            **({} if trainer.eval_dataset is validation else {"curve_samples": len(trainer.eval_dataset)}),
            "seconds": round(seconds, 1),
            # of all threads: what else the machine did meanwhile does not count; but a GPU's work does not either
            **({"processor_seconds": round(processor_seconds, 1)} if args.device.type == "cpu" else {}),
            "peak_memory_bytes": peak_memory_bytes(),
            "resumed": bool(resume_from),
            "command": command,
            "versions": versions(),
            "hardware": hardware(),
            "config": config.to_diff_dict(),
        }
        if not (hasattr(config, "attention_type") or hasattr(config, "attention_swap")):  # whose checkpoint says it
            results["attn_implementation"] = config._attn_implementation
        output_dir = Path(args.output_dir)
        record(results, output_dir)
        write_json(output_dir / "results.json", results)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"{title(results)}: {shown}\nModel, results.json, learning_curve.png and README.md are in {output_dir}")
    return metrics
