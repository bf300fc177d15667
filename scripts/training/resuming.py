# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Going on with a run that was killed."""

import base64
import dataclasses
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import Sampler
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from training.files import hold, read_json, write_json


RUN_OPTIONS = "run_options.json"  # in a run's folder: what it was begun with
ADVICE = "give the same to go on with it, name another --output_dir, or remove it"
# The arguments of `Trainer` that change what is learned; batches are checked on their own, see `check_batch_size`.
LEARNING_OPTIONS = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "max_grad_norm"),
    *("num_train_epochs", "max_steps", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("seed", "data_seed", "bf16", "fp16", "label_smoothing_factor", "train_sampling_strategy", "group_by_length"),
)
# What says where the data lie, of which `options_of_run` compares the contents, or changes nothing that is learned.
PLACES = (
    *("dataset_name", "dataset_config_name", "dataset_dir", "max_curve_samples", "num_sample_tokens"),
    "trust_remote_code",
)


def once(training_args, make):
    """What `make()` returns, made by one process and given to the others, so that all have the same.

    Args:
        training_args (`TrainingArguments`): of the run.
        make (function): returns what can be pickled.
    """
    if training_args.world_size == 1:
        return make()
    made = [make() if training_args.process_index == 0 else None]
    return broadcast_object_list(made)[0]


def checkpoint_to_resume(output_dir):
    """The newest checkpoint in `output_dir` that was written to its end, or None."""
    if not os.path.isdir(output_dir):
        return None
    for path in Path(output_dir).glob("checkpoint-*"):
        if not (path / "trainer_state.json").exists():  # the file that Trainer writes last; a killed run may lack it
            incomplete = path.with_name(f"incomplete-{path.name}")
            shutil.rmtree(incomplete, ignore_errors=True)  # of an earlier time that it was killed there
            path.rename(incomplete)
    return get_last_checkpoint(output_dir)


def options_of_run(model_args, data_args, training_args, splits=None):
    """What a run is begun with, as JSON keeps it: options by their names, and what the data are like.

    Args:
        model_args, data_args, training_args: the three dataclasses of a training script.
        splits (`dict`, *optional*): by name, columns of the data that tell them from others.
    """
    given = {**dataclasses.asdict(model_args), **dataclasses.asdict(data_args)}
    given |= {name: getattr(training_args, name) for name in LEARNING_OPTIONS if hasattr(training_args, name)}
    found = {"options": {name: value for name, value in given.items() if name not in PLACES}}
    found["data"] = {name: digest_of(columns) for name, columns in (splits or {}).items()}
    return json.loads(json.dumps(found, default=str))


def digest_of(columns):
    """A digest of what is in columns of data, each of numbers, strings or lists."""
    digest = hashlib.sha256()
    for column in columns:
        for value in column:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:16]


def resume_from(training_args, options):
    """The checkpoint that a run goes on from: the one asked for, or the newest in its output folder, or None.

    Args:
        training_args (`TrainingArguments`): of the run.
        options (`dict`): of `options_of_run`, which is written into the folder.

    Raises:
        ValueError: the folder holds a run that was begun otherwise, and no checkpoint was asked for by name; or
            another process trains in it.
    """

    def find():
        folder = Path(training_args.output_dir)
        hold(folder)
        checkpoint = training_args.resume_from_checkpoint or checkpoint_to_resume(folder)
        is_begun = checkpoint or (folder / "results.json").exists()
        if is_begun and (folder / RUN_OPTIONS).exists() and not training_args.resume_from_checkpoint:
            check_same_run(folder, read_json(folder / RUN_OPTIONS), options)
        write_json(folder / RUN_OPTIONS, options)
        return checkpoint

    return once(training_args, find)


def check_same_run(folder, begun_with, options):
    """Raises a ValueError if the run in a folder was begun with other options, or on other data."""
    check_same_options(f"run in {folder}", begun_with["options"], options["options"])
    for name, like in options["data"].items():
        earlier = begun_with["data"].get(name)
        if earlier != like:
            raise ValueError(f"split {name!r} of the data is not what the run in {folder} was begun with; {ADVICE}")


