"""A server of Google Cloud Storage's JSON interface, as much of it as run folders need.

Objects live in this process; gcsfs, TensorStore and Google's own client are sent here
by environment variables, and are otherwise the real ones.
"""

import base64
import itertools
import json
import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

OBJECTS = r"/(?:upload/|download/)?storage/v1/b/(?P<bucket>[^/]+)/o"
COPY = rf"{OBJECTS}/(?P<name>.+)/(?P<how>rewriteTo/b/[^/]+|moveTo)/o/(?P<target>.+)"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Of the server, shared by all connections.
    objects: dict[str, tuple[bytes, int]]
    uploads: dict[str, bytearray]
    numbers: Iterator[int]

    def log_message(self, format, *args):
        pass

    def _answer(self, code, content: Any = b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _absent(self):
        self._answer(404, {"error": {"code": 404, "message": "Not Found"}})

    def _ask(self):
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        found = re.fullmatch(rf"{OBJECTS}(?:/(?P<name>.+))?", parts.path)
        name = unquote(found["name"]) if found and found["name"] else None
        return parts.path, query, found, name

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _store(self, name, content):
        self.objects[name] = bytes(content), next(self.numbers)
        return self._resource(name)

    def _resource(self, name):
        content, generation = self.objects[name]
        checksum = base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()
        return {
            "kind": "storage#object",
            "bucket": "bucket",
            "name": name,
            "id": f"bucket/{name}/{generation}",
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "etag": checksum,
            "contentType": "application/octet-stream",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def do_GET(self):
        path, query, found, name = self._ask()
        if found is None:
            is_bucket = re.fullmatch(r"/storage/v1/b/bucket", path)
            bucket = {"kind": "storage#bucket", "name": "bucket", "id": "bucket"}
            return self._answer(200, bucket) if is_bucket else self._absent()
        if name is None:
            return self._list(query)
        if name not in self.objects:
            return self._absent()
        if query.get("alt") != "media" and not path.startswith("/download"):
            return self._answer(200, self._resource(name))
        content, generation = self.objects[name]
        headers = {"x_goog_generation": str(generation)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self._answer(200, content, **headers)
        start, end = int(asked[1]), int(asked[2] or len(content) - 1)
        end = min(end, len(content) - 1)
        if start > end:
            return self._answer(416)
        headers["Content_Range"] = f"bytes {start}-{end}/{len(content)}"
        self._answer(206, content[start : end + 1], **headers)

    def _list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for name in sorted(self.objects):
            if not name.startswith(prefix):
                continue
            head, mark, _ = name[len(prefix) :].partition(delimiter or "\0")
            if mark:
                prefixes.add(prefix + head + mark)
            else:
                items.append(self._resource(name))
        self._answer(200, {"items": items, "prefixes": sorted(prefixes)})

    def do_POST(self):
        path, query, _, name = self._ask()
        body = self._body()
        copy = re.fullmatch(COPY, path)
        if path.startswith("/batch"):
            return self._batch(body)
        if copy:
            source, target = unquote(copy["name"]), unquote(copy["target"])
            if source not in self.objects:
                return self._absent()
            stored = self._store(target, self.objects[source][0])
            if copy["how"] == "moveTo":
                del self.objects[source]
                return self._answer(200, stored)
            return self._answer(200, {"done": True, "resource": stored})
        if "upload" in query:
            return self._chunk(query["upload"], body)
        kind = query.get("uploadType")
        if kind == "media":
            return self._answer(200, self._store(query["name"], body))
        if kind == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            self.uploads[name] = bytearray()
            host = self.headers["Host"]
            location = f"http://{host}/upload/storage/v1/b/bucket/o?upload={name}"
            return self._answer(200, Location=location)
        boundary = self.headers["Content-Type"].split("boundary=")[1].strip("'\"")
        _, about, content, _ = body.split(b"--" + boundary.encode())
        told = json.loads(
            about.split(b"\n\n" if b"\r" not in about else b"\r\n\r\n")[1]
        )
        _, _, data = content.partition(
            b"\r\n\r\n" if b"\r\n\r\n" in content else b"\n\n"
        )
        data = data.removesuffix(b"\n").removesuffix(b"\r")
        self._answer(200, self._store(told["name"], data))

    def _batch(self, body):
        """Several deletions in one request."""
        lines = re.findall(rb"DELETE (?:https?://[^/]+)?(\S+)", body)
        parts = []
        for line in lines:
            match = re.fullmatch(rf"{OBJECTS}/(.+)", urlsplit(line.decode()).path)
            assert match
            known = self.objects.pop(unquote(match[2]), None)
            status = "204 No Content" if known else "404 Not Found"
            parts.append(f"Content-Type: application/http\r\n\r\nHTTP/1.1 {status}\r\n")
        text = "".join(f"--part\r\n{part}\r\n" for part in parts) + "--part--"
        kind = "multipart/mixed; boundary=part"
        self._answer(200, text.encode(), Content_Type=kind)

    def do_PUT(self):
        self._chunk(self._ask()[1]["upload"], self._body())

    def _chunk(self, name, body):
        self.uploads[name] += body
        _, _, total = self.headers.get("Content-Range", "/*").partition("/")
        if total == "*":
            end = len(self.uploads[name]) - 1
            return self._answer(308, Range=f"bytes=0-{end}")
        self._answer(200, self._store(name, self.uploads.pop(name)))

    def do_DELETE(self):
        name = self._ask()[3]
        if name is None or self.objects.pop(name, None) is None:
            return self._absent()
        self._answer(204)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients may close a connection before they have read all."""


@contextmanager
def served() -> Iterator[tuple[dict[str, str], dict[str, tuple[bytes, int]]]]:
    """The environment of processes that shall see the bucket `gs://bucket`, and its
    objects, by name, with their generation."""
    shared = {"objects": {}, "uploads": {}, "numbers": itertools.count(1)}
    handler = type("Handler", (_Handler,), shared)
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    environment = {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GOOGLE_CLOUD_PROJECT": "none",
        "FSSPEC_GCS_TOKEN": "anon",
        "EPATH_USE_TF": "0",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    try:
        yield environment, shared["objects"]
    finally:
        server.shutdown()
        server.server_close()
