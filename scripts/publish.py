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

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import get_session, validate_repo_id


ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
PROCESSORS = ("tokenizer.json", "preprocessor_config.json", "processor_config.json")
ALSO = (
    *("config.json", "generation_config.json", "README.md", "LICENSE", "results.json", "*.py", "*.jinja"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt"),
)
SECRET = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")
IMAGE = re.compile(r"!\[[^\]]*\]\((?!https?:)([^)\s]+)\)")
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
    card = source / "README.md"
    figures = set(IMAGE.findall(card.read_text(encoding="utf-8"))) if card.is_file() else set()
    names = {path.name for pattern in (*WEIGHTS, *PROCESSORS, *ALSO) for path in source.glob(pattern) if path.is_file()}
    problems = []
    for figure in sorted(figures):
        path = (source / figure).resolve()
        if not path.is_relative_to(source.resolve()) or not path.is_file():
            problems.append(f"README.md shows {figure!r}, which is not in the folder")
        else:
            names.add(figure)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    if "LICENSE" not in names:
        shutil.copyfile(ROOT / "LICENSE", target / "LICENSE")
    problems += problems_of_weights(target) + problems_of_code(target) + problems_of_card(target, repo_id)
    for path in sorted(target.rglob("*")):
        if path.suffix in (".json", ".md", ".py", ".jinja") and SECRET.search(path.read_text(encoding="utf-8")):
            problems.append(f"{path.name} contains what looks like an access token of the Hub")
    if problems:
        raise PublishError(f"{str(source)!r} cannot be published:\n" + "\n".join(f"  - {text}" for text in problems))
    return sorted(path.name + "/" * path.is_dir() for path in source.iterdir() if path.name not in names)


def problems_of_weights(folder):
    weights = [path.name for path in folder.glob("model*.safetensors")]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = set(json.loads(index.read_text())["weight_map"].values())
        return [f"{name}, a part of the weights, is missing" for name in sorted(wanted - set(weights))]
    return (
        [] if weights else ["it has no model.safetensors; weights in other formats, such as pickles, are not published"]
    )


def problems_of_code(folder):
    """The map from Auto classes to code must stay inside the folder, and so must the code."""
    problems = []
    auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map")
    if not auto_map:
        return [
            "config.json has no auto_map: it was saved without its code; load and save it with astroformer_hf again"
        ]
    for auto_name, reference in auto_map.items():
        module, _, class_name = reference.partition(".")
        if not (module.isidentifier() and class_name.isidentifier()):
            problems.append(f"config.json points outside the folder for {auto_name}: {reference!r}")
        elif not (folder / f"{module}.py").is_file():
            problems.append(f"{module}.py, the code of {auto_name}, is missing")
    return problems + (
        [] if any((folder / name).is_file() for name in PROCESSORS) else ["it has no tokenizer or image processor"]
    )


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
        card.text = card.text.replace(f'model="{old_name}"', f'model="{repo_id}"')
        card.text = re.sub(rf"(?m)^# {re.escape(old_name)}$", f"# {name}", card.text, count=1)
    card.data.model_name = name
    if repo_id not in card.text:
        problems.append(f"README.md does not show how to use {repo_id!r}")
    card.save(path)
    return problems


def check_answers(folder):
    """Loads the staged folder twice in fresh processes, with the package and as a stranger without it, and compares.

    Raises:
        PublishError: it does not load, or answers differently.
    """
    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",  # what the folder lacks must not come from elsewhere
            "HF_MODULES_CACHE": str(Path(scratch) / "modules"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        runs = {}
        for name, flags in (("with the package", []), ("with the code in it", ["--as_stranger"])):
            output = Path(scratch) / f"{len(runs)}.safetensors"
            command = [
                sys.executable,
                str(ROOT / "scripts/answers.py"),
                "--model",
                str(folder),
                "--output",
                str(output),
            ]
            process = subprocess.Popen(
                [*command, *flags], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            runs[name] = process, output
        for name, (process, _) in runs.items():
            printed, _ = process.communicate()
            if process.returncode:
                raise PublishError(f"the model does not load {name}:\n{printed.strip()[-2000:]}")
        from safetensors.numpy import load_file

        package, stranger = (load_file(output) for _, output in runs.values())
    different = [name for name in package if name not in stranger or (package[name] != stranger[name]).any()]
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
        """Runs a step, again after failures of network and server; other refusals of the Hub become a PublishError."""
        for tries_left in range(self.retries, -1, -1):
            get_session().timeout = self.timeout
            try:
                return step()
            except (HTTPError, RuntimeError) as error:
                reason = error if isinstance(error, HTTPError) else error.__cause__  # of one of several files
                if not isinstance(reason, HTTPError):
                    raise
                if tries_left == 0 or not is_passing(error):
                    raise PublishError(f"the Hub could not {what}: {in_a_line(reason)}") from error
                wait = min(30, 2 ** (self.retries - tries_left))
                print(f"  {in_a_line(reason)}; trying again in {wait} s", file=sys.stderr)
                time.sleep(wait)

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

    def find(self):
        """The commit that the branch is at and the files in it; None and nothing where there is no such branch yet.

        Raises:
            PublishError: something was published there before, and `update` is False.
        """
        if not self.attempt("look for the repository", lambda: self.api.repo_exists(self.repo_id)):
            return None, set()
        try:
            info = self.attempt(
                "look at the repository", lambda: self.api.model_info(self.repo_id, revision=self.revision)
            )
        except PublishError as error:
            if isinstance(error.__cause__, RevisionNotFoundError):
                return None, set()
            raise
        if self.private and not info.private:
            raise PublishError(f"{self.repo_id} exists and is public; --private only makes new repositories private")
        files = {file.rfilename for file in info.siblings}
        if files - EMPTY_REPOSITORY and not self.update:
            where = self.repo_id if self.revision == "main" else f"the branch {self.revision!r} of {self.repo_id}"
            raise PublishError(f"{where} exists already; choose another name, or add a commit to it with --update")
        return info.sha, files

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
        """Makes the repository and the branch, as far as they do not exist; the branch's commit and files."""
        if not self.attempt("look for the repository", lambda: self.api.repo_exists(self.repo_id)):
            # the answer may get lost after the repository was made: then it exists at the next try
            self.undo.append(("repository", self.delete_if_empty))
            self.attempt(
                "create the repository",
                lambda: self.api.create_repo(self.repo_id, private=self.private or None, exist_ok=True),
            )
        if self.revision != "main":
            self.undo.append(("branch", lambda: self.api.delete_branch(self.repo_id, branch=self.revision)))
            self.attempt(
                "create the branch",
                lambda: self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True),
            )
        info = self.attempt("look at the repository", lambda: self.api.model_info(self.repo_id, revision=self.revision))
        return info.sha, {file.rfilename for file in info.siblings}

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
        differences = self.attempt("list what it holds", lambda: self.differences(folder, commit))
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
        if not {file.rfilename for file in self.api.model_info(self.repo_id).siblings} - EMPTY_REPOSITORY:
            self.api.delete_repo(self.repo_id)

    def take_back(self):
        """Removes what was created for an upload that failed."""
        while self.undo:
            what, step = self.undo.pop()
            print(f"Removing the {what} that was made for this upload...", file=sys.stderr)
            try:
                self.attempt(f"remove the {what} again", step)
            except PublishError as error:
                if status_of(error.__cause__) not in (401, 403, 404):  # or it was not made at all
                    print(f"  {error}; what is left is empty, and the same command goes on with it", file=sys.stderr)


def is_stale(name):
    """Whether a file of an earlier version must not stay beside a new one: code and weights, which might be loaded."""
    return name.endswith((".py", ".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth"))


def is_passing(error):
    """Whether what failed may succeed a little later: the network, a file that arrived damaged (which has no status
    here), or a server that is busy or broken."""
    status = status_of(error)
    return status is None or status in RETRIED_STATUS


def status_of(error):
    return getattr(getattr(error, "response", None), "status_code", None) if error is not None else None


def in_a_line(error):
    status = status_of(error)
    text = getattr(error, "server_message", None) or str(error).strip().partition("\n")[0] or type(error).__name__
    return f"it answered {status}, {text}" if status else f"no answer ({type(error).__name__}: {text})"


# --------------------------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------------------------


def show(folder, left_out, arguments, endpoint, present):
    """Prints what will be uploaded, and where."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    state = "a commit on top of" if present else "new"
    print(f"Model       {config['architectures'][0]}, {config.get('dtype', 'float32')}")
    print(
        f"Repository  {endpoint}/{arguments.repo_id}, branch {arguments.revision} ({state}"
        f"{' what is there' if present else ', private' if arguments.private else ', public'})"
    )
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
    if arguments.retries < 0:
        parser.error(f"--retries must not be negative, got {arguments.retries}")
    if not arguments.timeout > 0:
        parser.error(f"--timeout must be positive, got {arguments.timeout}")
    return arguments


def main():
    arguments = parse_arguments()
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
