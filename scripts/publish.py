#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Publishes a trained model on the Hub: checks its folder, shows what will be uploaded, and uploads it in one commit.

python scripts/publish.py --model outputs/quickstart --repo_id user/name --dry_run
python scripts/publish.py --model outputs/quickstart --repo_id user/name --private
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


# Large files go through Git LFS: Xet, which the client prefers, has retries of its own that no timeout here reaches.
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

import numpy as np
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session, validate_repo_id
from safetensors.numpy import load_file
from training.files import ROOT


PACKAGE = ROOT / "astroformer_hf"
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
MODEL_TYPES = ("astroformer", "astroformer_vision", "astromorphic")
PROCESSORS = ("tokenizer.json", "preprocessor_config.json", "processor_config.json")
ALSO = (
    *("config.json", "generation_config.json", "README.md", "LICENSE", "results.json", "*.jinja"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt"),
)
SECRET = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
FIGURE = re.compile(r"""(?:!\[[^\]]*\]\(\s*<?|<img\b[^>]*?\bsrc=["'])(?!\w+:)([^)\s>"']+)""")  # Markdown, or HTML
FIGURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")
EMPTY_REPOSITORY = {".gitattributes", "README.md"}  # at most this is in one that nobody has published to
RETRIED_STATUS = (408, 429, 500, 502, 503, 504)


class PublishError(Exception):
    """Something that the user can understand and mend."""


# --------------------------------------------------------------------------------------------------------------------
# What will be published
# --------------------------------------------------------------------------------------------------------------------


def stage(source, target, repo_id):
    """Copies what belongs in a repository from a training run's folder.

    Args:
        source (`Path`): the folder that a training script left, or `save_pretrained` and a card.
        target (`Path`): an empty folder.
        repo_id (`str`): "user/name"; the copied card shows how to use the model under this name.

    Returns:
        Names of what was left out, sorted.

    Raises:
        PublishError: with everything that is wrong with the folder.
    """
    if not (source / "config.json").is_file():
        raise PublishError(f"--model must be a folder with a trained model; {str(source)!r} has no config.json")
    try:
        return copy_and_check(source, target, repo_id)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # whatever a damaged file leads to
        raise PublishError(f"{str(source)!r} cannot be read: {type(error).__name__}: {error}") from error


def copy_and_check(source, target, repo_id):
    card = source / "README.md"
    figures = sorted(set(FIGURE.findall(card.read_text(encoding="utf-8")))) if card.is_file() else []
    names = {path.name for pattern in (*WEIGHTS, *PROCESSORS, *ALSO) for path in source.glob(pattern) if path.is_file()}
    own_code = code_files(source)
    names |= own_code
    problems = []
    for figure in figures:
        path = (source / figure).resolve()
        if not path.is_relative_to(source.resolve()) or not path.is_file():
            problems.append(f"README.md shows {figure!r}, which is not in the folder")
        elif path.suffix.lower() not in FIGURE_SUFFIXES:
            problems.append(f"README.md shows {figure!r}, which is not an image")
        else:
            names.add(path.relative_to(source.resolve()).as_posix())
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    if not own_code:  # as in model_cards/, whose models are loaded with the package
        for name in code_files(source, PACKAGE):
            shutil.copyfile(PACKAGE / name, target / name)
    if "LICENSE" not in names:
        shutil.copyfile(ROOT / "LICENSE", target / "LICENSE")
    problems += problems_of_weights(target) + problems_of_code(target) + problems_of_card(target, repo_id)
    for path in sorted(target.rglob("*")):
        if (
            path.is_file()
            and path.suffix not in (".safetensors", *FIGURE_SUFFIXES)
            and SECRET.search(path.read_bytes())
        ):
            problems.append(f"{path.name} contains what looks like an access token of the Hub")
    if problems:
        raise PublishError(f"{str(source)!r} cannot be published:\n" + "\n".join(f"  - {text}" for text in problems))
    first_parts = {name.partition("/")[0] for name in names}
    return sorted(path.name + "/" * path.is_dir() for path in source.iterdir() if path.name not in first_parts)


def code_references(folder):
    """`(auto_name, "module.Class")` of each class that the configuration names."""
    auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map") or {}
    for auto_name, references in auto_map.items():
        for reference in references if isinstance(references, list) else [references]:
            if reference is not None:
                yield auto_name, reference


def code_files(folder, code=None):
    """The files of code that a folder's configuration names, and those that they import, as far as they are in the
    folder, or in another one, `code`."""
    code = folder if code is None else code
    wanted, found = [reference.partition(".")[0] for _, reference in code_references(folder)], set()
    while wanted:
        path = code / f"{wanted.pop()}.py"
        if path.parent == code and path.is_file() and path.name not in found:
            found.add(path.name)
            wanted += re.findall(r"^\s*from \.(\w+) import", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return found


def problems_of_weights(folder):
    weights = [path.name for path in folder.glob("model*.safetensors")]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [f"{name}, a part of the weights, is missing" for name in sorted(wanted - set(weights))]
    return (
        [] if weights else ["it has no model.safetensors; weights in other formats, such as pickles, are not published"]
    )


def problems_of_code(folder):
    """The map from Auto classes to code must stay inside the folder, and so must the code."""
    problems, references = [], list(code_references(folder))
    if not references:
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if model_type in MODEL_TYPES:
            advice = "it was saved without its code; load it with astroformer_hf and save it"
        else:
            advice = (
                f"a model of type {model_type!r} is one of the library, which needs no code: publish it with its "
                "`push_to_hub`, and say in its card which attn_implementation it was trained with, which is not saved"
            )
        problems.append(f"config.json has no auto_map: {advice}")
    for auto_name, reference in references:
        module, _, class_name = reference.partition(".")
        if not (module.isidentifier() and class_name.isidentifier()):
            problems.append(f"config.json points outside the folder for {auto_name}: {reference!r}")
        elif not (folder / f"{module}.py").is_file():
            problems.append(f"{module}.py, the code of {auto_name}, is missing")
    if not any((folder / name).is_file() for name in PROCESSORS):
        problems.append("it has no tokenizer or image processor")
    return problems


def problems_of_card(folder, repo_id):
    """Checks the model card, and writes it anew under the repository's name."""
    path = folder / "README.md"
    if not path.is_file():
        return ["it has no README.md, the model card"]
    try:
        card = ModelCard.load(path)
    except Exception as error:  # whatever the YAML parser or the library says
        return [f"README.md has no valid metadata: {error}"]
    old_name, name = card.data.model_name, repo_id.partition("/")[2]
    results = card.data.eval_results or []
    problems = [
        f"README.md says nothing of {what} ({field})"
        for field, what, given in (
            ("license", "the license", card.data.license),
            ("library_name", "the library", card.data.library_name),
            ("pipeline_tag", "the task", card.data.pipeline_tag),
            ("model-index", "results", results),
        )
        if not given
    ]
    if old_name:
        card.text = re.sub(rf'model="(model_cards/)?{re.escape(old_name)}"', f'model="{repo_id}"', card.text)
        card.text = card.text.replace(f'"model_cards/{old_name}/', f'"{ENDPOINT}/{repo_id}/resolve/main/')
        card.text = re.sub(rf"(?m)^# {re.escape(old_name)}$", f"# {name}", card.text, count=1)
    card.data.model_name = name
    if repo_id not in card.text:
        problems.append(f"README.md does not show how to use {repo_id!r}")
    card.save(path)
    return problems


def check_answers(folder):
    """Loads the staged folder in two fresh processes, with and without the package, and compares their outputs.

    Raises:
        PublishError: it does not load, or answers differently.
    """
    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",  # what the folder lacks must not come from elsewhere
            "HF_MODULES_CACHE": str(Path(scratch) / "modules"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        runs = {}
        for name, flags in (("with the package", []), ("with the code in it", ["--without_package"])):
            output = Path(scratch) / f"{len(runs)}.safetensors"
            command = [
                sys.executable,
                str(ROOT / "scripts/sharing/compare_loading.py"),
                "--model",
                str(folder),
                "--output",
                str(output),
            ]
            process = subprocess.Popen(
                [*command, *flags], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            runs[name] = process, output
        try:
            for name, (process, _) in runs.items():
                printed, _ = process.communicate()
                if process.returncode:
                    raise PublishError(f"the model does not load {name}:\n{printed.strip()[-2000:]}")
        finally:
            for process, _ in runs.values():
                process.kill()
        with_package, without = (load_file(output) for _, output in runs.values())
    different = sorted(
        name
        for name in with_package.keys() | without.keys()
        if name not in with_package
        or name not in without
        or not np.array_equal(with_package[name], without[name], equal_nan=with_package[name].dtype.kind == "f")
    )
    if different:
        raise PublishError(f"the code in the folder does not answer as the package does: {', '.join(different)} differ")


# --------------------------------------------------------------------------------------------------------------------
# The Hub
# --------------------------------------------------------------------------------------------------------------------


class Publisher:
    """One upload of a folder to a repository, each step of which is tried again after a failure that may pass.

    Args:
        repo_id (`str`): "user/name".
        revision (`str`): branch to commit to; made if it is not there.
        private (`bool`): whether a new repository is private.
        update (`bool`): whether to add a commit to what has been published there before.
        retries (`int`): how often a step is tried again.
        timeout (`float`): seconds to wait for an answer.
    """

    def __init__(self, repo_id, revision="main", private=False, update=False, retries=4, timeout=60.0):
        self.repo_id, self.revision, self.private, self.update = repo_id, revision, private, update
        self.retries, self.timeout = retries, timeout
        self.api = HfApi()
        self.undo = []  # what takes back the steps so far, the last first

    def attempt(self, what, step):
        """Runs a step, again after failures of network and server; what else the Hub refuses becomes a PublishError."""
        for tries_left in range(self.retries, -1, -1):
            client = get_session()
            hooks = [hook for hook in client.event_hooks["request"] if hook.__name__ != self.limit_wait.__name__]
            client.event_hooks = {**client.event_hooks, "request": [*hooks, self.limit_wait]}
            try:
                return step()
            except (HTTPError, OSError, RuntimeError, ValueError) as error:
                # of one of several files, the client tells what went wrong as the cause
                reason = error.__cause__ if isinstance(error.__cause__, HTTPError) else error
                reason = error if isinstance(error, HfHubHTTPError) else reason
                if tries_left == 0 or not is_passing(error):
                    raise PublishError(f"the Hub could not {what}: {in_a_line(reason)}") from error
                wait = min(30, 2 ** (self.retries - tries_left))
                print(f"  {in_a_line(reason)}; trying again in {wait} s", file=sys.stderr)
                time.sleep(wait)

    def limit_wait(self, request):
        """Gives a request for which the client would wait for ever the time that an answer may take."""
        limits = request.extensions.get("timeout") or {}
        if not any(limits.values()):
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), self.timeout)

    def check_access(self):
        """The user's name; the repository must be theirs to write.

        Raises:
            PublishError: there is no valid token, or the namespace is somebody else's.
        """
        try:
            if get_token() is None:
                raise LocalTokenNotFoundError()
            account = self.attempt("tell who you are", self.api.whoami)
        except (LocalTokenNotFoundError, PublishError) as error:
            if isinstance(error, PublishError) and status_of(error.__cause__) not in (401, 403):
                raise
            state = "no access token was found" if get_token() is None else "the access token is not valid"
            raise PublishError(
                f"{state}: make one that may write at {self.api.endpoint}/settings/tokens, then run `hf auth login` or "
                "set HF_TOKEN"
            ) from None
        names = [account["name"], *(organization["name"] for organization in account.get("orgs", []))]
        if self.repo_id.partition("/")[0] not in names:
            raise PublishError(
                f"--repo_id must be in a namespace of yours ({', '.join(names)}), got {self.repo_id!r}; "
                f"you are logged in as {account['name']!r}"
            )
        return account["name"]

    def look(self, revision=None):
        """What the Hub knows of the repository, or of a branch of it; None where there is none."""
        try:
            return self.attempt("look at the repository", lambda: self.api.model_info(self.repo_id, revision=revision))
        except PublishError as error:
            if isinstance(error.__cause__, (RepositoryNotFoundError, RevisionNotFoundError)):
                return None
            raise

    def find(self):
        """The commit that the branch is at, None where there is no such branch yet, and the files that are there, or
        that a new branch starts with.

        Raises:
            PublishError: something was published there before, and `update` is False.
        """
        repository = self.look()
        if repository is None:
            return None, set()
        if self.private and not repository.private:
            raise PublishError(f"{self.repo_id} exists and is public; --private only makes new repositories private")
        branch = self.look(self.revision)
        if branch is None:
            return None, names_in(repository)
        if names_in(branch) - EMPTY_REPOSITORY and not self.update:
            where = self.repo_id if self.revision == "main" else f"the branch {self.revision!r} of {self.repo_id}"
            raise PublishError(f"{where} exists already; choose another name, or add a commit to it with --update")
        return branch.sha, names_in(branch)

    def publish(self, folder, message):
        """Uploads the files of a folder in one commit: the repository shows all of them, or none.

        Returns:
            The hash of the commit.

        Raises:
            PublishError: the Hub refused, or could not be reached often enough. What was created is removed again.
        """
        try:
            head, present = self.find()
            if head is None:
                head, present = self.create()
            commit = self.commit(folder, message, head, present)
        except BaseException:
            self.take_back()
            raise
        return commit

    def create(self):
        """Makes the repository and the branch, as far as they do not exist; the branch's commit and files.

        Raises:
            PublishError: somebody was faster, with a repository or a branch of that name.
        """
        repository = self.look()
        if repository is None:
            # the answer may get lost after the repository was made: then it exists at the next try
            self.undo.append(("repository", self.delete_if_empty))
            self.attempt(
                "create the repository",
                lambda: self.api.create_repo(self.repo_id, private=self.private or None, exist_ok=True),
            )
            repository = self.look()
            if repository is None or names_in(repository) - EMPTY_REPOSITORY or repository.private < self.private:
                raise PublishError(f"{self.repo_id} was made by somebody else at the same time")
        if self.revision == "main":
            return repository.sha, names_in(repository)
        self.undo.append(("branch", lambda: self.delete_if_at(repository.sha)))
        self.attempt(
            "create the branch",
            lambda: self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True),
        )
        branch = self.look(self.revision)
        if branch is None or branch.sha != repository.sha:
            raise PublishError(f"the branch {self.revision!r} was made by somebody else at the same time")
        return branch.sha, names_in(branch)

    def commit(self, folder, message, head, present):
        """Sends the commit. It names its parent, so that it cannot happen twice if the answer to the first is lost."""
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        stale = [name for name in sorted(present - set(files)) if is_stale(name)]

        def send():
            try:
                done = self.api.create_commit(
                    self.repo_id,
                    [CommitOperationAdd(name, str(path)) for name, path in files.items()]
                    + [CommitOperationDelete(name) for name in stale],
                    commit_message=message,
                    revision=self.revision,
                    parent_commit=head,
                )
                return done.oid
            except HfHubHTTPError as error:
                if status_of(error) == 412:  # the branch has moved on
                    commit = self.api.model_info(self.repo_id, revision=self.revision).sha
                    if not self.differences(folder, commit):
                        return commit  # to our own commit: only the answer was lost
                raise

        commit = self.attempt("take the commit", send)
        self.undo.clear()
        try:
            differences = self.attempt("list what it holds", lambda: self.differences(folder, commit))
        except PublishError as error:
            raise PublishError(f"it was, at commit {commit}, but not checked, because {error}") from error
        if differences:
            raise PublishError(
                f"the Hub holds other content than was sent, at commit {commit}: {', '.join(differences)}"
            )
        return commit

    def differences(self, folder, commit):
        """Names of files of the folder that a commit lacks or has with another checksum."""
        found = self.api.verify_repo_checksums(self.repo_id, revision=commit, local_dir=folder)
        return sorted([*found.extra_paths, *(mismatch["path"] for mismatch in found.mismatches)])

    def delete_if_empty(self):
        """Removes the repository unless somebody has put something there; whether it did."""
        if names_in(self.api.model_info(self.repo_id)) - EMPTY_REPOSITORY:
            return False
        self.api.delete_repo(self.repo_id)
        return True

    def delete_if_at(self, commit):
        """Removes the branch unless somebody has put something there; whether it did."""
        if self.api.model_info(self.repo_id, revision=self.revision).sha != commit:
            return False
        self.api.delete_branch(self.repo_id, branch=self.revision)
        return True

    def take_back(self):
        """Removes what was created for an upload that failed."""
        while self.undo:
            what, step = self.undo.pop()
            try:
                if self.attempt(f"remove the {what} again", step):
                    print(f"The {what} that was made for this upload is removed again", file=sys.stderr)
            except PublishError as error:
                if status_of(error.__cause__) not in (401, 403, 404):  # or it was not made at all
                    print(f"  {error}; what is left is empty, and the same command goes on with it", file=sys.stderr)


def names_in(info):
    """The files of a revision."""
    return {file.rfilename for file in info.siblings}


def is_stale(name):
    """Whether a file of an earlier version must not stay beside a new one: code and weights, which might be loaded."""
    return "/" not in name and name.endswith((".py", ".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth"))


def is_passing(error):
    """Whether what failed may succeed a little later: the network, a server that is busy or broken, a large file that
    arrived damaged (of which the client makes a RuntimeError), an answer that is no JSON."""
    if isinstance(error, HfHubHTTPError):
        return status_of(error) in RETRIED_STATUS
    if isinstance(error, OfflineModeIsEnabled):
        return False
    return isinstance(error, (HTTPError, ConnectionError, TimeoutError, RuntimeError, json.JSONDecodeError))


def status_of(error):
    return getattr(getattr(error, "response", None), "status_code", None)


def in_a_line(error):
    status = status_of(error)
    text = getattr(error, "server_message", None) or " ".join(str(error).split())[:300] or type(error).__name__
    if status:
        return f"it answered {status}, {text}"
    return f"no answer ({type(error).__name__}: {text})" if isinstance(error, HTTPError) else text


# --------------------------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------------------------


def show(folder, left_out, arguments, endpoint, present):
    """Prints what will be uploaded, and where."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    state = "on top of what is there" if present else "new, private" if arguments.private else "new, public"
    print(f"Model       {config['architectures'][0]}, {config.get('dtype', 'float32')}")
    print(f"Repository  {endpoint}/{arguments.repo_id}, branch {arguments.revision} ({state})")
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    print(f"Upload      {len(sizes)} files, {in_words(sum(sizes.values()))}")
    for name, size in sorted(sizes.items()):
        print(f"            {in_words(size):>9}  {name}")
    for name in sorted(filter(is_stale, present - set(sizes))):
        print(f"            {'remove':>9}  {name}")
    if left_out:
        print(f"Left out    {', '.join(left_out)}")


def in_words(size):
    return f"{size / 1000:,.1f} kB"


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, type=Path, help="folder of a trained model")
    parser.add_argument("--repo_id", "--repo-id", required=True, help="user/name, or organization/name, on the Hub")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="check and show, but send nothing")
    parser.add_argument("--private", action="store_true", help="make the new repository private")
    parser.add_argument("--revision", default="main", help="branch to commit to; made if it is not there")
    parser.add_argument("--update", action="store_true", help="add a commit to a repository that exists")
    parser.add_argument("--message", default="Upload the model", help="first line of the commit's message")
    parser.add_argument("--retries", type=int, default=4, help="how often a step that failed is tried again")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for an answer of the Hub")
    arguments = parser.parse_args(arguments)
    try:
        validate_repo_id(arguments.repo_id)
    except ValueError as error:
        parser.error(f"--repo_id: {error}")
    if "/" not in arguments.repo_id:
        parser.error(f"--repo_id must be user/name, got {arguments.repo_id!r}")
    if not arguments.message.strip():
        parser.error("--message must not be empty")
    if arguments.retries < 0:
        parser.error(f"--retries must not be negative, got {arguments.retries}")
    if not arguments.timeout > 0:
        parser.error(f"--timeout must be positive, got {arguments.timeout}")
    return arguments


def main(arguments=None):
    arguments = parse_arguments(arguments)
    publisher = Publisher(
        arguments.repo_id,
        arguments.revision,
        arguments.private,
        arguments.update,
        arguments.retries,
        arguments.timeout,
    )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            left_out = stage(arguments.model, folder, arguments.repo_id)
            present = set()
            if not arguments.dry_run:  # before the slow checks
                publisher.check_access()
                _, present = publisher.find()
            print("Checking that it loads without the package and answers the same...")
            check_answers(folder)
            show(folder, left_out, arguments, publisher.api.endpoint, present)
            if arguments.dry_run:
                print("Nothing was sent (--dry_run)")
                return
            commit = publisher.publish(folder, arguments.message)
            task = ModelCard.load(folder / "README.md").data.pipeline_tag
    except PublishError as error:
        raise SystemExit(f"Not published: {error}") from None
    print(
        f"Published {publisher.api.endpoint}/{arguments.repo_id} at commit {commit}. To use exactly this:\n"
        f'    pipeline("{task}", model="{arguments.repo_id}", revision="{commit}", trust_remote_code=True)'
    )


if __name__ == "__main__":
    main()
