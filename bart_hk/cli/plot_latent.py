"""`bart-hk-plot latent RUN_DIR ["text" "text"]`: where texts lie in a bottleneck, as a PNG.

The latents of texts on their two principal axes, coloured by the texts' numbers of words, and the
way from one text to another with what each of its points is decoded to. Texts are those that the
run was validated on, or --texts FILE; the two ends are a short and a long one of them, unless they
are given. Needs matplotlib, from `bart_hk[train]`.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from bart_hk.cli.plot_attention import plain
from bart_hk.hub import BARTHubInterface, load
from bart_hk.hub.latent import METHODS, between
from bart_hk.tasks.autoencoding import AutoencodingConfig, read_texts, text_files

_HYDRA = Path(".hydra") / "config.yaml"  # where bart-hk-train keeps what a run was told


def texts_of(run: Path, given: Path | None, column: str | None) -> list[str]:
    """The texts of a file, or those that a run was validated on (or trained, where there are none).

    Raises:
        ValueError: it is not known where they are, or they are not there.
    """
    config = AutoencodingConfig(text_column=column)
    if given is not None:
        return list(dict.fromkeys(read_texts(given, config).texts()))
    known = run / _HYDRA
    told: Any = OmegaConf.load(known) if known.is_file() else {}
    task = told.get("task")
    if task is None or task.get("_name") != config._name:
        raise ValueError(
            f"{known} does not say where texts are, as bart-hk-train task=autoencoding leaves it; "
            "give --texts FILE"
        )
    config = AutoencodingConfig(
        data=task.get("data"),
        train=task.get("train"),
        valid=task.get("valid"),
        text_column=column or task.get("text_column"),
    )
    train, valid = text_files(config)
    return list(dict.fromkeys(read_texts(valid or train, config).texts()))


def chosen(bart: BARTHubInterface, texts: Sequence[str], limit: int) -> list[str]:
    """At most `limit` of the texts that the model can read, evenly spread.

    Raises:
        ValueError: fewer than three are left, which have no plane.
    """
    rows = bart.text.encode_batch(list(texts))
    longest = min(bart.max_positions)
    fitting = [text for text, row in zip(texts, rows, strict=True) if len(row) <= longest - 2]
    step = max(1, -(-len(fitting) // limit))
    found = fitting[::step]
    if len(found) < 3:
        raise ValueError(
            f"{len(found)} of {len(texts)} texts have at most {longest} tokens; at least 3 make a "
            "plane"
        )
    return found


def principal_axes(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean [F] of latents [N, F], their two directions of most variance [F, 2], and the shares
    of variance on them [2]."""
    mean = latents.mean(0)
    _, scales, rows = np.linalg.svd(latents - mean, full_matrices=False)
    shares = np.square(scales) / max(np.square(scales).sum(), 1e-30)
    return mean, rows[:2].T, shares[:2]


def draw(
    latents: np.ndarray, words: Sequence[int], path: np.ndarray, labels: Sequence[str], title: str
) -> Any:
    """The matplotlib figure.

    Args:
        latents: float [N, F] of texts.
        words: of each text, for its colour.
        path: float [steps, F], an interpolation.
        labels: what its points are decoded to.

    Raises:
        ValueError: there is no matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("matplotlib is not installed: pip install 'bart_hk[train]'") from None
    mean, axes_of, shares = principal_axes(np.concatenate([latents, path[[0, -1]]]))
    points, way = ((x - mean) @ axes_of for x in (latents, path))
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.scatter(
        points[:, 0], points[:, 1], c=words, s=9, cmap="viridis", alpha=0.6, linewidths=0
    )
    figure.colorbar(shown, label="words")
    axes.plot(way[:, 0], way[:, 1], "o-", color="crimson", markersize=4, linewidth=1)
    for number, (x, y) in enumerate(way):
        axes.annotate(str(number), (x, y), xytext=(3, 3), textcoords="offset points", fontsize=7)
    axes.set_xlabel(f"first axis ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second axis ({shares[1]:.0%})")
    axes.set_title(plain(title))
    axes.grid(alpha=0.3)
    listed = "\n".join(f"{number}  {plain(text)}" for number, text in enumerate(labels))
    figure.text(1.01, 0.98, listed, fontsize=8, va="top", ha="left")
    return figure


def main(argv: list[str]) -> None:
    """Draws the picture, prints the way's texts and the picture's path.

    Raises:
        ValueError, OSError: what is wrong with the model, the texts or the output.
    """
    summary = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        "bart-hk-plot latent", description=summary[0].partition(": ")[2], epilog=summary[1]
    )
    parser.add_argument("run", metavar="RUN_DIR", help="a run's folder, or what bart_hk.load takes")
    parser.add_argument("ends", nargs="*", metavar="TEXT", help="two: where the way leads from, to")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="lines, or a table")
    parser.add_argument("--column", help="of a table, with the text")
    parser.add_argument("--limit", type=int, default=1000, help="texts at most (1000)")
    parser.add_argument("--steps", type=int, default=11, help="points of the way (11)")
    parser.add_argument("--method", default="slerp", choices=METHODS)
    parser.add_argument("--whole", action="store_true", help="one arc for all numbers of a latent")
    parser.add_argument("-o", "--output", type=Path, help="default: RUN_DIR/latent.png")
    args = parser.parse_intermixed_args(argv)
    if args.ends and len(args.ends) != 2:
        raise ValueError(f"{len(args.ends)} texts are given to go between; give two, or none")
    if args.limit < 3:
        raise ValueError(f"--limit {args.limit} must be at least 3")
    folder = Path(args.run)
    bart = load(args.run)
    texts = chosen(bart, texts_of(folder, args.texts, args.column), args.limit)
    counts = [len(text.split()) for text in texts]
    ends = args.ends or [texts[int(np.argmin(counts))], texts[int(np.argmax(counts))]]
    one, other = bart.encode_latent(ends)
    path = between(one, other, args.steps, method=args.method, whole=args.whole)
    labels = bart.decode_latent(path)
    latents = np.asarray(bart.encode_latent(texts)).reshape(len(texts), -1)
    figure = draw(latents, counts, path.reshape(len(path), -1), labels, str(args.run))
    output = args.output or (folder if folder.is_dir() else Path()) / "latent.png"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # drawn as boxes
        figure.savefig(output, dpi=130, bbox_inches="tight")
    for number, text in enumerate(labels):
        print(f"{number}\t{text}")
    print(output)
