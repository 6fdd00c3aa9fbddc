"""Downloads: resumed where they broke off, checked for their length, with a progress bar.

urllib alone: huggingface_hub resumes too, but only what its own hub serves.
"""

import contextlib
import http.client
import json
import shutil
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any

from bart_hk.zoo.cache import no_space

_CHUNK = 1 << 20
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_NO_RANGE = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE


class _Interrupted(Exception):
    """A transfer broke off and may go on; `wait` is how long the server asks to wait."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if req.type == "https" and not newurl.lower().startswith("https:"):
            raise urllib.error.URLError(f"it leads from https to {newurl}, which is not safe")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """http and https alone: a redirection can reach no local file."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        _Redirects,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def fetch(
    url: str,
    path: Path,
    *,
    name: str | None = None,
    timeout: float = 30.0,
    attempts: int = 5,
    pause: float = 1.0,
) -> None:
    """Download `url` to `path`, going on where an earlier call stopped.

    What the server said about the file is kept in `path`.json: the rest is asked for only as long
    as the file there is the same one, else it is downloaded anew.

    Args:
        name: what the progress bar calls it; the file's name if None.
        timeout: seconds without a byte after which a connection is given up.
        attempts: how many times in a row may bring nothing new.
        pause: seconds before the second attempt; twice as many before each further one.

    Raises:
        FileNotFoundError: the server has no such file.
        ConnectionError: it cannot be reached, refuses, or breaks off again and again.
        OSError: no space.
    """
    failures, furthest = 0, 0
    while True:
        try:
            _transfer(url, path, name or path.name, timeout)
            return
        except _Interrupted as error:
            here = path.stat().st_size if path.exists() else 0
            failures = 1 if here > furthest else failures + 1
            furthest = max(here, furthest)
            if failures >= attempts:
                raise ConnectionError(f"{url} failed {failures} times in a row: {error}") from None
            time.sleep(max(error.wait, pause * 2 ** (failures - 1)))


def _transfer(url: str, path: Path, name: str, timeout: float) -> None:
    """One attempt. What it brought stays in `path` when it raises _Interrupted."""
    facts = _facts(path, url)
    have = path.stat().st_size if facts else 0
    if have and have == facts.get("length"):
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "bart_hk"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": facts["validator"]}
    with _open(url, headers, timeout, path) as response:
        told = response.headers
        validator, length = _validator(told), _whole_number(told.get("Content-Length"))
        if response.status == HTTPStatus.PARTIAL_CONTENT and have:
            first, length = _content_range(told.get("Content-Range", ""))
            same = first == have and validator == facts["validator"]
            if not same or length is None or facts["length"] not in (None, length):
                forget(path)
                raise _Interrupted("the file changed while it was downloaded")
        elif response.status == HTTPStatus.OK:
            have = 0  # the whole file, from its beginning
        else:
            raise ConnectionError(f"{url} answers {response.status} {response.reason}")
        if length is not None and length - have > shutil.disk_usage(path.parent).free:
            raise no_space(path.parent, url, length - have)
        with open(path, "ab" if have else "wb") as file:
            if not have:
                _remember(path, {"url": url, "validator": validator, "length": length})
            _copy(response, file, name, have, length)


def _open(url: str, headers: dict[str, str], timeout: float, path: Path) -> Any:
    try:
        return _opener().open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        said = f"{url} answers {error.code} {error.reason}"
        if error.code == _NO_RANGE and "Range" in headers:
            forget(path)
            raise _Interrupted("the file changed while it was downloaded") from None
        if error.code in _TRY_AGAIN:
            wait = _whole_number(error.headers.get("Retry-After")) or 0
            raise _Interrupted(said, min(wait, 60)) from None
        if error.code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            raise FileNotFoundError(said) from None
        raise ConnectionError(said) from None
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, (TimeoutError, ConnectionResetError)):
            raise _Interrupted(_reason(reason)) from None
        raise ConnectionError(f"{url} cannot be reached: {_reason(reason)}") from None
    except (http.client.InvalidURL, ValueError) as error:
        raise ConnectionError(f"{url} is no address: {error}") from None
    except (http.client.HTTPException, OSError) as error:  # before it answered
        raise _Interrupted(_reason(error)) from None


def _copy(response: Any, file: Any, name: str, start: int, length: int | None) -> None:
    from tqdm.auto import tqdm

    done = start
    bar = tqdm(total=length, initial=start, unit="B", unit_scale=True, desc=f"Downloading {name}")
    with bar:
        while True:
            try:
                chunk = response.read1(_CHUNK)
            except (http.client.HTTPException, OSError) as error:
                raise _Interrupted(f"{_reason(error)} after {done} bytes") from None
            if not chunk:
                break
            file.write(chunk)
            done += len(chunk)
            bar.update(len(chunk))
    if length is not None and done != length:
        raise _Interrupted(f"it ends after {done} of {length} bytes")


# --- What a server says about a file --------------------------------------------------------------


def _validator(headers: Any) -> str | None:
    """What tells versions of a file apart: a strong ETag, or the time of its last change."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _whole_number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 20 else None


def _content_range(text: str) -> tuple[int | None, int | None]:
    """(first byte, length of the whole) of "bytes 100-999/1000"; None for what it does not say."""
    unit, _, rest = text.partition(" ")
    span, _, length = rest.partition("/")
    if unit != "bytes":
        return None, None
    return _whole_number(span.partition("-")[0]), _whole_number(length)


def _remember(path: Path, facts: dict[str, Any]) -> None:
    path.with_name(path.name + ".json").write_text(json.dumps(facts), encoding="utf-8")


def _facts(path: Path, url: str) -> dict[str, Any]:
    """What is known of the part in `path`; {} if it is not there or cannot be gone on with."""
    try:
        facts = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
        usable = path.is_file() and facts["url"] == url and isinstance(facts["validator"], str)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return facts if usable else {}


def forget(path: Path) -> None:
    """Remove a part and what is known of it."""
    for file in (path, path.with_name(path.name + ".json")):
        with contextlib.suppress(FileNotFoundError):
            file.unlink()


def _reason(error: Any) -> str:
    """Why, in a few words: "Connection refused"."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return "no answer in time" if isinstance(error, TimeoutError) else str(text).splitlines()[0]
