"""As much of Hugging Face's hub as huggingface_hub asks for to download a repository."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer

from tests.zoo import server
from tests.zoo.server import Handler

_LARGE = (".safetensors", ".bin", ".pt", ".h5", ".msgpack")  # kept under their SHA-256


@dataclass
class Hub(server.Server):
    """Repositories: name -> revision -> file -> content; and the ones that are gated."""

    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    corrupt: set[str] = field(default_factory=set)  # files that come with a flipped bit

    def downloaded(self) -> set[str]:
        """The files that were asked for in full."""
        return {
            path.rpartition("/")[2]
            for kind, path, _ in self.asked
            if "/resolve/" in path and kind == "GET"
        }


def commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class HubHandler(Handler):
    def do_GET(self) -> None:
        about: Hub = self.server.about
        headers = {key.lower(): value for key, value in self.headers.items()}
        about.asked.append((self.command, self.path, headers))
        path = self.path.partition("?")[0]
        content = self._find(path)
        if about.faults:
            about.faults.pop(0)(self, content or b"")

    do_HEAD = do_GET

    def _find(self, path: str) -> bytes | None:
        about: Hub = self.server.about
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name = api[1] if api else resolve[1] if resolve else ""
        revision = (api[3] if api else resolve[2] if resolve else None) or "main"
        reply = (lambda *args: None) if about.faults else self.answer
        if name in about.gated:
            return reply(403, b"", {"X-Error-Code": "GatedRepo"})
        if name not in about.repositories:
            return reply(401 if api else 404, b"", {"X-Error-Code": "RepoNotFound"})
        revisions = about.repositories[name]
        files = revisions.get(revision) or next(
            (files for files in revisions.values() if commit(files) == revision), None
        )
        if files is None:
            return reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if api and api[2] == "tree":
            return self._json([self._about(*file) for file in files.items()], reply)
        if api:
            siblings = [{"rfilename": file} for file in files]
            facts = {"id": name, "sha": commit(files), "siblings": siblings, "private": False}
            return self._json(facts, reply)
        assert resolve
        content = files.get(resolve[3])
        if content is None:
            return reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        etag = self._about(resolve[3], content)
        said = {
            "X-Repo-Commit": commit(files),
            "ETag": f'"{etag["lfs"]["oid"] if "lfs" in etag else etag["oid"]}"',
            "X-Linked-Size": str(len(content)),
        }
        if resolve[3] in about.corrupt:
            content = bytes([content[0] ^ 1]) + content[1:]
        start = self.headers.get("Range", "")
        if start.startswith("bytes=") and start != "bytes=0-0":
            first = int(start[6:].partition("-")[0])
            said["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            reply(206, content[first:], said)
        else:
            reply(200, content, said)
        return content

    @staticmethod
    def _about(file: str, content: bytes) -> dict:
        """A file as the hub lists it."""
        blob = hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()
        facts: dict = {"type": "file", "path": file, "size": len(content), "oid": blob}
        if file.endswith(_LARGE):
            digest = hashlib.sha256(content).hexdigest()
            facts["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return facts

    @staticmethod
    def _json(content, reply) -> None:
        reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})


def start(hub: Hub) -> ThreadingHTTPServer:
    return server.start(hub, HubHandler)
