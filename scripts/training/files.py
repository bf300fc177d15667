# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The repository's folder, and files that are whole or absent."""

import json
import os
from pathlib import Path

from filelock import FileLock, Timeout


ROOT = Path(__file__).resolve().parents[2]
LOCK = "_lock"  # in an output folder; `Trainer.push_to_hub` leaves out what begins with "_"
HELD = {}  # the locks of this process, by their paths, which it keeps until it ends


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_json(path, content):
    """Writes JSON to a temporary name beside `path`, then renames it: the file is whole or absent."""
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8"))


def write_whole(path, write):
    """Lets `write` write to a temporary name beside `path`, then renames it: the file is whole or absent."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    write(temporary)
    os.replace(temporary, path)


def refuse_same_folder(output_dir, option, given):
    """Raises a ValueError if an output folder is the one given as another option, whose files it would overwrite."""
    if given is not None and Path(output_dir).resolve() == Path(given).resolve():
        raise ValueError(f"--output_dir must be another folder than that of --{option}, {given}, whose files it has")


def hold(folder):
    """Makes an output folder, and keeps other processes out of it until this one ends, however it ends.

    Raises:
        ValueError: another process writes into it now.
    """
    path = Path(folder).resolve() / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    if path in HELD:
        return
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"--output_dir {folder}: another process writes into it; wait for it, or name another"
        ) from None
    except NotImplementedError:  # a file system without locks
        return
    HELD[path] = lock
