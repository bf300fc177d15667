# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Runs scripts as `python SCRIPT ARGUMENTS` does, each in a process of its own, but forked from one that has imported
the libraries which they have in common: importing them takes longer than what most tests let a script do.

Run as a program, it is that process. It reads requests from its standard input and answers each with a line of JSON.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Script:
    """A script that was started, with the part of `subprocess.Popen` that tests use."""

    server: "ScriptServer"
    args: list
    pid: int
    output: tuple[Path, Path]
    returncode: int | None = None

    def poll(self):
        if self.returncode is None:
            self.returncode = self.server.ask(poll=self.pid)
        return self.returncode

    def wait(self):
        if self.returncode is None:
            self.returncode = self.server.ask(wait=self.pid)
        return self.returncode

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def communicate(self):
        """What it has written to its standard output and its standard error, when it has ended."""
        self.wait()
        return tuple(path.read_text(errors="replace") for path in self.output)


class ScriptServer:
    """Starts scripts of one environment; `folder` keeps what they print. They find torch and transformers imported, and
    nothing of `astroformer_hf`; of a server that is forked `of` another, the package as well, and what trains it."""

    def __init__(self, environment, folder, of=None):
        self.folder, self.number = Path(folder), 0
        self.folder.mkdir(exist_ok=True)
        if of is None:
            self.process = subprocess.Popen(
                [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self.requests, self.answers = self.process.stdin, self.process.stdout
            return
        pipes = [self.folder / name for name in ("requests", "answers")]
        for pipe in pipes:
            os.mkfifo(pipe)
        of.ask(pipes=[str(pipe) for pipe in pipes], environment=environment)
        self.process, self.requests, self.answers = None, open(pipes[0], "w"), open(pipes[1])

    def close(self):
        self.requests.close()
        self.answers.read()  # which ends with the process
        if self.process:
            self.process.wait()

    def ask(self, **request):
        print(json.dumps(request), file=self.requests, flush=True)
        return json.loads(self.answers.readline())

    def start(self, *args, cwd=None, environment=None):
        """Starts a script, the first of the arguments, with more in its environment."""
        self.number += 1
        output = tuple(self.folder / f"{self.number}.{name}" for name in ("out", "err"))
        args = [str(arg) for arg in args]
        more = {"cwd": str(cwd or os.getcwd()), "environment": environment or {}}
        pid = self.ask(args=args, output=[str(path) for path in output], **more)
        return Script(self, args, pid, output)

    def run(self, *args, check=True, cwd=None, environment=None):
        """Runs a script to its end, and raises with what it said if it failed."""
        return self._ended(self.start(*args, cwd=cwd, environment=environment), check)

    def run_in_two(self, *args, cwd=None):
        """Runs a script in two processes that know of each other as those of `torchrun --nproc-per-node 2` do, and
        returns what both have printed."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none"}
        group |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
        ranks = [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        started = [self.start(*args, cwd=cwd, environment=environment) for environment in ranks]
        return "".join(self._ended(script, check=True).stdout for script in started)

    def _ended(self, script, check):
        printed, complaints = script.communicate()
        assert not check or script.returncode == 0, f"{' '.join(script.args)}\n{printed}\n{complaints}"
        return subprocess.CompletedProcess(script.args, script.returncode, printed, complaints)


def redirect(*paths):
    """Opens files in the place of the standard input, the standard output and the standard error."""
    for descriptor, path in enumerate(paths):
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)


def run(args, cwd, environment, output):
    """What a forked process does: the script, and the status to end with."""
    redirect(os.devnull, *output)
    os.chdir(cwd)
    os.environ.update(environment)
    sys.argv, sys.path[0] = args, os.path.dirname(os.path.abspath(args[0]))
    try:
        runpy.run_path(args[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end(status):
    """Ends the process as Python does, but does not take every imported object apart, which takes seconds."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def import_library():
    from transformers import PreTrainedModel, pipeline  # noqa: F401


def import_package():
    import datasets  # noqa: F401
    import evaluate  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import sklearn.metrics  # noqa: F401
    from transformers import Trainer  # noqa: F401

    import astroformer_hf  # noqa: F401


def serve():
    gc.freeze()  # so that collecting garbage does not copy what the processes share
    servers = []
    for line in sys.stdin:
        request = json.loads(line)
        if "args" in request:
            answer = os.fork()
            if answer == 0:
                end(run(**request))
        elif "pipes" in request:
            answer = os.fork()
            if answer == 0:
                redirect(*request["pipes"])
                os.environ.clear()
                os.environ.update(request["environment"])
                import_package()
                serve()
            servers.append(answer)
        elif "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)
    for server in servers:  # which have been told to end as well
        os.waitpid(server, 0)
    end(0)


if __name__ == "__main__":
    import_library()
    serve()
