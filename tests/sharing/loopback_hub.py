#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""A small Hub on 127.0.0.1: the parts of the protocol that `huggingface_hub` speaks to create a repository, to upload
(small files in the commit, large ones through Git LFS, in one piece or in parts) and to download, with faults to
inject. Everything lives in memory and is gone when it ends.

Clients find it through the environment that `LoopbackHub.environment` gives: `HF_ENDPOINT`, and `HF_HUB_DISABLE_XET`,
because it does not speak the Xet protocol that newer clients prefer for large files. To try things out by hand:

python tests/sharing/loopback_hub.py
"""

import argparse
import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


TOKEN, USER, ORGANIZATION = "hf_loopback", "user", "club"
READER_TOKEN = "hf_reader"  # of another user
LFS_SUFFIXES = (".safetensors", ".png", ".bin")
KINDS = {"": "model", "datasets/": "dataset", "spaces/": "space"}


class Refusal(Exception):
    """An answer other than 200, with the Hub's error headers."""

    def __init__(self, status, message, code=None, **more):
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match.

    Args:
        kind (`str`): "status" answers with `status` without acting; "drop" closes the connection without acting; "lose"
            acts, then closes the connection instead of answering; "cut" closes it in the middle of the answer;
            "garbage" answers 502 with a web page; "slow" waits `seconds` first; "corrupt" changes a byte of what a PUT
            brings or a GET takes away.
        method, path (`str`): regular expressions that the whole method and the beginning of the path match.
    """

    kind: str
    method: str
    path: str
    times: int = 1
    status: int = 503
    seconds: float = 0.0


@dataclass(frozen=True)
class File:
    content: bytes
    is_large: bool

    @property
    def sha256(self):
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_hash(self):
        return git_hash(self.content)


def git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """Commits are immutable dictionaries of files; branches name commits."""

    private: bool
    commits: dict = field(default_factory=dict)  # hash -> {path: File}
    branches: dict = field(default_factory=dict)  # name -> hash
    titles: list = field(default_factory=list)

    def commit(self, branch, files, title):
        content = [branch, str(len(self.commits)), *(f"{path} {file.sha256}" for path, file in sorted(files.items()))]
        commit = hashlib.sha1("\n".join(content).encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        self.titles.append(title)
        return commit

    def resolve(self, revision):
        commit = self.branches.get(revision, revision)
        if commit not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit


class LoopbackHub:
    """The server; a context manager that runs it in a thread.

    Attributes:
        repositories (`dict`): `(kind, "user/name")` to `Repository`.
        objects (`dict`): large files that were uploaded, by their sha256; no repository shows them before a commit.
        faults (`list` of `Fault`): to inject; used up ones are removed.
        requests (`list`): method and path of every request so far.
    """

    def __init__(self, port=0, part_size=64 * 1024):
        self.repositories, self.objects, self.parts = {}, {}, {}
        self.part_size = part_size
        self.faults, self.requests = [], []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home, token=TOKEN):
        """Environment variables for a client that keeps its files in the folder `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            **({"HF_TOKEN": token} if token else {}),
        }

    def be_found(self, monkeypatch, cache):
        """Has the client in this process ask here, and keep its files in the folder `cache`."""
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", self.endpoint)
        url = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")

    def files(self, repo_id, revision="main", kind="model"):
        """Path to content of what a revision holds."""
        repository = self.repositories[kind, repo_id]
        return {path: file.content for path, file in repository.commits[repository.resolve(revision)].items()}

    def take_fault(self, method, path):
        """The first fault that this request meets, if any; it has then happened once."""
        with self.lock:
            for fault in self.faults:
                if re.fullmatch(fault.method, method) and re.match(fault.path, path):
                    fault.times -= 1
                    if fault.times == 0:
                        self.faults.remove(fault)
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    """Finds the method for a request in `ROUTES` and sends what it returns: JSON, or bytes with headers."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for the client to acknowledge its head
    timeout = 60

    def log_message(self, *_):
        pass

    def handle_request(self):
        parts = urlsplit(self.path)
        self.query, path = parse_qs(parts.query), parts.path
        body = self.read_body()
        self.hub.requests.append((self.command, path))
        fault = self.hub.take_fault(self.command, path)
        kind = fault.kind if fault else None
        if kind == "drop":
            return self.hang_up()
        if kind == "slow":
            time.sleep(fault.seconds)
        if kind == "corrupt" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        try:
            if kind == "status":
                raise Refusal(fault.status, "injected fault")
            method = "GET" if self.command == "HEAD" else self.command
            for route_method, pattern, name in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and method == route_method:
                    arguments = {key: unquote(value or "") for key, value in match.groupdict().items()}
                    with self.hub.lock:
                        answer = getattr(self, name)(body=body, **arguments)
                    break
            else:
                raise Refusal(404, f"no route for {self.command} {path}")
            status, headers, content = answer if isinstance(answer, tuple) else (200, {}, answer)
        except Refusal as refusal:
            status, content = (
                refusal.status,
                {"error": str(refusal), "errors": [{"message": str(refusal)}], **refusal.more},
            )
            headers = {"X-Error-Message": str(refusal), **({"X-Error-Code": refusal.code} if refusal.code else {})}
        if kind == "lose":
            return self.hang_up()
        if kind == "garbage":
            status, headers, content = 502, {"Content-Type": "text/html"}, b"<html>Bad Gateway</html>"
        if not isinstance(content, bytes):
            headers, content = {"Content-Type": "application/json", **headers}, json.dumps(content).encode()
        if kind == "corrupt" and self.command == "GET":
            content = bytes([content[0] ^ 1]) + content[1:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if kind == "cut" else content)
        if kind == "cut":
            self.hang_up()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def read_body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def hang_up(self):
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    # Who asks, and what for

    def user(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return {TOKEN: USER, READER_TOKEN: "reader"}.get(token)

    def repository(self, kind, repo_id, write=False):
        repository = self.hub.repositories.get((kind, repo_id))
        is_owner = self.user() == USER
        if repository is None or (repository.private and not is_owner):
            raise Refusal(404 if self.user() else 401, "Repository not found", "RepoNotFound")
        if write:
            self.check_may_write(repo_id)
        return repository

    def check_may_write(self, repo_id):
        if self.user() is None:
            raise Refusal(401, "Invalid username or password.")
        if self.user() != USER or repo_id.partition("/")[0] not in (USER, ORGANIZATION):
            raise Refusal(403, f"You don't have the rights to create or change {repo_id}")

    # Accounts and repositories

    def whoami(self, body):
        if self.user() is None:
            raise Refusal(401, "Invalid username or password.")
        organizations = [{"type": "org", "name": ORGANIZATION}] if self.user() == USER else []
        return {"type": "user", "name": self.user(), "fullname": self.user(), "orgs": organizations}

    def create(self, body):
        asked = json.loads(body)
        kind, repo_id = asked.get("type") or "model", f"{asked.get('organization') or USER}/{asked['name']}"
        self.check_may_write(repo_id)
        url = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        if (kind, repo_id) in self.hub.repositories:
            raise Refusal(409, f"You already created this {kind} repo: {repo_id}", url=url)
        repository = Repository(private=bool(asked.get("private") or asked.get("visibility") == "private"))
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        repository.commit("main", {".gitattributes": File(attributes.encode(), False)}, "initial commit")
        self.hub.repositories[kind, repo_id] = repository
        return {"url": url, "name": repo_id, "id": repo_id}

    def delete(self, body):
        asked = json.loads(body)
        kind, repo_id = asked.get("type") or "model", f"{asked.get('organization') or USER}/{asked['name']}"
        self.repository(kind, repo_id, write=True)
        del self.hub.repositories[kind, repo_id]
        return {}

    def create_branch(self, body, kind, repo_id, revision):
        repository = self.repository(kind, repo_id, write=True)
        if revision in repository.branches:
            raise Refusal(409, f"Reference already exists: {revision}")
        repository.branches[revision] = repository.resolve(json.loads(body or b"{}").get("startingPoint", "main"))
        return {}

    def delete_branch(self, body, kind, repo_id, revision):
        branches = self.repository(kind, repo_id, write=True).branches
        if revision not in branches:
            raise Refusal(404, f"no branch {revision}", "RevisionNotFound")
        del branches[revision]
        return {}

    def refs(self, body, kind, repo_id):
        branches = self.repository(kind, repo_id).branches.items()
        named = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit} for name, commit in branches]
        return {"branches": named, "converts": [], "tags": []}

    def info(self, body, kind, repo_id, revision="main"):
        repository = self.repository(kind, repo_id)
        commit = repository.resolve(revision)
        return {
            "id": repo_id,
            "modelId": repo_id,
            "sha": commit,
            "private": repository.private,
            "lastModified": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "siblings": [{"rfilename": path} for path in repository.commits[commit]],
        }

    def tree(self, body, kind, repo_id, revision, folder=""):
        repository = self.repository(kind, repo_id)
        files = repository.commits[repository.resolve(revision)]
        inside = {path: file for path, file in files.items() if not folder or path.startswith(folder + "/")}
        if folder and not inside:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        return [self.entry(path, file) for path, file in sorted(inside.items())]

    def paths_info(self, body, kind, repo_id, revision):
        repository = self.repository(kind, repo_id)
        files = repository.commits[repository.resolve(revision)]
        asked = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
        return [self.entry(path, files[path]) for path in asked["paths"] if path in files]

    @staticmethod
    def entry(path, file):
        entry = {"type": "file", "path": path, "size": len(file.content), "oid": file.git_hash}
        if file.is_large:
            entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
        return entry

    # Uploads

    def validate_yaml(self, body):
        header = re.match(r"---\r?\n(.*?)\r?\n---", json.loads(body)["content"], re.DOTALL)
        metadata = yaml.safe_load(header.group(1)) if header else {}
        for model in metadata.get("model-index", []):
            if not model.get("name") or not isinstance(model.get("results"), list):
                raise Refusal(400, '"model-index" must have a name and results')
        return {
            "errors": [],
            "warnings": [] if header else [{"message": "empty or missing yaml metadata in repo card"}],
        }

    def preupload(self, body, kind, repo_id, revision):
        repository = self.repository(kind, repo_id, write=True)
        files = repository.commits[repository.resolve(revision)]
        answer = []
        for asked in json.loads(body)["files"]:
            is_large = asked["path"].endswith(LFS_SUFFIXES)
            present = files.get(asked["path"])
            answer.append(
                {
                    "path": asked["path"],
                    "uploadMode": "lfs" if is_large else "regular",
                    "shouldIgnore": False,
                    "oid": (present.sha256 if is_large else present.git_hash) if present else None,
                }
            )
        return {"files": answer}

    def lfs_batch(self, body, prefix, repo_id):
        self.repository(KINDS[prefix], repo_id, write=True)
        objects = []
        for asked in json.loads(body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            if oid not in self.hub.objects:
                url = f"{self.hub.endpoint}/lfs/{oid}"
                upload = {"href": url}
                if size > self.hub.part_size:  # in parts; `href` is then where their end is told
                    count = -(-size // self.hub.part_size)
                    parts = {f"{i:05}": f"{url}/{i}" for i in range(1, count + 1)}
                    upload = {"href": f"{url}/end", "header": {"chunk_size": str(self.hub.part_size), **parts}}
                asked["actions"] = {"upload": upload, "verify": {"href": f"{url}/verify"}}
            objects.append(asked)
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, body, oid):
        self.keep(oid, body)
        return b""

    def lfs_put_part(self, body, oid, part):
        self.hub.parts[oid, int(part)] = body
        return 200, {"ETag": hashlib.md5(body).hexdigest()}, b""

    def lfs_end(self, body, oid):
        numbers = sorted(part["partNumber"] for part in json.loads(body)["parts"])
        self.keep(oid, b"".join(self.hub.parts.pop((oid, number)) for number in numbers))
        return {}

    def keep(self, oid, content):
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "BadDigest: the sha256 of what arrived is another")
        self.hub.objects[oid] = content

    def lfs_verify(self, body, oid):
        if oid not in self.hub.objects:
            raise Refusal(404, "object not found")
        return {}

    def commit(self, body, kind, repo_id, revision):
        repository = self.repository(kind, repo_id, write=True)
        head = repository.resolve(revision)
        files, title = dict(repository.commits[head]), ""
        for line in body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit", head) != head:
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refusal(400, f"LFS pointer of {value['path']} points to a file that does not exist")
                files[value["path"]] = File(self.hub.objects[value["oid"]], True)
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                raise Refusal(400, f"unknown operation {key}")
        commit = repository.commit(revision, files, title)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{commit}"
        return {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": "", "pullRequestUrl": None}

    # Downloads

    def resolve(self, body, prefix, repo_id, revision, path):
        repository = self.repository(KINDS[prefix], repo_id)
        commit = repository.resolve(revision)
        file = repository.commits[commit].get(path)
        if file is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, {"error": "Entry not found"}
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.git_hash}"'}
        if not file.is_large:
            return self.ranged(file.content, headers)
        # as on the Hub, a large file comes from another host
        headers.update({"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))})
        return 302, {**headers, "Location": f"http://localhost:{self.hub.port}/cdn/{file.sha256}"}, b""

    def cdn(self, body, oid):
        return self.ranged(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def ranged(self, content, headers):
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start is None:
            return 200, headers, content
        first = int(start.group(1))
        return 206, {**headers, "Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}, content[first:]


API = r"/api/(?P<kind>model|dataset|space)s/(?P<repo_id>[^/]+/[^/]+)"
REPO = r"/(?P<prefix>datasets/|spaces/|)(?P<repo_id>[^/]+/[^/]+)"
ROUTES = (
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create"),
    ("DELETE", "/api/repos/delete", "delete"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("GET", API, "info"),
    ("GET", API + "/revision/(?P<revision>[^/]+)", "info"),
    ("GET", API + "/refs", "refs"),
    ("GET", API + "/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", "tree"),
    ("POST", API + "/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("POST", API + "/branch/(?P<revision>[^/]+)", "create_branch"),
    ("DELETE", API + "/branch/(?P<revision>[^/]+)", "delete_branch"),
    ("POST", API + "/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", API + "/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", REPO + r"\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})/(?P<part>\d+)", "lfs_put_part"),
    ("POST", "/lfs/(?P<oid>[0-9a-f]{64})/end", "lfs_end"),
    ("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify", "lfs_verify"),
    ("GET", REPO + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ("GET", "/cdn/(?P<oid>[0-9a-f]{64})", "cdn"),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; any free one by default")
    parser.add_argument("--home", default="outputs/loopback_home", help="folder for the files that clients keep")
    arguments = parser.parse_args()
    with LoopbackHub(arguments.port) as hub:
        print(f"A Hub in memory for the user {USER!r}; end it with Ctrl-C. In another terminal:")
        print(
            "\n".join(f"export {name}={value}" for name, value in hub.environment(arguments.home).items()), flush=True
        )
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
