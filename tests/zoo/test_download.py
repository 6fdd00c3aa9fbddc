"""Downloads from a server that is well, and from one that is not."""

import functools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bart_hk.zoo import download
from tests.zoo import server as servers

CONTENT = random.Random(0).randbytes(300_000)
fetch = functools.partial(download.fetch, pause=0.01, timeout=5)


@pytest.fixture
def part(tmp_path, server) -> Path:
    server.files["/model.pt"] = CONTENT
    return tmp_path / "model.pt.part"


def refused(kind: type[Exception], match: str, *arguments, **options) -> str:
    with pytest.raises(kind, match=match) as caught:
        fetch(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_download(server, part):
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == CONTENT
    assert server.ranges_asked() == [None]


def test_its_progress_is_shown(server, part, capsys):
    fetch(server.url("/model.pt"), part, name="model.pt")
    shown = capsys.readouterr().err
    assert "Downloading model.pt: 100%" in shown
    assert "300k/300k" in shown


def test_a_complete_part_is_not_asked_for_again(server, part):
    fetch(server.url("/model.pt"), part)
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_a_slow_server_is_waited_for(server, part):
    server.faults = [servers.slow(pieces=6, pause=0.1)]
    fetch(server.url("/model.pt"), part, timeout=0.3)  # less than all of it takes
    assert part.read_bytes() == CONTENT
    assert len(server.asked) == 1


# --- Broken connections ---------------------------------------------------------------------------


def test_a_dropped_connection_is_resumed(server, part):
    server.faults = [servers.drop(100_000), servers.drop(50_000)]
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == CONTENT
    assert server.ranges_asked() == [None, "bytes=100000-", "bytes=150000-"]
    assert all("if-range" in headers for _, _, headers in server.asked[1:])


def test_many_drops_are_fine_as_long_as_something_comes(server, part):
    server.faults = [servers.drop(10_000)] * 12
    fetch(server.url("/model.pt"), part, attempts=2)
    assert part.read_bytes() == CONTENT
    assert len(server.asked) == 13


def test_without_ranges_it_begins_anew(server, part):
    server.ranges = False
    server.faults = [servers.drop(100_000)]
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == CONTENT
    assert server.ranges_asked() == [None, "bytes=100000-"]


def test_nothing_is_resumed_that_could_be_another_file(server, part):
    """A server that gives no ETag, or only a weak one."""
    for etag in (None, 'W/"weak"'):
        server.etag = lambda content, etag=etag: etag
        server.asked.clear()
        server.faults = [servers.drop(100_000)]
        fetch(server.url("/model.pt"), part)
        assert part.read_bytes() == CONTENT
        assert server.ranges_asked() == [None, None]
        download.forget(part)


def test_a_file_that_changes_meanwhile_is_downloaded_anew(server, part):
    changed = CONTENT[::-1]

    def drop_and_change(handler, content):
        servers.drop(100_000)(handler, content)
        server.files["/model.pt"] = changed

    server.faults = [drop_and_change]
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == changed


def test_a_server_that_ignores_if_range_is_found_out(server, part):
    """It answers 206 with the rest of another file."""
    changed = CONTENT[::-1]

    def rest_of_another(handler, content):
        span = f"bytes 100000-{len(changed) - 1}/{len(changed)}"
        handler.answer(206, changed[100_000:], {"Content-Range": span, "ETag": '"another"'})
        server.files["/model.pt"] = changed

    server.faults = [servers.drop(100_000), rest_of_another]
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == changed


@pytest.mark.parametrize(
    "span", ["bytes 5-299999/300000", "bytes 100000-299999/*", "bytes */300000", "pages 1-2/3", ""]
)
def test_another_range_than_the_one_asked_for(server, part, span):
    def answer(handler, content):
        etag = server.etag(content)
        handler.answer(206, content[100_000:], {"Content-Range": span, "ETag": etag})

    server.faults = [servers.drop(100_000), answer]
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == CONTENT
    assert server.ranges_asked()[-1] is None


def test_a_part_that_is_too_long_is_not_kept(server, part):
    server.faults = [servers.drop(100_000)]
    refused(ConnectionError, "failed 1 times", server.url("/model.pt"), part, attempts=1)
    with open(part, "ab") as file:
        file.write(bytes(400_000))
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == CONTENT


def test_a_part_of_another_address_is_not_gone_on_with(server, part):
    server.files["/other.pt"] = CONTENT[::-1]
    server.faults = [servers.drop(100_000)]
    refused(ConnectionError, "failed 1 times", server.url("/model.pt"), part, attempts=1)
    fetch(server.url("/other.pt"), part)
    assert part.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("note", ["", "{", "[]", '{"url": 1}', "null", '{"validator": null}'])
def test_a_damaged_note_beside_a_part_means_a_new_beginning(server, part, note):
    part.write_bytes(b"rubbish")
    part.with_name(part.name + ".json").write_text(note)
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == CONTENT


def test_a_later_call_goes_on(server, part):
    server.faults = [servers.drop(200_000), servers.hang_up]
    refused(ConnectionError, "failed 2 times", server.url("/model.pt"), part, attempts=2)
    assert part.read_bytes() == CONTENT[:200_000]
    server.asked.clear()
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == CONTENT
    assert server.ranges_asked() == ["bytes=200000-"]


def test_a_killed_process_is_gone_on_with(server, part):
    server.faults = [servers.stall(20, after=200_000)]
    program = (
        "import sys; from pathlib import Path; from bart_hk.zoo import download\n"
        "download.fetch(sys.argv[1], Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, server.url("/model.pt"), str(part)]
    child = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size > 100_000):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    have = part.stat().st_size
    server.asked.clear()
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == CONTENT
    assert server.ranges_asked() == [f"bytes={have}-"]


@pytest.mark.parametrize("fault", [servers.hang_up, servers.drop(0), servers.raw(b"nonsense\r\n")])
def test_a_server_that_never_answers_is_given_up(server, part, fault):
    server.faults = [fault] * 3
    message = refused(ConnectionError, "failed 3 times", server.url("/model.pt"), part, attempts=3)
    assert server.url("/model.pt") in message
    assert len(server.asked) == 3


@pytest.mark.parametrize("after", [None, 100_000])
def test_a_server_that_falls_silent_is_given_up(server, part, after):
    server.faults = [servers.stall(3, after)] * 3
    began = time.monotonic()
    url = server.url("/model.pt")
    refused(ConnectionError, "no answer in time", url, part, attempts=2, timeout=0.2)
    assert time.monotonic() - began < 2.5


# --- Lengths that lie -----------------------------------------------------------------------------


def test_more_is_promised_than_comes(server, part):
    server.faults = [servers.claim(len(CONTENT) + 10)] * 9
    url = server.url("/model.pt")
    refused(ConnectionError, "ends after 300000 of 300010 bytes", url, part, attempts=3)


def test_less_is_promised_than_comes(server, part):
    """What is too much is not taken; an archive's own checksum then tells."""
    server.faults = [servers.claim(1000)]
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == CONTENT[:1000]


@pytest.mark.parametrize("length", ["-5", "many", "1e9", "9" * 40])
def test_a_length_that_is_none(server, part, length):
    server.faults = [servers.claim(length)]
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == CONTENT


def test_without_a_length(server, part):
    server.faults = [servers.chunked()]
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == CONTENT


def test_without_a_length_and_cut_short(server, part):
    server.faults = [servers.chunked(upto=1000)]
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == CONTENT
    assert len(server.asked) == 2


# --- Answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [404, 410])
def test_not_found_is_final(server, part, code):
    server.faults = [servers.status(code)]
    refused(FileNotFoundError, f"answers {code} ", server.url("/model.pt"), part)
    assert len(server.asked) == 1
    assert not part.exists()


@pytest.mark.parametrize("code", [401, 403, 416, 451])
def test_a_refusal_is_final(server, part, code):
    server.faults = [servers.status(code)]
    refused(ConnectionError, f"answers {code} ", server.url("/model.pt"), part)
    assert len(server.asked) == 1


@pytest.mark.parametrize("code", [500, 502, 503, 504, 429])
def test_trouble_on_the_servers_side_is_tried_again(server, part, code):
    server.faults = [servers.status(code)] * 2
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == CONTENT
    server.faults = [servers.status(code)] * 9
    download.forget(part)
    refused(
        ConnectionError,
        f"failed 3 times .* answers {code}",
        server.url("/model.pt"),
        part,
        attempts=3,
    )


def test_retry_after_is_heeded(server, part, monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    server.faults = [
        servers.status(503, {"Retry-After": "7"}),
        servers.status(429, {"Retry-After": "100000"}),
        servers.status(503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
    ]
    fetch(server.url("/model.pt"), part, pause=1)
    assert waited == [7, 60, 4]


def test_redirections_are_followed(server, part):
    server.faults = [servers.status(302, {"Location": server.url("/model.pt")})]
    fetch(server.url("/short"), part)
    assert part.read_bytes() == CONTENT


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirections_reach_no_files(server, part, target):
    server.faults = [servers.status(302, {"Location": target})]
    refused(ConnectionError, "http", server.url("/short"), part)
    assert not part.exists()


def test_redirections_do_not_leave_https():
    request = download.urllib.request.Request("https://example.org/a")
    handler = download._Redirects()
    with pytest.raises(download.urllib.error.URLError, match="from https to http://example.org/b"):
        handler.redirect_request(request, None, 302, "Found", {}, "http://example.org/b")
    assert handler.redirect_request(request, None, 302, "Found", {}, "https://example.org/b")


# --- No way there, no room here -------------------------------------------------------------------


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Nobody listens there."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


def test_no_way_to_the_server(tmp_path, closed_port):
    began = time.monotonic()
    url = f"http://127.0.0.1:{closed_port}/x"
    message = refused(ConnectionError, "cannot be reached: Connection refused", url, tmp_path / "x")
    assert url in message
    assert time.monotonic() - began < 1  # no use in trying again


def test_a_host_that_does_not_exist(tmp_path):
    refused(
        ConnectionError,
        "no-such-host.invalid/x cannot be reached: ",
        "http://no-such-host.invalid/x",
        tmp_path / "x",
    )


@pytest.mark.parametrize("url", ["http://", "http://[x", "http://127.0.0.1:port/x"])
def test_no_address(tmp_path, url):
    refused(ConnectionError, "is no address|no host given", url, tmp_path / "x", attempts=1)


def test_too_little_space_is_known_before(server, part, monkeypatch):
    usage = shutil.disk_usage(part.parent)._replace(free=299_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    message = refused(OSError, "no space in the cache", server.url("/model.pt"), part)
    assert "needs 300.0 kB and 300.0 kB are free" in message
    assert "cache_dir= or $BART_HK_CACHE" in message
    assert not part.exists()


def test_room_for_the_rest_is_enough(server, part, monkeypatch):
    server.faults = [servers.drop(200_000), servers.hang_up]
    refused(ConnectionError, "failed", server.url("/model.pt"), part, attempts=2)
    usage = shutil.disk_usage(part.parent)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == CONTENT


def test_what_fits_on_a_full_disk_is_kept(server, part):
    """The disk is full in the middle: afterwards the rest is enough."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            fetch(server.url("/model.pt"), part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 0 < os.path.getsize(part) <= 200_000
    assert json.loads(part.with_name(part.name + ".json").read_text())["length"] == 300_000
    fetch(server.url("/model.pt"), part)
    assert part.read_bytes() == CONTENT
    assert server.ranges_asked()[1] is not None
