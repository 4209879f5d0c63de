"""A local server that speaks the part of the hub's protocol a pull uses, and can misbehave.

Model info with blobs, `resolve` with HEAD, ETag, X-Repo-Commit, a redirect for large files, ranges.
"""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
_PIECE = 1 << 16


class HubServer(ThreadingHTTPServer):
    """requests: (method, path, Range) of all requests for content."""

    daemon_threads = True

    def __init__(self, repository: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository = repository
        self.branch = COMMIT
        self.commits = {COMMIT: dict(files)}
        self.listed: dict[str, dict[str, bytes]] = {}  # what a listing claims, where it lies
        self.claimed_sizes: dict[str, int] = {}
        self.cut_after: dict[str, int] = {}  # path -> bytes; once
        self.stall_after: dict[str, int] = {}  # path -> bytes, then wait for `go_on`
        self.before_file: Callable[[str], None] = lambda path: None
        self.go_on = threading.Event()
        self.stalled = threading.Event()
        self.requests: list[tuple[str, str, str | None]] = []
        self.listings = 0
        self.sent: dict[str, int] = {}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def gets(self, path: str) -> list[str | None]:
        """The Range headers of all GET requests for a file's content."""
        return [
            ranged for method, asked, ranged in self.requests if (method, asked) == ("GET", path)
        ]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is part of these tests."""


@contextlib.contextmanager
def serving(repository: str, files: dict[str, bytes]) -> Iterator[HubServer]:
    server = HubServer(repository, files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        repository = re.escape(self.server.repository)
        if info := re.fullmatch(rf"/api/models/{repository}(?:/revision/(.+))?", path):
            self.send_info(info[1])
        elif asked := re.fullmatch(rf"/{repository}/resolve/([^/]+)/(.+)", path):
            self.send_file(
                asked[1], asked[2], redirect=asked[2].endswith((".safetensors", ".gguf"))
            )
        elif asked := re.fullmatch(r"/cdn/([^/]+)/(.+)", path):
            self.send_file(asked[1], asked[2], redirect=False)
        else:
            self.refuse("RepoNotFound")

    def refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_info(self, revision: str | None) -> None:
        self.server.listings += 1
        commit = self.server.branch if revision in (None, "main") else revision
        if commit not in self.server.commits:
            self.refuse("RevisionNotFound")
            return
        files = self.server.listed.get(commit, self.server.commits[commit])
        body = json.dumps(
            {
                "id": self.server.repository,
                "sha": commit,
                "tags": ["text-generation", "license:mit"],
                "siblings": [self.sibling(path, content) for path, content in files.items()],
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, commit: str, path: str, *, redirect: bool) -> None:
        content = self.server.commits.get(commit, {}).get(path)
        if content is None:
            self.refuse("EntryNotFound")
            return
        if redirect:
            self.send_response(302)
            self.send_header("Location", f"/cdn/{commit}/{path}")
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        ranged = self.headers.get("Range")
        self.server.requests.append((self.command, path, ranged))
        self.server.before_file(path)
        start = int(ranged.removeprefix("bytes=").split("-")[0]) if ranged else 0
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            self.send_content(path, content, start)

    def send_content(self, path: str, content: bytes, start: int) -> None:
        cut = self.server.cut_after.pop(path, None)
        stall = self.server.stall_after.get(path)
        for offset in range(start, len(content), _PIECE):
            if cut is not None and offset >= cut:
                self.close_connection = True
                self.connection.close()
                return
            if stall is not None and offset >= stall:
                self.server.stalled.set()
                self.server.go_on.wait(timeout=60)
            piece = content[offset : offset + _PIECE]
            self.wfile.write(piece)
            self.server.sent[path] = self.server.sent.get(path, 0) + len(piece)

    def sibling(self, path: str, content: bytes) -> dict[str, object]:
        size = self.server.claimed_sizes.get(path, len(content))
        blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        entry: dict[str, object] = {"rfilename": path, "size": size, "blobId": blob}
        if path.endswith((".safetensors", ".gguf", ".bin")):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 134}
        return entry
