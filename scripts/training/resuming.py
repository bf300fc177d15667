# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Going on with a run that was killed."""

import os
import time
from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import get_last_checkpoint


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
            path.rename(path.with_name(f"incomplete-{path.name}"))
    return get_last_checkpoint(output_dir)


def resume_from(training_args):
    """The checkpoint that a run goes on from: the one asked for, or the newest in its output folder, or None."""
    if training_args.resume_from_checkpoint:
        return training_args.resume_from_checkpoint
    return once(training_args, lambda: checkpoint_to_resume(training_args.output_dir))


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


def finished_state(checkpoint):
    """The state of a run whose last step is in a checkpoint, None if there are steps left or there is no checkpoint."""
    if not checkpoint:
        return None
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    return state if state.global_step >= state.max_steps and "Stopwatch" in state.stateful_callbacks else None


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
