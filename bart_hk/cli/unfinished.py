"""An output file that appears when it is complete, and what is needed to go on until then.

    OUT.unfinished/run.json         what the run is, to refuse going on with another
    OUT.unfinished/progress.json    how much of `output` counts
    OUT.unfinished/output           finished rows, in order
    OUT.unfinished/journal.jsonl    finished rows that wait for earlier ones
    OUT                             the output, at the end; the folder is gone then

Whatever a kill interrupts, progress.json is replaced as a whole, what follows in `output` is cut
off, and a half-written line of the journal is dropped.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bart_hk.checkpoint import files

_RUN = "run.json"
_PROGRESS = "progress.json"
_OUTPUT = "output"
_JOURNAL = "journal.jsonl"


class Unfinished:
    """The folder of an unfinished output.

    Attributes:
        rows: how many are finished, in order.
        state: what the caller stored with them.
        waiting: finished rows after those, by number: what the caller stored of each.
    """

    def __init__(self, path: Path, run: Mapping[str, Mapping[str, Any]]) -> None:
        """Begins, or goes on where another process with the same `run` stood.

        Args:
            path: the output, which must not be there yet.
            run: what must be the same to go on: names of things, of each its properties as JSON
                holds them.

        Raises:
            FileExistsError: the output is there.
            ValueError: another run left the folder, or uses it now.
            OSError: it cannot be written.
        """
        self.path, self.folder = path, path.with_name(f"{path.name}.unfinished")
        self.rows, self.state = 0, {}  # type: int, dict[str, Any]
        self.waiting: dict[int, Any] = {}
        if path.exists():
            if not (self.folder / _OUTPUT).exists():  # killed when all was done but this
                shutil.rmtree(self.folder, ignore_errors=True)
            raise FileExistsError(f"{path} is there already; name another file, or remove it")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / "lock", "w")  # noqa: SIM115 - held to the end
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(f"{self.folder} cannot be written: {reason}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ValueError(f"another process is writing {path}") from None
        try:
            self._check(run)
            self._output = open(self.folder / _OUTPUT, "ab")  # noqa: SIM115
            self._journal = open(self.folder / _JOURNAL, "ab")  # noqa: SIM115
            self._go_on()
        except BaseException:
            self.close()
            raise

    def _check(self, run: Mapping[str, Mapping[str, Any]]) -> None:
        path = self.folder / _RUN
        if not path.exists():
            _replace(path, run)
            return
        before, now = files.read_json(path), json.loads(json.dumps(run))
        for thing in sorted({*before, *now}):
            old, new = before.get(thing, {}), now.get(thing, {})
            for name in sorted({*old, *new}):
                if old.get(name) != new.get(name):
                    raise ValueError(
                        f"{self.folder} was begun with another {thing}: {name}="
                        f"{_short(old.get(name))}, and not {_short(new.get(name))}; give the same "
                        "command to go on, or remove the folder"
                    )

    def _go_on(self) -> None:
        """Reads how far the last process came."""
        size = 0
        if (self.folder / _PROGRESS).exists():
            progress = files.read_json(self.folder / _PROGRESS)
            self.rows, size, self.state = progress["rows"], progress["size"], progress["state"]
        if self._output.tell() < size:
            raise ValueError(
                f"{self.folder / _OUTPUT} is shorter than what was written; remove the folder"
            )
        self._output.truncate(size)
        whole = 0
        for line in (self.folder / _JOURNAL).read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            try:
                number, stored = json.loads(line)
            except ValueError:
                break
            whole += len(line)
            if number >= self.rows:
                self.waiting[number] = stored
        self._journal.truncate(whole)

    def keep(self, rows: Mapping[int, Any]) -> None:
        """Stores finished rows, which need not be the next ones."""
        lines = [json.dumps([number, stored]) + "\n" for number, stored in rows.items()]
        self._journal.write("".join(lines).encode())
        _flush(self._journal)
        self.waiting.update(rows)

    def append(self, texts: Sequence[str], state: Mapping[str, Any]) -> None:
        """Writes the next rows in order; `state` is what to remember with them."""
        self._output.write("".join(texts).encode())
        _flush(self._output)
        self.rows += len(texts)
        self.state = dict(state)
        progress = {"rows": self.rows, "size": self._output.tell(), "state": self.state}
        _replace(self.folder / _PROGRESS, progress)
        self.waiting = {n: stored for n, stored in self.waiting.items() if n >= self.rows}
        if not self.waiting:
            self._journal.truncate(0)

    def finish(self, text: str = "") -> None:
        """Ends the output with `text` and gives it its name."""
        self._output.write(text.encode())
        _flush(self._output)
        os.replace(self.folder / _OUTPUT, self.path)
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Releases the folder, which stays."""
        for file in (getattr(self, "_output", None), getattr(self, "_journal", None), self._lock):
            if file is not None:
                file.close()


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _replace(path: Path, content: Any) -> None:
    new = path.with_name(f"{path.name}.new")
    files.write_json(new, content)
    with open(new, "rb") as file:
        os.fsync(file.fileno())
    os.replace(new, path)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
