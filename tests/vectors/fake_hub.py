"""A small Hub on this machine: the part of its HTTP API that one push and one fetch of a file need.

Repositories, branches, pull requests, preupload, LFS, commits, file trees and the files themselves, as huggingface_hub
calls them. Everything is kept in memory, and each commit keeps a copy of all files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_right"
OWNER = "me"


@dataclass
class Repository:
    """Commits by name of a branch, each as the files that it has; and what the history says."""

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b""}})
    messages: list[str] = field(default_factory=list)
    pull_requests: int = 0


class Hub(ThreadingHTTPServer):
    """The server; ``repositories`` by name, and the path of each request in ``seen``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.claims: dict[str, int] = {}  # sizes that are claimed of files, by name
        self.seen: list[str] = []


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Start one, and stop it when the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def oid_of(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def commit_of(files: dict[str, bytes]) -> str:
    return oid_of(b"".join(name.encode() + data for name, data in sorted(files.items())))


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def answer(self, status: int, content: Any = b"", **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        size = headers.pop("size", str(len(data)))
        self.send_response(status)
        for name, value in {"Content-Length": size, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def fail(self, status: int, code: str = "", says: str = "") -> None:
        self.answer(status, {"error": says or code}, X_Error_Code=code, X_Error_Message=says or code)

    @property
    def may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def respond(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.body()
        self.server.seen.append(f"{self.command} {path}")
        for pattern, method in _ROUTES.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return getattr(self, method)(body, **found.groupdict())
        return self.fail(404, says=f"no such address: {path}")

    do_GET = do_HEAD = do_POST = do_PUT = respond

    def repository(self, repo: str) -> Repository | None:
        """The repository, if there is one and it may be seen; else the answer is given."""
        found = self.server.repositories.get(repo)
        if found is None or (found.private and not self.may_write):
            self.fail(404, "RepoNotFound", "Repository not found")
            return None
        return found

    def create_repo(self, body: bytes) -> None:
        wanted = json.loads(body)
        owner = wanted.get("organization") or OWNER
        name = f"{owner}/{wanted['name']}"
        if not self.may_write:
            self.fail(401, says="Invalid username or password.")
        elif owner != OWNER:
            self.fail(403, says=f"You don't have the rights to create a model under the namespace {owner}")
        elif name in self.server.repositories:
            self.answer(409, {"url": f"{self.server.endpoint}/{name}", "error": "You already created this model repo"})
        else:
            private = wanted.get("private") or wanted.get("visibility") == "private"
            self.server.repositories[name] = Repository(private=bool(private))
            self.answer(200, {"url": f"{self.server.endpoint}/{name}", "name": name})

    def create_branch(self, body: bytes, repo: str, branch: str) -> None:
        if (found := self.repository(repo)) is None:
            return
        if branch in found.branches:
            return self.fail(409, says="Reference already exists")
        found.branches[branch] = dict(found.branches["main"])
        self.answer(200, {})

    def check_yaml(self, body: bytes) -> None:
        text = json.loads(body)["content"].split("---\n")[1]
        assert isinstance(yaml.safe_load(text), dict)
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        if self.repository(repo) is None:
            return
        files = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for one in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def lfs_batch(self, body: bytes, repo: str) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.lfs[oid] = body
        self.answer(200)

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        if (found := self.repository(repo)) is None:
            return
        if not self.may_write:
            return self.fail(403, says="no right to write")
        branch, query = revision, urlsplit(self.path).query
        if "create_pr=1" in query:
            found.pull_requests += 1
            branch = f"refs/pr/{found.pull_requests}"
        elif revision not in found.branches:
            return self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = dict(found.branches.get(branch, found.branches["main"]))
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                found.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.lfs[value["oid"]]
        found.branches[branch] = files
        oid = commit_of(files)
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{self.server.endpoint}/{repo}/commit/{oid}"}
        if branch.startswith("refs/pr/"):
            answer["pullRequestUrl"] = f"{self.server.endpoint}/{repo}/discussions/{found.pull_requests}"
        self.answer(200, answer)

    def files_at(self, repo: str, revision: str) -> dict[str, bytes] | None:
        if (found := self.repository(repo)) is None:
            return None
        by_name = {**found.branches, **{commit_of(files): files for files in found.branches.values()}}
        if revision not in by_name:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return by_name[revision]

    def info(self, body: bytes, repo: str, revision: str = "main") -> None:
        if (files := self.files_at(repo, revision)) is not None:
            siblings = [{"rfilename": name} for name in files]
            self.answer(200, {"id": repo, "modelId": repo, "sha": commit_of(files), "siblings": siblings, "tags": []})

    def tree(self, body: bytes, repo: str, revision: str) -> None:
        if (files := self.files_at(repo, revision)) is not None:
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": oid_of(data)} for name, data in files.items()
            ]
            self.answer(200, rows)

    def resolve(self, body: bytes, repo: str, revision: str, name: str) -> None:
        if (files := self.files_at(repo, revision)) is None:
            return
        if name not in files:
            return self.fail(404, "EntryNotFound", "Entry not found")
        claimed = self.server.claims.get(name, len(files[name]))
        facts = {"X_Repo_Commit": commit_of(files), "ETag": f'"{oid_of(files[name])}"', "X_Linked_Size": str(claimed)}
        self.answer(200, files[name], **facts)


_REPO, _REVISION = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>refs/pr/\d+|[^/]+)"
_ROUTES = {
    r"POST /api/repos/create": "create_repo",
    r"POST /api/validate-yaml": "check_yaml",
    rf"POST /api/models/{_REPO}/branch/(?P<branch>.+)": "create_branch",
    rf"POST /api/models/{_REPO}/preupload/{_REVISION}": "preupload",
    rf"POST /{_REPO}\.git/info/lfs/objects/batch": "lfs_batch",
    r"PUT /lfs/(?P<oid>\w+)": "lfs_put",
    rf"POST /api/models/{_REPO}/commit/{_REVISION}": "commit",
    rf"GET /api/models/{_REPO}": "info",
    rf"GET /api/models/{_REPO}/revision/{_REVISION}": "info",
    rf"GET /api/models/{_REPO}/tree/{_REVISION}": "tree",
    rf"(GET|HEAD) /{_REPO}/resolve/{_REVISION}/(?P<name>.+)": "resolve",
}
