"""A stand-in for the Hugging Face Hub on loopback: enough of its API for real huggingface_hub and datasets to talk to it.

It keeps repositories in memory and is as strict as the Hub where that matters: writes need a token, a commit names its parent,
a large file must have been uploaded before a commit points to it, a tag is set once. Faults can be ordered for coming requests.

`python tests/hub_stand_in.py` serves until it is stopped, and prints its address.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_" + "standin" * 5
LARGE = (".parquet", ".safetensors", ".bin", ".gguf")
DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class File:
    """A file in a commit."""

    content: bytes
    is_large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob(self) -> str:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        stored = pointer.encode() if self.is_large else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    def facts(self, path: str) -> dict[str, Any]:
        facts: dict[str, Any] = {"type": "file", "path": path, "size": len(self.content), "oid": self.blob}
        if self.is_large:
            facts["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}
        return facts


@dataclass(frozen=True)
class Commit:
    """A commit and all its files."""

    oid: str
    message: str
    files: dict[str, File]


@dataclass
class Repo:
    """A repository: one branch and its tags."""

    kind: str
    name: str
    private: bool
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def add(self, message: str, files: dict[str, File]) -> Commit:
        seed = json.dumps([self.name, len(self.commits), message, sorted((path, file.sha256) for path, file in files.items())])
        commit = Commit(hashlib.sha1(seed.encode()).hexdigest(), message, files)
        self.commits.append(commit)
        return commit

    def at(self, revision: str) -> Commit | None:
        wanted = self.head.oid if revision in ("main", "refs/heads/main") else self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == wanted), None)


@dataclass
class Fault:
    """What happens to requests whose `METHOD /path` matches `pattern`, `times` times."""

    pattern: str
    what: Literal["drop", "drop_after", "fail", "hold"]
    times: int = 1
    status: int = 503
    reached: threading.Event = field(default_factory=threading.Event)
    """Set when such a request came; one that is held waits until the server stops."""


class Hub:
    """The stand-in: `url`, its repositories, the requests it saw, and the faults to come."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.stopped = threading.Event()
        self.lock = threading.RLock()
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to talk to the stand-in and to nothing else."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
        }

    def repo(self, name: str, kind: str = "dataset") -> Repo:
        return self.repos[kind, name]

    def order(self, pattern: str, what: Literal["drop", "drop_after", "fail", "hold"], **more: Any) -> Fault:
        fault = Fault(pattern, what, **more)
        self.faults.append(fault)
        return fault

    def writes(self) -> list[str]:
        """Return the requests so far that change something."""
        return [line for line in self.requests if re.search(r"^POST .*/(commit|tag|create)\b", line) or line.startswith("PUT")]

    def close(self) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()


