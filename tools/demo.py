"""Fills masks with bart.mini; fine-tunes it on film reviews, measures and uses what comes of it.

    python tools/demo.py --text "a waste of time" --text "what a film!"
    python tools/demo.py --seeds 3        # the median accuracy of three runs

Training is one epoch of `bart-hk-train experiment=mini/polarity` at a higher rate; more overrides
may be given. The accuracy is that of `bart.classify` on reviews that neither trained nor chose the
model.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import bart_hk
from bart_hk.data.readers import read_examples

MASKED = ("this is one of the best <mask> i have ever seen .", "He opened the <mask> and went in.")
# One epoch at a rate that is high enough for one, and few lengths, each of which is compiled.
RECIPE = (
    "experiment=mini/polarity",
    "optimization.max_epoch=1",
    "common.evaluate=false",  # the demo judges on the held-out reviews by itself
    "optimization.lr=5e-4",
    "dataset.length_buckets=[24,40,64,128]",
)
TEXTS = (
    "a warm , funny and beautifully acted film .",
    "two hours of my life that i will never get back .",
    "the plot is thin , but the performances are a delight .",
)


def fill_masks() -> None:
    """What bart.mini knows before it is taught anything."""
    bart = bart_hk.load("bart.mini")
    print('>>> bart = bart_hk.load("bart.mini")')
    for text in MASKED:
        print(f">>> bart.fill_mask({text!r}, topk=3, exact=True)")
        for filled, probability in bart.fill_mask(text, topk=3, exact=True):
            print(f"    {probability:.2f}  {filled}")


def train(overrides: list[str]) -> None:
    """What a user would type, with a progress bar where there is a terminal."""
    print(f"$ bart-hk-train {' '.join(overrides)}", flush=True)
    command = [sys.executable, "-m", "bart_hk.cli.train", *overrides]
    if code := subprocess.run(command).returncode:
        sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", action="append", default=[], help="a sentence to classify")
    parser.add_argument("--seeds", type=int, default=1, help="runs, with seeds 1, 2, ...")
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"), help="for the models")
    parser.add_argument("overrides", nargs="*", help="for bart-hk-train: GROUP.KEY=VALUE")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds} must be at least 1")

    fill_masks()
    test = read_examples(str(files("bart_hk.data") / "sentence_polarity" / "test.tsv.gz"))
    accuracies = []
    for seed in range(1, options.seeds + 1):
        folder = options.out / f"seed_{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        begun = time.monotonic()
        given = [f"common.seed={seed}", f"checkpoint.save_dir={folder}", *options.overrides]
        train([*RECIPE, *given])
        seconds = time.monotonic() - begun
        bart = bart_hk.load(folder)
        answers = bart.classify([text for (text,) in test.texts])
        right = sum(label == truth for (label, _), truth in zip(answers, test.labels, strict=True))
        accuracies.append(100 * right / len(test))
        print(
            f"seed {seed}: {accuracies[-1]:.2f} % of {len(test)} held-out reviews, {seconds:.0f} s"
        )
    if options.seeds > 1:
        print(f"median of {options.seeds} seeds: {statistics.median(accuracies):.2f} %")

    texts = [*filter(None, options.text)] or list(TEXTS)
    print(f"\n>>> bart = bart_hk.load({str(folder)!r})\n>>> bart.classify([...])")
    for text, (label, probability) in zip(texts, bart.classify(texts), strict=True):
        print(f"{label:>8}  {probability:.2f}  {text}")


if __name__ == "__main__":
    main()