def check_same_options(what, begun_with, options):
    """Raises a ValueError if an option is not what something, a run or a conversion, was begun with. One that it knew
    nothing of may be anything."""
    for name, value in options.items():
        earlier = begun_with.get(name, value)
        if earlier != value:
            raise ValueError(f"--{name} is {value!r}, but the {what} was begun with {earlier!r}; {ADVICE}")


class Stopwatch(TrainerCallback, ExportableState):
    """Counts the seconds of training, evaluations on the way included, over all the times that a run was resumed, on
    the clock and of the processor; and keeps in its checkpoints how large its batches are."""

    def __init__(self, resumes=False, batch_size=None):
        self.resumes, self.batch_size = resumes, batch_size
        self._begin({})

    def _begin(self, earlier):
        self.before, self.processor_before = earlier.get("before", 0.0), earlier.get("processor_before", 0.0)
        self.began, self.processor_began = time.monotonic(), time.process_time()

    @property
    def seconds(self):
        return self.before + time.monotonic() - self.began

    @property
    def processor_seconds(self):
        return self.processor_before + time.process_time() - self.processor_began

    def state(self):
        taken = {"before": self.seconds, "processor_before": self.processor_seconds}
        return {"args": {}, "attributes": {**taken, "batch_size": self.batch_size}}

    def on_train_begin(self, args, state, control, **kwargs):
        earlier = state.stateful_callbacks.get(type(self).__name__) if self.resumes else None
        self._begin(earlier["attributes"] if earlier else {})


class EpochOrder(TrainerCallback, ExportableState):
    """Keeps in its checkpoints the random state that the order of an epoch's examples was drawn from, and draws it from
    there again where a run goes on in the middle of one: `Trainer` restores the state of the checkpoint only later."""

    def __init__(self):
        self.drawn_from = self.restored = None

    def draw(self):
        """To be called before an order is drawn."""
        if self.restored is not None:
            torch.set_rng_state(self.restored)
            self.restored = None
        self.drawn_from = torch.get_rng_state()

    def state(self):
        kept = None if self.drawn_from is None else base64.b64encode(self.drawn_from.numpy().tobytes()).decode()
        return {"args": {}, "attributes": {"kept": kept}}

    def on_train_begin(self, args, state, control, **kwargs):
        kept = state.stateful_callbacks.get(type(self).__name__, {"attributes": {}})["attributes"].get("kept")
        if kept is not None and state.epoch and not float(state.epoch).is_integer():
            self.restored = torch.frombuffer(bytearray(base64.b64decode(kept)), dtype=torch.uint8)


class KeptSampler(Sampler):
    """Another sampler, of which an `EpochOrder` keeps what each order is drawn from."""

    def __init__(self, sampler, order):
        self.sampler, self.order = sampler, order

    def __len__(self):
        return len(self.sampler)

    def __iter__(self):
        self.order.draw()
        return iter(self.sampler)


def finished_state(checkpoint, training_args):
    """The state of a run whose last step is in a checkpoint, None if there are steps left or there is no checkpoint."""
    if not checkpoint:
        return None
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    more_epochs = training_args.max_steps <= 0 and training_args.num_train_epochs > state.num_train_epochs
    if state.global_step < state.max_steps or training_args.max_steps > state.global_step or more_epochs:
        return None
    return state if "Stopwatch" in state.stateful_callbacks else None


def check_batch_size(checkpoint, batch_size, world_size):
    """Raises a ValueError if the run that left a checkpoint had batches of another size, and so other steps."""
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    earlier = state.stateful_callbacks.get("Stopwatch", {"attributes": {}})["attributes"].get("batch_size")
    if earlier not in (None, batch_size):
        raise ValueError(
            f"{checkpoint} is of a run with {earlier} examples per step, this one has {batch_size} over {world_size} "
            "processes: start as many processes as then, or change --gradient_accumulation_steps or "
            "--per_device_train_batch_size so that the product is the same"
        )
