"""A loopback HTTP server that serves files, and misbehaves where a test asks it to."""

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Handler", bytes], None]


@dataclass
class Server:
    """What it serves, and what it was asked.

    Attributes:
        files: path -> content.
        faults: answers that the next requests get instead of a proper one, one each.
        ranges: whether it knows `Range`.
        etag: what it says of a content; None for nothing.
        asked: per request its method, path and headers.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[Answer] = field(default_factory=list)
    ranges: bool = True
    etag: Callable[[bytes], str | None] = lambda content: f'"{hashlib.md5(content).hexdigest()}"'
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    address: str = ""

    def url(self, path: str) -> str:
        return self.address + path

    def ranges_asked(self) -> list[str | None]:
        return [headers.get("range") for _, _, headers in self.asked]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any
    close_connection = True

    def do_GET(self) -> None:
        about: Server = self.server.about
        headers = {key.lower(): value for key, value in self.headers.items()}
        about.asked.append((self.command, self.path, headers))
        path = self.path.partition("?")[0]
        content = about.files.get(path)
        if about.faults:
            about.faults.pop(0)(self, content or b"")
        elif content is None:
            self.answer(404, b"no such file")
        else:
            self.serve(content)

    do_HEAD = do_GET

    def serve(self, content: bytes) -> None:
        """The file, or the part of it that is asked for."""
        about: Server = self.server.about
        etag = about.etag(content)
        said = {"ETag": etag} if etag else {}
        start = self.headers.get("Range", "")
        same = self.headers.get("If-Range") in (None, etag)
        if about.ranges and start.startswith("bytes=") and same:
            first = int(start[6:].partition("-")[0])
            if first >= len(content):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            span = f"bytes {first}-{len(content) - 1}/{len(content)}"
            return self.answer(206, content[first:], {"Content-Range": span, **said})
        return self.answer(200, content, said)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.begin(status, len(body), headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def begin(self, status: int, length: int | None, headers: dict[str, str] | None = None) -> None:
        """Status and headers, without the body."""
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


# --- Ways to misbehave ----------------------------------------------------------------------------


def status(code: int, headers: dict[str, str] | None = None) -> Answer:
    return lambda handler, content: handler.answer(code, b"sorry", headers)


def drop(after: int) -> Answer:
    """Announce all of what was asked for and close the connection after some bytes of it."""

    def answer(handler: Handler, content: bytes) -> None:
        etag = handler.server.about.etag(content)
        headers = {"ETag": etag} if etag else {}
        asked = handler.headers.get("Range")
        first = int(asked[6:].partition("-")[0]) if asked and handler.server.about.ranges else 0
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        handler.begin(206 if first else 200, len(content) - first, headers)
        handler.wfile.write(content[first : first + after])

    return answer


def hang_up(handler: Handler, content: bytes) -> None:
    """Close the connection without a word."""


def claim(length: int | str) -> Answer:
    """Announce another length than the content's."""

    def answer(handler: Handler, content: bytes) -> None:
        handler.begin(200, None, {"Content-Length": str(length), "ETag": '"x"'})
        handler.wfile.write(content)

    return answer


def slow(pieces: int, pause: float) -> Answer:
    """The whole content, piece by piece."""

    def answer(handler: Handler, content: bytes) -> None:
        handler.begin(200, len(content))
        step = -(-len(content) // pieces)
        for start in range(0, len(content), step):
            handler.wfile.write(content[start : start + step])
            handler.wfile.flush()
            time.sleep(pause)

    return answer


def stall(seconds: float, after: int | None = None) -> Answer:
    """Say nothing for a while: at once, or after some bytes."""

    def answer(handler: Handler, content: bytes) -> None:
        if after is not None:
            handler.begin(200, len(content), {"ETag": handler.server.about.etag(content)})
            handler.wfile.write(content[:after])
            handler.wfile.flush()
        time.sleep(seconds)

    return answer


def chunked(upto: int | None = None) -> Answer:
    """Without a length; cut short after `upto` bytes."""

    def answer(handler: Handler, content: bytes) -> None:
        handler.begin(200, None, {"Transfer-Encoding": "chunked"})
        part = content[:upto]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        if upto is None:
            handler.wfile.write(b"0\r\n\r\n")

    return answer


def raw(reply: bytes) -> Answer:
    """Bytes that need not be HTTP."""
    return lambda handler, content: handler.wfile.write(reply) and None


def start(about: Server, handler: type[Handler] = Handler) -> ThreadingHTTPServer:
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    http.about = about  # type: ignore[attr-defined]
    http.handle_error = lambda *args: None  # type: ignore[method-assign]
    about.address = f"http://127.0.0.1:{http.server_address[1]}"
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return http
