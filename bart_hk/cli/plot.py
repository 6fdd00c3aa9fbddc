"""`bart-hk-plot RUN_DIR`: draws the log of a training run, `RUN_DIR/log.jsonl`, as a PNG.

`bart-hk-plot attention MODEL "source" ["target"]` draws where a model looks (`plot_attention`),
`bart-hk-plot latent RUN_DIR` where texts lie in a bottleneck (`plot_latent`).

One panel for each quantity that the log has, over updates: what was measured in training as a line,
on the validation file as points, the best model's point filled. Needs matplotlib, from
`bart_hk[train]`.
"""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Panel -> its unit; those that the log lacks are left out.
PANELS = {
    "loss": "nats",
    "nll_loss": "nats per target token",
    "ppl": "",
    "accuracy": "%",
    "reg_loss": "nats, or a discrepancy",
    "reg_weight": "",
    "gnorm": "",
    "lr": "",
    "padding": "share of positions",
    "tokens_per_second": "",
    "mfu": "share of the peak FLOP/s",
}
_LOGARITHMIC = ("ppl", "gnorm")


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log.

    Raises:
        ValueError, OSError: there is none, it is empty, or a line is not one of a run's.
    """
    path = run / "log.jsonl" if run.is_dir() else run
    if not path.exists():
        raise ValueError(
            f"{path} does not exist; give the checkpoint.save_dir of a run of bart-hk-train"
        )
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        try:
            line = json.loads(text)
            fits = line["event"] in ("train", "valid") and isinstance(line["update"], int)
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise ValueError(f"{path}, line {number} is not a line of a training run's log")
        lines.append(line)
    if not lines:
        raise ValueError(f"{path} is empty: the run has logged nothing yet")
    return lines


def points(lines: list[dict[str, Any]], event: str, name: str) -> list[tuple[int, float, bool]]:
    """(update, value, whether it is the best model's) of every line that has the quantity."""
    return [
        (line["update"], float(line[name]), bool(line.get("best")))
        for line in lines
        if line["event"] == event
        and isinstance(line.get(name), int | float)
        and math.isfinite(line[name])
    ]


def plot(lines: list[dict[str, Any]], title: str) -> Any:
    """The matplotlib figure of a log.

    Raises:
        ValueError: nothing in the log can be drawn, or matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("matplotlib is not installed: pip install 'bart_hk[train]'") from None
    known = {"loss", *PANELS, *(k for line in lines if line["event"] == "valid" for k in line)}
    names = [*PANELS, *sorted(known - {*PANELS, "seconds", "update", "best"})]
    data = {name: [points(lines, event, name) for event in ("train", "valid")] for name in names}
    data = {name: both for name, both in data.items() if any(both)}
    if not data:
        raise ValueError("the log has no number to draw")
    columns = min(3, len(data))
    rows = math.ceil(len(data) / columns)
    figure = Figure(figsize=(4.8 * columns, 3.0 * rows), layout="constrained")
    figure.suptitle(title)
    for place, (name, (trained, validated)) in enumerate(data.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        if trained:
            axes.plot([p[0] for p in trained], [p[1] for p in trained], label="training")
        if validated:
            best = max((p for p in validated if p[2]), default=None)
            axes.plot(
                [p[0] for p in validated],
                [p[1] for p in validated],
                "o-",
                markerfacecolor="white",
                label="validation",
            )
            if best:
                axes.plot(*best[:2], "o", color=axes.lines[-1].get_color())
        values = [p[1] for p in (*trained, *validated)]
        if name in _LOGARITHMIC and min(values) > 0:
            axes.set_yscale("log")
        axes.set_title(f"{name} ({PANELS[name]})" if PANELS.get(name) else name, fontsize=10)
        axes.set_xlabel("updates")
        axes.grid(alpha=0.3)
        if trained and validated:
            axes.legend()
    return figure


def main(argv: list[str] | None = None) -> None:
    """The console script."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["attention"]:
        from bart_hk.cli import plot_attention  # a log is drawn without jax

        with _one_line_errors(Path("attention.png")):
            plot_attention.main(argv[1:])
        return
    if argv[:1] == ["latent"]:
        from bart_hk.cli import plot_latent

        with _one_line_errors(Path("latent.png")):
            plot_latent.main(argv[1:])
        return
    summary = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        "bart-hk-plot", description=summary[0].partition(": ")[2], epilog=" ".join(summary[1:])
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="checkpoint.save_dir of a run")
    parser.add_argument("-o", "--output", type=Path, help="default: RUN_DIR/log.png")
    args = parser.parse_args(argv)
    folder = args.run if args.run.is_dir() else args.run.parent
    output = args.output or folder / "log.png"
    with _one_line_errors(output):
        plot(read_log(args.run), folder.resolve().name).savefig(output, dpi=110)
    print(output)


@contextlib.contextmanager
def _one_line_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = error.filename or (output if error.strerror else "")
        _fail(f"{what}: {error.strerror}" if what else str(error), 1)
    except ValueError as error:
        _fail(str(error), 2)


def _fail(message: str, code: int) -> None:
    print(f"bart-hk-plot: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
