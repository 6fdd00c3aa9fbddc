"""`bart-hk-summary DIR`: a table of the runs in a folder, such as those of a `--multirun`.

For each run what sets it apart, and its best validation; then median, mean and standard deviation.
With --by KEY the runs that share a value are taken together: --by optimization.lr over seeds.

    bart-hk-train --multirun common.seed=1,2,3 task.data=DATA checkpoint.save_dir=OUT
    bart-hk-summary OUT
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class RunSummary:
    """A finished or interrupted run: its folder's name, its options, its best model's metrics."""

    name: str
    options: dict[str, Any]
    metrics: dict[str, float]
    update: int


def read_runs(folder: Path) -> list[RunSummary]:
    """The runs in a folder, by number where they have one.

    Raises:
        ValueError: there is none, or a file is not a run's.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the checkpoint.save_dir of a --multirun")
    runs = []
    inside = [path for path in folder.iterdir() if (path / "training" / "run.json").is_file()]
    for path in sorted(inside, key=_order):
        about = path / "bart_hk.json"
        try:
            options = json.loads((path / "training" / "run.json").read_text(encoding="utf-8"))
            training = {}
            if about.is_file():  # else no model was written yet
                training = json.loads(about.read_text(encoding="utf-8")).get("training", {})
        except ValueError as error:
            raise ValueError(f"{path}: not a run's files ({error})") from None
        metrics, update = training.get("valid", {}), int(training.get("update", 0))
        runs.append(RunSummary(path.name, options, metrics, update))
    if not runs:
        raise ValueError(
            f"{folder} has no run in a folder of its own; give the checkpoint.save_dir of a "
            "--multirun"
        )
    return runs


def _order(path: Path) -> tuple[bool, int, str]:
    return not path.name.isdigit(), int(path.name) if path.name.isdigit() else 0, path.name


def table(runs: Sequence[RunSummary], by: str | None = None) -> list[list[str]]:
    """Rows of cells, the header first.

    Raises:
        ValueError: no run has the option `by`.
    """
    keys = sorted({key for run in runs for key in run.options})
    apart = [k for k in keys if len({json.dumps(run.options.get(k)) for run in runs}) > 1]
    if by is not None and by not in keys:
        raise ValueError(f"--by {by}: the runs differ in {', '.join(apart) or 'nothing'}")
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    rows = [["run", *apart, "update", *names]]
    for run in runs:
        options = [_cell(run.options.get(key)) for key in apart]
        metrics = [_cell(run.metrics.get(name)) for name in names]
        rows.append([run.name, *options, str(run.update), *metrics])
    groups: dict[str, list[RunSummary]] = {}
    for run in runs:
        groups.setdefault("" if by is None else _cell(run.options.get(by)), []).append(run)
    for value, members in groups.items():
        finished = [run for run in members if run.metrics]
        if len(finished) < 2:
            continue
        for label, function in (
            ("median", statistics.median),
            ("mean", statistics.fmean),
            ("sd", statistics.stdev),
        ):
            cells = [
                _cell(function([run.metrics[name] for run in finished if name in run.metrics]))
                if sum(name in run.metrics for run in finished) > 1
                else ""
                for name in names
            ]
            title = f"{label} of {len(finished)}" + (f", {by}={value}" if by else "")
            rows.append([title, *[""] * len(apart), "", *cells])
    return rows


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; gives its exit code: 0, or 2 with one line on standard error."""
    parts = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        "bart-hk-summary",
        description=f"{parts[0].partition(': ')[2]}\n\n{parts[1]}",
        epilog=f"example:\n\n{parts[2]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--by", metavar="KEY", help="an option whose values are taken apart")
    parser.add_argument("--tsv", action="store_true", help="tabs between cells")
    arguments = parser.parse_args(argv)
    try:
        rows = table(read_runs(arguments.folder), arguments.by)
    except (OSError, ValueError) as error:
        print(f"bart-hk-summary: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if arguments.tsv:
        print("\n".join("\t".join(row) for row in rows))
        return 0
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
