"""A small Hugging Face Hub on this machine, for the unmodified `huggingface_hub` (HF_ENDPOINT).

It answers as the real one does: models with commits and branches, files with etags and ranges, large ones by a
redirect, uploads of both kinds, and 401, 403 and 404 with the codes that the library reads. A transfer can be broken
off (`LocalHub.breaks`). Everything is held in memory.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_maria"


@dataclass
class Repo:
    """A model: who may read it, its commits ({path: bytes}) and branches."""

    private: bool = False
    gated: bool = False
    commits: dict = field(default_factory=lambda: {"0" * 40: {".gitattributes": b""}})
    branches: dict = field(default_factory=lambda: {"main": "0" * 40})

    def files(self, revision: str) -> tuple[str, dict] | None:
        sha = self.branches.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None

    def commit(self, files: dict, branch: str = "main") -> str:
        names = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
        sha = hashlib.sha1(json.dumps([len(self.commits), names]).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha


class LocalHub:
    """The server: ``repos`` by name, ``seen`` requests; ``breaks``: bytes after which a file's next transfers end."""

    def __init__(self, owner: str):
        self.owner = owner
        """Who has the token."""
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.breaks: dict[str, list[int]] = {}
        self.seen: list[tuple[str, str, str]] = []
        # large files lie at another address, as the real one's do
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Answer(self, *a)) for _ in range(2)]
        self.address, self.store = (f"http://127.0.0.1:{s.server_address[1]}" for s in self.servers)
        for server in self.servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def environment(self, home, token: str = TOKEN) -> dict[str, str]:
        """Return the environment of a program for which this is the Hub, with a cache of its own."""
        own = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        named = {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
                 "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip
        return own | named | ({"HF_TOKEN": token} if token else {})

    def add(self, name: str, folder, **settings) -> Repo:
        """Publish a folder without a client."""
        repo = self.repos.setdefault(name, Repo(**settings))
        repo.commit({str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
        return repo

    def count(self, method: str, pattern: str) -> int:
        return sum(seen == method and re.search(pattern, path) is not None for seen, path, _ in self.seen)


@contextlib.contextmanager
def local_hub(owner: str = "maria"):
    """Run a Hub."""
    hub = LocalHub(owner)
    try:
        yield hub
    finally:
        for server in hub.servers:
            server.shutdown()
            server.server_close()


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


class Answer(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: LocalHub, *arguments):
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            body = self._chunks()
        else:
            body = self.rfile.read(length)
        self.hub.seen.append((self.command, path, self.headers.get("Range", "")))
        user = {f"Bearer {TOKEN}": self.hub.owner, "": ""}.get(self.headers.get("Authorization", ""))
        if user is None:
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        for pattern, method in ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                return method(self, user, body, **match.groupdict())
        self._refuse(404, "", f"no such page: {self.command} {path}")

    def _chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    # -- what is asked ------------------------------------------------------------------------------------------

    def create(self, user, body):
        asked = json.loads(body)
        name = f"{asked.get('organization') or user}/{asked['name']}"
        if not user:
            return self._refuse(401, "", "Invalid username or password.")
        if name.split("/")[0] != user:
            return self._refuse(403, "", "You don't have the rights to create a model under this namespace")
        if name in self.hub.repos:
            return self._json(
                {"url": f"{self.hub.address}/{name}", "error": "You already created this model repo"}, 409
            )
        self.hub.repos[name] = Repo(private=asked.get("visibility") == "private" or asked.get("private") is True)
        self._json({"url": f"{self.hub.address}/{name}", "name": name, "id": name})

    def who(self, user, body):
        if not user:
            return self._refuse(401, "", "Invalid username or password.")
        self._json({"type": "user", "name": user, "orgs": [], "auth": {}})

    def info(self, user, body, name, revision="main"):
        if (held := self._held(user, name, revision)) is not None:
            sha, files = held
            self._json({"_id": name, "id": name, "modelId": name, "sha": sha, "private": self.hub.repos[name].private,
                        "tags": [], "downloads": 0, "siblings": [{"rfilename": path} for path in files]})  # fmt: skip

    def tree(self, user, body, name, revision):
        if (held := self._held(user, name, revision)) is not None:
            self._json([self._entry(path, data) for path, data in held[1].items()])

    def _entry(self, path, data):
        entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        sha = hashlib.sha256(data).hexdigest()
        return entry | ({"lfs": {"oid": sha, "size": len(data), "pointerSize": 134}} if is_large(path) else {})

    def branch(self, user, body, name, revision):
        if self._may_write(user, name):
            repo = self.hub.repos[name]
            if revision in repo.branches:
                return self._json({"error": "Reference already exists"}, 409)
            repo.branches[revision] = repo.branches["main"]
            self._json({})

    def file(self, user, body, name, revision, path):
        held = self._held(user, name, revision)
        if held is None:
            return
        sha, files = held
        if path not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
        data = files[path]
        if is_large(path):  # its bytes lie elsewhere
            blob = hashlib.sha256(data).hexdigest()
            self.hub.blobs[blob] = data
            head = {"X-Repo-Commit": sha, "X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{blob}"',
                    "Location": f"{self.hub.store}/blobs/{blob}/{name}/{path}"}  # fmt: skip
            return self._send(302, b"", head)
        self._bytes(data, path, {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def blob(self, user, body, sha, path):
        if self.command == "PUT":
            fine = hashlib.sha256(body).hexdigest() == sha
            self.hub.blobs.update({sha: body} if fine else {})
            return self._send(200 if fine else 400, b"", {})
        self._bytes(self.hub.blobs[sha], path, {"ETag": f'"{sha}"'})

    def preupload(self, user, body, name, revision):
        if self._may_write(user, name):
            files = [{"path": f["path"], "uploadMode": "lfs" if is_large(f["path"]) else "regular",
                      "shouldIgnore": False} for f in json.loads(body)["files"]]  # fmt: skip
            self._json({"files": files})

    def lfs(self, user, body, name):
        if self._may_write(user, name):
            objects = [
                {"oid": o["oid"], "size": o["size"]}
                | ({} if o["oid"] in self.hub.blobs else
                   {"actions": {"upload": {"href": f"{self.hub.store}/blobs/{o['oid']}/"}}})
                for o in json.loads(body)["objects"]
            ]  # fmt: skip
            self._json({"transfer": "basic", "objects": objects})

    def commit(self, user, body, name, revision):
        if not self._may_write(user, name):
            return
        repo = self.hub.repos[name]
        files = dict(repo.files(revision)[1])
        for line in body.decode().splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(files, revision)
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.address}/{name}/commit/{sha}"})

    def yaml(self, user, body):
        self._json({"errors": [], "warnings": []})

    # -- how it is answered -------------------------------------------------------------------------------------

    def _held(self, user, name, revision):
        """Return a commit and its files, or refuse as the Hub does."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and name.split("/")[0] != user):
            return self._refuse(404 if user else 401, "RepoNotFound", "Repository not found")
        if repo.gated and "/resolve/" in self.path:
            return self._refuse(403 if user else 401, "GatedRepo", "Access to this model is restricted")
        held = repo.files(revision)
        return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}") if held is None else held

    def _may_write(self, user, name) -> bool:
        if user and name in self.hub.repos and name.split("/")[0] == user:
            return True
        self._refuse(403 if user else 401, "", "Forbidden")
        return False

    def _bytes(self, data: bytes, path: str, head: dict) -> None:
        start, status = 0, 200
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(match[1]), 206
            head |= {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        left = self.hub.breaks.get(path.split("/")[-1], []) if self.command == "GET" else []
        self._send(status, data[start:], head | {"Accept-Ranges": "bytes"}, cut=left.pop(0) if left else None)

    def _json(self, value, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str, head: dict | None = None) -> None:
        head = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (head or {})
        self._send(status, json.dumps({"error": message}).encode(), head)

    def _send(self, status: int, data: bytes, head: dict, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | head).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:cut])
        if cut is not None:
            self.close_connection = True


NAME, REVISION = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES = [
    ("/api/repos/create", Answer.create),
    ("/api/whoami-v2", Answer.who),
    ("/api/validate-yaml", Answer.yaml),
    (f"/api/models/{NAME}/revision/{REVISION}", Answer.info),
    (f"/api/models/{NAME}/tree/{REVISION}", Answer.tree),
    (f"/api/models/{NAME}/branch/{REVISION}", Answer.branch),
    (f"/api/models/{NAME}/preupload/{REVISION}", Answer.preupload),
    (f"/api/models/{NAME}/commit/{REVISION}", Answer.commit),
    (f"/api/models/{NAME}", Answer.info),
    (rf"/{NAME}\.git/info/lfs/objects/batch", Answer.lfs),
    (f"/{NAME}/resolve/{REVISION}/(?P<path>.+)", Answer.file),
    ("/blobs/(?P<sha>[^/]+)/(?P<path>.*)", Answer.blob),
]
