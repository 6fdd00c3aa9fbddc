"""Signals that end a run. SIGTERM, as a scheduler sends it before it takes a machine away: save
first, then end. SIGINT, a user's Ctrl-C: end, but not half-way through what must be whole."""

import contextlib
import signal
import threading
from collections.abc import Iterator

EXIT_CODE = 128 + signal.SIGTERM  # a shell's for a process that this signal ended


@contextlib.contextmanager
def catching_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets while the block runs. A second one ends the process as ever.

    Only the main thread may handle signals; in another one the event is never set.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: object) -> None:
        del number, frame
        asked.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Puts SIGINT off until the block has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
    if asked.is_set():
        signal.raise_signal(signal.SIGINT)
