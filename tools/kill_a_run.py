"""Kills a training run at random moments and compares it with one that was left alone.

    python tools/kill_a_run.py FOLDER --kills 20 --seed 1 task=denoising task.data=DATA \\
        task.tokens_per_sample=64 dataset.max_tokens=512 dataset.batch_size=null \\
        dataset.length_buckets=[66] dataset.num_workers=2 dataset.validate_interval_updates=0 \\
        model.encoder_layers=1 model.decoder_layers=1 model.encoder_embed_dim=64 \\
        model.encoder_ffn_embed_dim=64 model.decoder_ffn_embed_dim=64 \\
        model.encoder_attention_heads=4 model.decoder_attention_heads=4 model.dropout=0.1 \\
        ema.store_ema=true checkpoint.save_interval_updates=7 common.log_interval=5 \\
        optimization.lr=1e-3 optimization.max_update=60 lr_scheduler.total_num_update=60

The arguments are bart-hk-train's, without checkpoint.save_dir. One run goes through in
FOLDER/whole. Others go on in FOLDER/killed_N: each process gets a SIGKILL at a moment between its
start and the time that a whole run takes, but for every third one, which gets a SIGTERM, and that
is not counted. In the end all files of the models and of the training state must be the same bytes,
and the logs the same lines but for their timing fields. A difference is exit code 1.
"""

import argparse
import itertools
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from bart_hk.training import state
from bart_hk.training.log import TIMING
from bart_hk.training.stopping import EXIT_CODE

# What a finished run leaves beside its log and its state.
MODELS = ("model.safetensors", "heads.safetensors", "bart_hk.json", "config.json")


def command(folder: Path, overrides: list[str]) -> list[str]:
    """The process of a run."""
    train = [sys.executable, "-m", "bart_hk.cli.train", *overrides]
    return [*train, f"checkpoint.save_dir={folder}", "common.no_progress_bar=true"]


def run_whole(folder: Path, overrides: list[str]) -> float:
    """A run without interruption; gives its seconds."""
    begun = time.monotonic()
    done = subprocess.run(command(folder, overrides), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the run failed:\n{done.stderr[-3000:]}")
    return time.monotonic() - begun


def run_and_kill(folder: Path, overrides: list[str], signal_number: int, after: float) -> bool:
    """Starts or continues a run and ends it after some seconds; False where it was done before."""
    process = subprocess.Popen(
        command(folder, overrides), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, said = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal_number)
        _, said = process.communicate()
    allowed = {0, -signal_number, *([EXIT_CODE] if signal_number == signal.SIGTERM else [])}
    if process.returncode not in allowed:
        raise SystemExit(f"{folder}: the run failed:\n{said[-3000:]}")
    name = signal.Signals(signal_number).name
    print(f"{folder.name}: {name} after {after:.1f} s: exit {process.returncode}", file=sys.stderr)
    return process.returncode != 0


def differences(one: Path, other: Path) -> list[str]:
    """What two finished runs do not have in common."""
    found = []
    a, b = files(one), files(other)
    for name in sorted(a.keys() | b.keys()):
        if a.get(name) != b.get(name):
            found.append(f"{name} differs")
    for number, pair in enumerate(zip(log(one), log(other), strict=False), 1):
        if pair[0] != pair[1]:
            found.append(f"log.jsonl, line {number}: {pair[0]} and {pair[1]}")
    if len(log(one)) != len(log(other)):
        found.append(f"log.jsonl has {len(log(one))} and {len(log(other))} lines")
    return found


def files(run: Path) -> dict[str, bytes]:
    """Name -> content of all that a run's parameters are in."""
    arrays, progress = state.peek(run / "training") or ({}, {})
    progress.pop("log_size", None)  # timing fields have more digits or fewer
    content = {name: array.tobytes() for name, array in arrays.items()}
    content["progress"] = json.dumps(progress).encode()
    paths = [run / part / name for part in (".", "last") for name in MODELS]
    return content | {str(p.relative_to(run)): p.read_bytes() for p in paths if p.exists()}


def log(run: Path) -> list[dict]:
    """The lines of a run's log without their timing fields."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def main(argv: list[str] | None = None) -> int:
    summary = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(description=summary[0])
    parser.add_argument("folder", type=Path, help="for the runs; must not exist")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for bart-hk-train")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, help="of the moments; default: drawn, and printed")
    args = parser.parse_intermixed_args(argv)
    if args.folder.exists():
        parser.error(f"{args.folder} exists")
    seed = random.randrange(10**6) if args.seed is None else args.seed
    draw = random.Random(seed)
    whole = args.folder / "whole"
    seconds = run_whole(whole, args.overrides)
    print(f"a whole run takes {seconds:.1f} s; seed {seed}", file=sys.stderr)
    signals = itertools.cycle((signal.SIGKILL, signal.SIGTERM, signal.SIGKILL))
    kills, number, failed = 0, 0, False
    while kills < args.kills:
        killed = args.folder / f"killed_{number}"
        number += 1
        while kills < args.kills:
            sent = next(signals)
            if not run_and_kill(killed, args.overrides, sent, draw.uniform(0, seconds)):
                break
            kills += sent == signal.SIGKILL
        run_whole(killed, args.overrides)
        found = differences(whole, killed)
        failed |= bool(found)
        print("\n".join(found) or f"{killed.name}: the same as {whole.name}")
    print(f"{kills} SIGKILLs, {number} runs: {'DIFFERENT' if failed else 'all the same'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
