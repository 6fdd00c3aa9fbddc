"""Measures fine-tuning against a plain loop over Hugging Face's torch model, in one run:
`python tools/benchmark.py finetune`.

A sentence classifier of bart.mini's shapes (4 + 4 layers, width 256, feed-forward 1024, about 8,000
symbols), random weights, float32, CPU, dropout 0.1, gradients clipped to a norm of 1, Adam: epochs
over 1,024 sentences and parts of sentences of film reviews, as many tokens as SST-2's have, in
batches of 32. Both have the same batches, of rows of like length: torch pads each to its longest
row, ours (`bart_hk.training.loop`, as `bart-hk-train` runs it) to its bucket, and an epoch's time
has everything in it, making the batches as well. `bart_hk-returning` is ours with
`common.keep_memory=false`. Each runs in a process of its own with the same number of threads.
Before anything is timed, the losses of the first three updates without dropout must agree. Then,
after an epoch to warm up, they take turns. Run it on a quiet machine.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_train import PAUSE, ROOT, Process, check_same

PEERS = ("bart_hk", "bart_hk-returning", "torch")
SCRIPT = str(ROOT / "tools" / "benchmark_finetune_peers.py")
ROWS, BATCH, CHECKED, SEED = 1024, 32, 3, 1
REVIEWS = ROOT / "bart_hk" / "data" / "sentence_polarity" / "train.tsv.gz"


def write_texts(path: Path) -> list[str]:
    """Whole reviews and parts of them, as SST-2's training file has phrases, with their labels."""
    from bart_hk.data.readers import read_examples

    reviews = read_examples(REVIEWS)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(reviews.texts))[:ROWS]
    texts, lines = [], ["sentence\tlabel"]
    for row in chosen:
        words = reviews.texts[row][0].split()
        size = min(len(words), 1 + int(rng.lognormal(2.0, 0.8)))  # SST-2's mean is nine words
        begin = int(rng.integers(0, len(words) - size + 1))
        texts.append(" ".join(words[begin : begin + size]))
        lines.append(f"{texts[-1]}\t{reviews.labels[row]}")
    path.write_text("\n".join(lines) + "\n")
    return texts


def settings(folder: Path, run: str, dropout: float) -> dict[str, Any]:
    """Of a run of `bart-hk-train`; neither validated nor saved before its end."""
    never = 10**6
    return {
        "task": {"train": str(folder / "train.tsv")},
        "model": {"dropout": dropout},
        "optimizer": {"epsilon": "optax"},
        "lr_scheduler": "fixed",
        "optimization": {"lr": 1e-5, "clip_norm": 1.0, "max_epoch": never},
        "dataset": {"batch_size": BATCH, "validate_interval": never},
        "checkpoint": {
            "restore_file": str(folder / "model"),
            "save_dir": str(folder / run),
            "save_interval": never,
        },
        "common": {"seed": SEED, "no_progress_bar": True, "log_interval": 1},
    }


def prepare(folder: Path, epochs: int) -> dict[str, Any]:
    """Data, model and the batches of the epochs in `folder`; says how many tokens an epoch has."""
    import jax

    from bart_hk.checkpoint.huggingface import write_model
    from bart_hk.checkpoint.model_files import HeadFiles
    from bart_hk.config import architecture
    from bart_hk.model import BART, ClassificationHead
    from bart_hk.text import train_bpe
    from bart_hk.training.config import complete
    from bart_hk.training.loader import Loader
    from bart_hk.training.start import make_task, start

    folder.mkdir(parents=True, exist_ok=True)
    texts = write_texts(folder / "train.tsv")
    encoder = train_bpe(texts, 8000)
    config = architecture("bart_mini", vocab_size=len(encoder.dictionary))
    keys = jax.random.split(jax.random.key(0))
    head = HeadFiles(ClassificationHead(config, 2).init(keys[1]), ["negative", "positive"])
    name = "sentence_classification_head"
    write_model(
        folder / "model",
        config,
        jax.device_get(BART(config).init(keys[0])),
        {name: head},
        head=name,  # a BartForSequenceClassification
        also=encoder.save,
    )
    asked = complete(settings(folder, "plan", 0.0))
    task = make_task(asked)
    begun = start(asked, task, keys[0])
    loader = Loader(asked.dataset, task, begun.bart.config, SEED, 1)
    plans = [
        [rows.tolist() for group in loader.updates(epoch + 1) for rows in group]
        for epoch in range(epochs)
    ]
    data = {
        "rows": [row.tolist() for row in task.train.rows],  # type: ignore[attr-defined]
        "targets": task.train.targets.tolist(),  # type: ignore[attr-defined]
        "epochs": plans,
    }
    (folder / "batches.json").write_text(json.dumps(data))
    lengths = task.train.lengths
    return {"tokens": int(lengths.sum()), "mean": float(lengths.mean()), "most": int(lengths.max())}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Losses, versions and the seconds of every round's epoch."""
    about = prepare(args.folder, args.rounds + 1)
    python = dict.fromkeys(PEERS, sys.executable) | {"torch": args.peers_python}
    found: dict[str, Any] = {"data": about, "losses": {}, "seconds": {n: [] for n in PEERS}}

    def begin(dropout: float) -> list[Process]:
        return [
            Process(n, python[n], args.folder, args.threads, dropout, script=SCRIPT) for n in PEERS
        ]

    checked = begin(0.0)
    for process in checked:
        found["losses"][process.name] = process.ask("check")["losses"]
        process.close()
    check_same(found["losses"])
    processes = begin(0.1)
    for process in processes:
        print(f"{process.name} warms up", file=sys.stderr)
        process.ask("epoch")
    for number in range(args.rounds):
        for process in processes if number % 2 else processes[::-1]:
            time.sleep(PAUSE)
            found["seconds"][process.name].append(process.ask("epoch")["seconds"])
    found["versions"] = {p.name: p.versions for p in processes}
    for process in processes:
        process.close()
    return found


def report(found: dict[str, Any], threads: int) -> str:
    """What the run found, as Markdown."""
    data = found["data"]
    versions = sorted({f"{n} {v}" for p in found["versions"].values() for n, v in p.items()})
    medians = {name: statistics.median(seconds) for name, seconds in found["seconds"].items()}
    lines = [
        f"{ROWS} sentences of {data['mean']:.1f} tokens (at most {data['most']}); {threads} "
        f"threads, {', '.join(versions)}.",
        "",
        "| peer | an epoch | fastest to slowest | sentences/s | tokens/s | times bart_hk |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, seconds in found["seconds"].items():
        median = medians[name]
        lines.append(
            f"| {name} | {median:.2f} s | {min(seconds):.2f} to {max(seconds):.2f} s | "
            f"{ROWS / median:.0f} | {data['tokens'] / median:.0f} | "
            f"{median / medians['bart_hk']:.2f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmark.py finetune", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "benchmark" / "finetune")
    parser.add_argument("--peers-python", default=str(ROOT / ".venv-peers" / "bin" / "python"))
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds} must be at least 1")
    if not Path(args.peers_python).exists():
        parser.error(f"{args.peers_python} is missing: `make benchmark` makes it")
    found = measure(args)
    (args.folder / "results.json").write_text(json.dumps(found, indent=1))
    print(report(found, args.threads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
