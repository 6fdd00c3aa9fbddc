"""The record of a run: `log.jsonl` in its directory, TensorBoard's files if asked for.

Every line is a JSON object. Lines are the same however often a run was interrupted, apart from the
fields in `TIMING`. Those of event "train" are means over the updates since the last one:

    loss                      per divisor of the criterion: sentences, or target tokens; in nats
    nll_loss                  of tasks that write a text: without label smoothing, per target token
    ppl                       e^nll_loss, which is fairseq's 2^nll_loss
    loss_base2, nll_loss_base2    of these tasks, in bits, as fairseq logs them
    own_loss, soft_loss, hidden_loss    with a teacher (`distillation`): the parts of `loss`
    reg_loss, reg_weight      of task=autoencoding: what latents cost, and its weight
    accuracy                  percent
    gnorm, lr                 of the gradient before clipping; of the last update
    padding                   the share of both sides' positions that held none of the rows' tokens
    rows, tokens, flops       sums; flops as `bart_hk.training.throughput` counts them
    tokens_per_second, mfu    tokens and flops over `seconds`, the latter as a share of the peak
    data_wait                 the share of `seconds` in which an update waited for its batches
"""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

TIMING = ("seconds", "tokens_per_second", "mfu", "data_wait")


class RunLog:
    """Appends to `save_dir/log.jsonl`."""

    def __init__(self, path: Path, size: int, tensorboard: str | None, peak_flops: float) -> None:
        """`size` bytes of an older log are kept: what was written when the state was saved."""
        self._peak_flops = peak_flops
        self._file = open(path, "ab")  # noqa: SIM115 - lives as long as the run
        if self.size < size:
            _log.warning("%s is shorter than when the run was saved: lines are missing", path)
        else:
            self._file.truncate(size)
        self._writer = _event_writer(tensorboard) if tensorboard else None
        self._since = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last call."""
        before, self._since = self._since, time.monotonic()
        return self._since - before

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.seek(0, 2)

    def write(self, event: str, update: int, seconds: float, **values: Any) -> None:
        """One line about `seconds` of work, and one point per number in TensorBoard.

        "waited" of the values, seconds as well, is written as "data_wait".
        """
        whole = max(seconds, 1e-9)
        if "tokens" in values:
            values["tokens_per_second"] = round(values["tokens"] / whole)
        if "flops" in values:
            values["mfu"] = float(f"{values['flops'] / whole / self._peak_flops:.4g}")
        if "waited" in values:
            values["data_wait"] = float(f"{values.pop('waited') / whole:.3g}")
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


def means(sums: dict[str, float]) -> dict[str, float]:
    """What the sums of a task's losses say: losses, perplexity, accuracy."""
    found = {"loss": sums["loss"] / sums["count"]}
    parts = ("own_loss", "soft_loss", "hidden_loss", "reg_loss", "reg_weight")
    found |= {name: sums[name] / sums["count"] for name in parts if name in sums}
    if "nll_loss" in sums:
        found["nll_loss"] = sums["nll_loss"] / sums["tokens"]
        found |= {f"{n}_base2": found[n] / math.log(2) for n in ("loss", "nll_loss")}
        found["ppl"] = math.exp(min(found["nll_loss"], 700.0))  # where floats end
    if "correct" in sums:
        found["accuracy"] = 100 * sums["correct"] / sums.get("predicted", sums["count"])
    return found


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
