# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Where a result comes from: the command, versions, the machine, and the memory that it took."""

import contextlib
import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path

import torch

from training.files import ROOT


LAUNCHED_WITH = dict(os.environ)  # before `TrainingArguments` adds to it
PACKAGES = (
    "astroformer-hf",
    "torch",
    "transformers",
    "datasets",
    "tokenizers",
    "accelerate",
    "evaluate",
    "safetensors",
)


def versions(packages=PACKAGES):
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware():
    """The machine that a result comes from."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}


def command(script, arguments=None):
    """The command that repeats a run, as a user would type it in the project's folder, with what starts the processes.

    Several machines are started by the same command on each, with the name of one of them for HOST.

    Args:
        script (`str`): path of the script, its `__file__`.
        arguments (list of `str`, *optional*): what its `main` was given; those of the command line by default.
    """
    script = Path(script).resolve()
    script = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script.name
    return shlex.join([*launcher(LAUNCHED_WITH), str(script), *(sys.argv[1:] if arguments is None else arguments)])


def launcher(environment):
    """The words of a command before the script: `python`, `torchrun` or `accelerate launch`, with their options.

    Args:
        environment (`dict`): the environment variables of the process, as the launcher set them.
    """
    world_size = int(environment.get("WORLD_SIZE", 1))
    machines = world_size // int(environment.get("LOCAL_WORLD_SIZE", world_size))
    if "ACCELERATE_MIXED_PRECISION" not in environment:  # which `accelerate launch` always sets
        if "TORCHELASTIC_RUN_ID" not in environment and world_size == 1:
            return ["python"]
        several = ["--nnodes", str(machines), "--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST:29500"]
        return ["torchrun", "--nproc-per-node", str(world_size // machines), *(several if machines > 1 else ())]

    def is_set(name):
        return environment.get(name, "").lower() in ("1", "true", "yes")

    options = {"num_processes": world_size, "mixed_precision": environment["ACCELERATE_MIXED_PRECISION"]}
    if machines > 1:
        options |= {"num_machines": machines, "machine_rank": environment.get("GROUP_RANK", 0)}
        options |= {"main_process_ip": "HOST", "main_process_port": 29500}
    flags = []
    if is_set("ACCELERATE_USE_FSDP"):
        flags.append("--use_fsdp")
        # the launcher hands its options on as variables of the same names
        options |= {name.lower(): value for name, value in sorted(environment.items()) if name.startswith("FSDP_")}
    elif is_set("ACCELERATE_USE_CPU"):
        flags.append("--cpu")
    elif world_size > 1:
        flags.append("--multi_gpu")
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["accelerate", "launch", *flags, *words]


PEAK_OF_PROCESS = Path("/proc/self/status")


def forget_peak_memory():
    """Lets `peak_memory_bytes` count anew, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):  # not Linux, or not allowed
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes():
    """The most memory that this process has held at once: of tensors on a GPU, otherwise resident; None where the
    system does not tell."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError, StopIteration):
        peak = next(line for line in PEAK_OF_PROCESS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    return None