class _Answer(Exception):
    """Ends a request with a status and a body."""

    def __init__(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = {"Content-Type": "application/json", **(headers or {})}


def _error(status: int, message: str, code: str | None = None) -> _Answer:
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return _Answer(status, {"error": message}, headers)


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for the client's delayed acknowledgement of its headers

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        self._handle()

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        line = f"{self.command} {unquote(parts.path)}"
        body = self._body()
        with self.state.lock:
            self.state.requests.append(line)
            fault = next((fault for fault in self.state.faults if fault.times and re.search(fault.pattern, line)), None)
            if fault is not None:
                fault.times -= 1
                fault.reached.set()
        if fault is not None and fault.what == "hold":
            self.state.stopped.wait()
        if fault is not None and fault.what in ("drop", "hold"):
            self.close_connection = True
            self.connection.close()
            return
        try:
            if fault is not None and fault.what == "fail":
                raise _error(fault.status, "out of order")
            with self.state.lock:
                self._route(parts.path, parse_qs(parts.query), body)
            raise _error(404, f"no such address: {line}")
        except _Answer as answer:
            if fault is not None and fault.what == "drop_after":
                self.close_connection = True
                self.connection.close()
                return
            self._send(answer)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, answer: _Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    @property
    def _is_signed_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        routes: list[tuple[str, str, Callable[..., None]]] = [
            ("GET", r"/api/whoami-v2", self._whoami),
            ("POST", r"/api/validate-yaml", self._validate_yaml),
            ("POST", r"/api/repos/create", self._create),
            ("GET", r"/api/(model|dataset)s/([^/]+/[^/]+)", self._info),
            ("GET", r"/api/(model|dataset)s/([^/]+/[^/]+)/revision/([^/]+)", self._info),
            ("GET", r"/api/(model|dataset)s/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", self._tree),
            ("POST", r"/api/(model|dataset)s/([^/]+/[^/]+)/paths-info/([^/]+)", self._paths),
            ("GET", r"/api/(model|dataset)s/([^/]+/[^/]+)/refs", self._refs),
            ("POST", r"/api/(model|dataset)s/([^/]+/[^/]+)/preupload/([^/]+)", self._preupload),
            ("POST", r"/api/(model|dataset)s/([^/]+/[^/]+)/commit/([^/]+)", self._commit),
            ("POST", r"/api/(model|dataset)s/([^/]+/[^/]+)/tag/([^/]+)", self._tag),
            ("POST", r"/(?:(dataset)s/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            ("PUT", r"/storage/([0-9a-f]{64})", self._store),
            ("GET", r"/(?:(dataset)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        ]
        for method, pattern, answer in routes:
            match = re.fullmatch(pattern, path)
            if match and (self.command == method or (self.command == "HEAD" and method == "GET")):
                self._query, self._content = query, body
                answer(*(unquote(group) if group is not None else None for group in match.groups()))

    def _repo(self, kind: str | None, name: str, *, write: bool = False) -> Repo:
        repo = self.state.repos.get((kind or "model", name))
        if repo is None or (repo.private and not self._is_signed_in):
            raise _error(404 if self._is_signed_in else 401, "Repository not found", "RepoNotFound")
        if write:
            self._need_token()
        return repo

    def _need_token(self) -> None:
        if not self._is_signed_in:
            raise _error(401, "Invalid username or password.")

    def _revision(self, repo: Repo, revision: str) -> Commit:
        commit = repo.at(revision)
        if commit is None:
            raise _error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _whoami(self) -> None:
        self._need_token()
        raise _Answer(200, {"type": "user", "name": "tester", "auth": {"accessToken": {"role": "write"}}})

    def _validate_yaml(self) -> None:
        sent = json.loads(self._content)
        errors = []
        found = re.match(r"---\n(.*?)\n---\n", sent["content"], re.DOTALL)
        try:
            header = yaml.safe_load(found.group(1)) if found else {}
            for config in header.get("configs", []):
                if not isinstance(config.get("config_name"), str):
                    errors.append({"message": "configs need a config_name"})
        except yaml.YAMLError as error:
            errors.append({"message": str(error)})
        raise _Answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def _create(self) -> None:
        self._need_token()
        sent = json.loads(self._content)
        kind, name = sent.get("type", "model"), f"{sent.get('organization') or 'tester'}/{sent['name']}"
        url = f"{self.state.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.state.repos:
            raise _Answer(409, {"error": "You already created this repo", "url": url})
        repo = Repo(kind, name, sent.get("visibility") == "private" or bool(sent.get("private")))
        repo.add("initial commit", {".gitattributes": File(b"*.parquet filter=lfs diff=lfs merge=lfs -text\n", False)})
        self.state.repos[kind, name] = repo
        raise _Answer(200, {"url": url, "name": name, "id": name})

    def _info(self, kind: str, name: str, revision: str = "main") -> None:
        repo = self._repo(kind, name)
        commit = self._revision(repo, revision)
        header: dict[str, Any] = {}
        if "README.md" in commit.files:
            found = re.match(rb"---\n(.*?)\n---\n", commit.files["README.md"].content, re.DOTALL)
            header = yaml.safe_load(found.group(1)) if found else {}
        raise _Answer(
            200,
            {
                "_id": "0" * 24,
                "id": name,
                "author": name.split("/", maxsplit=1)[0],
                "sha": commit.oid,
                "lastModified": DATE,
                "createdAt": DATE,
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "cardData": header,
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            },
        )

    def _tree(self, kind: str, name: str, revision: str, under: str | None = None) -> None:
        files = self._revision(self._repo(kind, name), revision).files
        recursive = self._query.get("recursive", ["false"])[0].lower() in ("1", "true")
        prefix = f"{under.rstrip('/')}/" if under else ""
        items: list[dict[str, Any]] = []
        folders: set[str] = set()
        for path in sorted(files):
            if not path.startswith(prefix):
                continue
            inner = path.removeprefix(prefix).split("/")
            for depth in range(1, len(inner)) if recursive else range(1, min(2, len(inner))):
                folders.add(prefix + "/".join(inner[:depth]))
            if recursive or len(inner) == 1:
                items.append(files[path].facts(path))
        if prefix and not items and not folders:
            raise _error(404, f"{under} does not exist", "EntryNotFound")
        raise _Answer(200, [_folder(path) for path in sorted(folders)] + items)

    def _paths(self, kind: str, name: str, revision: str) -> None:
        files = self._revision(self._repo(kind, name), revision).files
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(self._content)["paths"]
        else:
            paths = parse_qs(self._content.decode()).get("paths", [])
        items = []
        for path in paths:
            if path in files:
                items.append(files[path].facts(path))
            elif any(other.startswith(f"{path}/") for other in files):
                items.append(_folder(path))
        raise _Answer(200, items)

    def _refs(self, kind: str, name: str) -> None:
        repo = self._repo(kind, name)
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid} for tag, oid in repo.tags.items()]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head.oid}
        raise _Answer(200, {"branches": [main], "tags": tags, "converts": []})

    def _preupload(self, kind: str, name: str, revision: str) -> None:
        files = self._revision(self._repo(kind, name, write=True), revision).files
        answers = []
        for item in json.loads(self._content)["files"]:
            path = item["path"]
            mode = "lfs" if path.endswith(LARGE) or item["size"] > 10_000_000 else "regular"
            stored = files.get(path)
            oid = None if stored is None else stored.sha256 if stored.is_large else stored.blob
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        raise _Answer(200, {"files": answers})

    def _batch(self, kind: str | None, name: str) -> None:
        self._repo(kind, name, write=True)
        objects = []
        for item in json.loads(self._content)["objects"]:
            wanted: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.state.large:
                wanted["actions"] = {"upload": {"href": f"{self.state.url}/storage/{item['oid']}"}}
            objects.append(wanted)
        raise _Answer(200, {"transfer": "basic", "objects": objects})

    def _store(self, digest: str) -> None:
        if hashlib.sha256(self._content).hexdigest() != digest:
            raise _error(400, "the content is not that of its digest")
        self.state.large[digest] = self._content
        raise _Answer(200, {})

    def _commit(self, kind: str, name: str, revision: str) -> None:
        repo = self._repo(kind, name, write=True)
        if revision != "main":
            raise _error(400, "the stand-in has one branch")
        lines = [json.loads(line) for line in self._content.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", repo.head.oid) != repo.head.oid:
            raise _error(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.head.files)
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = File(base64.b64decode(value["content"]), False)
                case "lfsFile":
                    if value["oid"] not in self.state.large:
                        raise _error(400, f"{value['path']} points to a file that was not uploaded")
                    files[value["path"]] = File(self.state.large[value["oid"]], True)
                case "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise _error(404, "A file with this name doesn't exist", "EntryNotFound")
                case other:
                    raise _error(400, f"the stand-in knows no {other}")
        commit = repo.add(header["summary"], files)
        raise _Answer(200, {"commitUrl": f"{self.state.url}/datasets/{name}/commit/{commit.oid}", "commitOid": commit.oid})

    def _tag(self, kind: str, name: str, revision: str) -> None:
        repo = self._repo(kind, name, write=True)
        tag = json.loads(self._content)["tag"]
        if tag in repo.tags:
            raise _error(409, "Tag reference exists already")
        repo.tags[tag] = self._revision(repo, revision).oid
        raise _Answer(200, {})

    def _resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        commit = self._revision(self._repo(kind, name), revision)
        file = commit.files.get(path)
        if file is None:
            raise _Answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.oid})
        etag = f'"{file.sha256 if file.is_large else file.blob}"'
        headers = {
            "X-Repo-Commit": commit.oid,
            "ETag": etag,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if file.is_large:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(file.content))}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), int(wanted[2] or len(file.content) - 1)
            piece = file.content[first : last + 1]
            raise _Answer(206, piece, {**headers, "Content-Range": f"bytes {first}-{last}/{len(file.content)}"})
        raise _Answer(200, file.content, {**headers, "Content-Length": str(len(file.content))})


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}


if __name__ == "__main__":
    server = Hub()
    print(server.url, flush=True)
    threading.Event().wait()
