"""The record of a run: `log.jsonl` in its directory, TensorBoard's files if asked for.

Every line is a JSON object. Lines are the same however often a run was interrupted, apart from the
fields in `TIMING`.
"""

import json
import time
from pathlib import Path
from typing import Any

TIMING = ("seconds", "tokens_per_second")


class RunLog:
    """Appends to `save_dir/log.jsonl`."""

    def __init__(self, path: Path, size: int, tensorboard: str | None) -> None:
        """`size` bytes of an older log are kept: what was written when the state was saved."""
        self._file = open(path, "ab")  # noqa: SIM115 - lives as long as the run
        self._file.truncate(size)
        self._writer = _event_writer(tensorboard) if tensorboard else None
        self._since = time.monotonic()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.seek(0, 2)

    def write(self, event: str, update: int, **values: Any) -> None:
        """One line, and one point per number in TensorBoard."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        if "tokens" in values:
            values["tokens_per_second"] = round(values["tokens"] / max(seconds, 1e-9))
        line = {"event": event, "update": update, **values, "seconds": round(seconds, 3)}
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OSError(f"cannot write {self._file.name}: {error.strerror}") from None
        if self._writer is not None:
            _write_points(self._writer, event, update, values)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def _event_writer(folder: str) -> Any:
    try:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise ValueError(
            "common.tensorboard_logdir needs TensorBoard: pip install 'bart_hk[train]'"
        ) from None
    return EventFileWriter(folder)


def _write_points(writer: Any, event: str, update: int, values: dict[str, Any]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
    points = [Summary.Value(tag=f"{event}/{k}", simple_value=v) for k, v in numbers.items()]
    writer.add_event(Event(wall_time=time.time(), step=update, summary=Summary(value=points)))
