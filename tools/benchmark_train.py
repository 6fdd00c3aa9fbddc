"""Measures a training step against the peers, in one run: `python tools/benchmark.py train`.

bart.mini's shapes (4 + 4 layers, width 256, feed-forward 1024, vocabulary 8192), random weights,
float32, CPU, a batch of 32 x 128 source and target ids: loss, gradient, clipping and Adam. Peers:
Hugging Face transformers on torch and on Flax (`benchmark_train_peers.py`), each in a process of
its own with the same number of threads. Before anything is timed, the losses of the first three
updates without dropout must agree. Then the peers take turns. `--profile` prints which operations
of ours take the time, and the share of them that is matrix multiplication. Run it on a quiet
machine.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("bart_hk", "torch", "flax")
ROWS, LENGTH, VOCABULARY = 32, 128, 8192
TOLERANCE = 1e-4  # of the losses, relative
CHECKED = 3  # updates whose losses are compared
PAUSE = 0.3  # seconds for a peer's spinning threads to fall asleep before the next one's turn
SCRIPT = str(ROOT / "tools" / "benchmark_train_peers.py")


class Process:
    """A peer in its own process."""

    def __init__(
        self,
        name: str,
        python: str,
        folder: Path,
        threads: int,
        dropout: float,
        script: str = SCRIPT,
    ) -> None:
        self.name = name
        self._log = (folder / f"{name}.log").open("w+")
        self._process = subprocess.Popen(
            [python, script, name, folder, str(threads), str(dropout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        self.versions: dict[str, str] = self._answer()["versions"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise SystemExit(f"{self.name} ended:\n{self._log.read()[-3000:]}")
        return json.loads(line)

    def ask(self, what: str) -> dict[str, Any]:
        """Has it do something once: "step" or "profile"."""
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends it: its input ends."""
        self._process.communicate()
        self._log.close()


def prepare(folder: Path, python: str, threads: int) -> None:
    """The model and a batch in `folder`, unless an earlier run left them there."""
    if (folder / "batch.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
    subprocess.run([python, SCRIPT, "make", folder, str(threads), "0"], check=True, env=quiet)
    rng = np.random.default_rng(0)
    source, target = (rng.integers(4, VOCABULARY, (ROWS, LENGTH)) for _ in range(2))
    for ids in (source, target):
        ids[:, 0], ids[:, -1] = 0, 2
    previous = np.roll(target, 1, axis=1)  # </s> <s> ...
    batch = {"src_tokens": source, "prev_output_tokens": previous, "target": target}
    (folder / "batch.json").write_text(json.dumps({k: v.tolist() for k, v in batch.items()}))


def check_same(losses: dict[str, list[float]]) -> None:
    """Ends the run where two peers did not compute the same."""
    first, *others = losses
    for name in others:
        if not np.allclose(losses[name], losses[first], rtol=TOLERANCE, atol=0):
            raise SystemExit(f"the losses differ: {first} {losses[first]}, {name} {losses[name]}")


def products(operations: dict[str, float]) -> float:
    """The seconds of matrix products among a profile's. XLA's CPU compiler calls them by the
    library that makes them, YNNPACK, or dot_general; additions that are fused into them count."""
    return sum(s for name, s in operations.items() if name.startswith(("ynn_", "dot")))


def measure(args: argparse.Namespace, dropout: float, names: list[str]) -> dict[str, Any]:
    """Losses, versions, seconds of every round and, where asked for, our profile."""
    python = {"bart_hk": sys.executable}
    found: dict[str, Any] = {"losses": {}, "seconds": {name: [] for name in names}}
    processes = [
        Process(n, python.get(n, args.peers_python), args.folder, args.threads, dropout)
        for n in names
    ]
    for process in processes:
        print(f"dropout {dropout}: {process.name} warms up", file=sys.stderr)
        found["losses"][process.name] = [process.ask("step")["loss"] for _ in range(CHECKED)]
    if not dropout:
        check_same(found["losses"])
    for number in range(args.rounds):
        turn = number % len(processes)
        for process in processes[turn:] + processes[:turn]:
            time.sleep(PAUSE)
            found["seconds"][process.name].append(process.ask("step")["seconds"])
    found["versions"] = {p.name: p.versions for p in processes}
    if args.profile and "bart_hk" in names:
        found["profile"] = processes[names.index("bart_hk")].ask("profile")["profile"]
    for process in processes:
        process.close()
    return found


def report(results: dict[str, Any], threads: int) -> str:
    """What the run found, as Markdown."""
    lines = []
    for dropout, found in results.items():
        versions = sorted({f"{n} {v}" for p in found["versions"].values() for n, v in p.items()})
        lines += [
            f"Dropout {dropout}; {threads} threads, Python {platform.python_version()}, "
            f"{', '.join(versions)}.",
            "",
            "| peer | median | fastest to slowest | tokens/s | times bart_hk |",
            "|---|--:|--:|--:|--:|",
        ]
        medians = {name: statistics.median(s) for name, s in found["seconds"].items()}
        for name, seconds in found["seconds"].items():
            ratio = f"{medians[name] / medians['bart_hk']:.2f}" if "bart_hk" in medians else ""
            lines.append(
                f"| {name} | {medians[name]:.3f} s | {min(seconds):.3f} to {max(seconds):.3f} s | "
                f"{ROWS * LENGTH / medians[name]:.0f} | {ratio} |"
            )
        lines.append("")
        if operations := found.get("profile"):
            total, part = sum(operations.values()), products(operations)
            lines += [
                f"Matrix products are {100 * part / total:.0f} % of our time. The largest:",
                "",
            ]
            largest = sorted(operations.items(), key=lambda item: -item[1])[:25]
            lines += [f"    {seconds:7.3f} s  {name}" for name, seconds in largest]
            lines.append("")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmark.py train", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--only", metavar="PEER,...", help=f"of {', '.join(PEERS)}; or all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "benchmark" / "train")
    parser.add_argument("--peers-python", default=str(ROOT / ".venv-peers" / "bin" / "python"))
    args = parser.parse_args(argv)
    names = args.only.split(",") if args.only else list(PEERS)
    for name in names:
        if name not in PEERS:
            parser.error(f"no peer {name!r}; there are {', '.join(PEERS)}")
    prepare(args.folder, args.peers_python, args.threads)
    results = {str(dropout): measure(args, dropout, names) for dropout in args.dropout}
    (args.folder / "results.json").write_text(json.dumps(results, indent=1))
    print(report(results, args.threads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
