"""A Google Cloud Storage on 127.0.0.1: the package gcp-storage-emulator, with preconditions and with faults.

The package ignores `ifGenerationMatch`, on which locks and tensorstore depend, and does not send the generation of what is
read; here it does both. As a program, it serves until it is killed:

    python tests/gcs_emulator.py PORT BUCKET
"""

import contextlib
import functools
import http.server
import json
import logging
import re
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage

logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)


def environment(port: int) -> dict[str, str]:
    """Environment variables with which gcsfs and tensorstore use the emulator, without credentials."""
    address = f"http://127.0.0.1:{port}"
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "EPATH_USE_TF": "false",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google for the type of the bucket
        "NO_GCE_CHECK": "true",  # no search for credentials of a machine of Google
        "FSSPEC_GCS_TOKEN": "anon",
        "FSSPEC_GS_TOKEN": "anon",
    }


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128  # tensorstore opens many connections at once


class Emulator:
    """A running server with one bucket in memory.

    Attributes:
      port: of 127.0.0.1.
      fault: method, path of the request -> status to answer instead, or None.
      requests: methods and paths of all requests so far.
    """

    def __init__(self, bucket: str, port: int = 0) -> None:
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        self.storage = Storage(use_memory_fs=True)
        buckets.create_bucket(bucket, self.storage)
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), functools.partial(_Handler, self))
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @contextlib.contextmanager
    def failing(self, status: int, method: str = "", pattern: str = "") -> Iterator[None]:
        """Answers requests of this method whose path matches with an error."""
        self.fault = lambda verb, path: status if method in ("", verb) and re.search(pattern, path) else None
        try:
            yield
        finally:
            self.fault = lambda method, path: None


class _Handler(emulator.RequestHandler):
    def __init__(self, owner: Emulator, *args: object) -> None:
        self._owner = owner
        super().__init__(owner.storage, *args)

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def do_DELETE(self) -> None:
        self._handle("DELETE")

    def do_PATCH(self) -> None:
        self._handle("PATCH")

    def _handle(self, method: str) -> None:
        body = emulator._read_raw_data(self) or b""
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        data = _parse(body, self.headers.get("Content-Type") or "", "upload_id" in query)
        with self._owner._lock:
            self._owner.requests.append((method, urllib.parse.unquote(self.path)))
            status = self._owner.fault(method, urllib.parse.unquote(self.path))
            if status is None and "ifGenerationMatch" in query:
                name = query["name"][0] if "name" in query else data["meta"]["name"] if "meta" in data else data["name"]
                bucket = re.search(r"/b/([^/]+)/o", url.path)[1]
                found = self.storage.objects.get(bucket, {}).get(name)
                if query["ifGenerationMatch"][0] != (found["generation"] if found else "0"):
                    status = 412
            place = re.fullmatch(r"(?:/download)?(?:/storage/v1)?/b/([^/]+)/o/(.+)", url.path)
            read = self.storage.objects.get(place[1], {}).get(urllib.parse.unquote(place[2])) if place else None
            self._generation = read["generation"] if read and method == "GET" else ""
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                if status is None:
                    _Router(self, data).handle(method)
                else:
                    self._answer(status)

    def end_headers(self) -> None:
        if self._generation:  # tensorstore writes with it as a precondition
            self.send_header("x-goog-generation", self._generation)
        super().end_headers()

    def _answer(self, status: int) -> None:
        content = json.dumps({"error": {"code": status, "message": "as the test demands"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class _Router(emulator.Router):
    """The package's router, for requests whose content was read before."""

    def __init__(self, handler: _Handler, data: object) -> None:
        super().__init__(handler)
        self._data = data

    def handle(self, method: str) -> None:
        data = self._data
        original = emulator._read_data
        emulator._read_data = lambda *_: data
        try:
            super().handle(method)
        finally:
            emulator._read_data = original


def _parse(body: bytes, content_type: str, is_chunk: bool) -> object:
    """As the package does; but it ends content at a carriage return, and some bytes change."""
    if not body:
        return None
    if content_type.startswith("application/json") and not is_chunk:
        return json.loads(body)
    if not content_type.startswith("multipart/"):
        return body
    boundary = re.search(r'boundary="?([^";]+)', content_type)[1].encode()
    if content_type.startswith("multipart/mixed"):
        parts = emulator.BytesParser().parsebytes(b"Content-Type:" + content_type.encode() + b"\r\n\r\n" + body).get_payload()
        return [emulator._parse_batch_item(part) for part in parts]
    _, meta, rest = body.split(b"--" + boundary, 2)
    content = rest[: rest.rindex(b"--" + boundary)]
    headers, content = re.split(rb"\r?\n\r?\n", content, maxsplit=1)
    kind = re.search(rb"Content-Type: *([^\r\n]+)", headers, re.I)
    content = content[:-2] if content.endswith(b"\r\n") and b"\r\n" in headers else content[:-1]
    return {
        "meta": json.loads(re.split(rb"\r?\n\r?\n", meta, maxsplit=1)[1]),
        "content": content,
        "content-type": kind[1].decode() if kind else "application/octet-stream",
    }


if __name__ == "__main__":
    Emulator(sys.argv[2], int(sys.argv[1]))
    print("ready", flush=True)
    threading.Event().wait()
