"""`bart-hk-plot attention MODEL "source" ["target"]`: where a model looks, as a PNG.

Three rows of panels: the encoder's attention, the decoder's and the decoder's to the source, a
column for each layer, averaged over heads. With --layer a column is one of that layer's heads.
Rows of a panel are the tokens that look, columns those that are looked at. Without a target the
decoder writes the source. Needs matplotlib, from `bart_hk[train]`.
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

from bart_hk.hub import load
from bart_hk.hub.attention import AttentionWeights

_KINDS = {"encoder": "encoder", "decoder": "decoder", "cross": "decoder to encoder"}
_MAX_LABELS = 80  # tokens of a side; more would not be readable


def draw(
    weights: AttentionWeights,
    source_labels: list[str],
    target_labels: list[str],
    title: str,
    layer: int | None = None,
) -> Any:
    """The matplotlib figure. `layer` counts from 0.

    Raises:
        ValueError: there is no such layer, there are too many tokens, or no matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("matplotlib is not installed: pip install 'bart_hk[train]'") from None
    longest = max(len(source_labels), len(target_labels))
    if longest > _MAX_LABELS:
        raise ValueError(f"{longest} tokens are more than can be labelled: {_MAX_LABELS} at most")
    rows: dict[str, list[tuple[str, Any]]] = {}
    for kind in _KINDS:
        layers = getattr(weights, kind)
        if not len(layers):  # of a model without the stack
            continue
        if layer is None:
            rows[kind] = [(f"layer {i}", w.mean(axis=0)) for i, w in enumerate(layers)]
        elif 0 <= layer < len(layers):
            rows[kind] = [(f"layer {layer}, head {h}", w) for h, w in enumerate(layers[layer])]
    if not rows:
        last = max(len(weights.encoder), len(weights.decoder)) - 1
        raise ValueError(f"there is no layer {layer}: layers are 0 to {last}")
    labels = {"encoder": source_labels, "decoder": target_labels, "cross": target_labels}
    columns = max(map(len, rows.values()))
    side = max(2.2, 0.17 * longest + 0.9)
    figure = Figure(figsize=(side * columns, side * len(rows) + 0.5), layout="constrained")
    figure.suptitle(plain(title))
    for row, (kind, panels) in enumerate(rows.items()):
        across = labels["decoder"] if kind == "decoder" else labels["encoder"]
        if kind == "cross" and weights.cross.shape[-1] != len(across):  # of a bottleneck
            across = [f"latent {i}" for i in range(weights.cross.shape[-1])]
        for column, (name, values) in enumerate(panels):
            axes = figure.add_subplot(len(rows), columns, row * columns + column + 1)
            axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axes.set_title(f"{_KINDS[kind]}, {name}", fontsize=7)
            axes.set_xticks(range(len(across)), [plain(a) for a in across], rotation=90)
            axes.set_yticks(range(len(labels[kind])), [plain(a) for a in labels[kind]])
            axes.tick_params(labelsize=6, length=0)
    return figure


def plain(text: str) -> str:
    """Text that matplotlib draws as it is, without formulas, on one line."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return shown.replace("$", r"\$")


def main(argv: list[str]) -> None:
    """Draws the picture, and prints its path.

    Raises:
        ValueError, OSError: what is wrong with the model, the texts or the output.
    """
    summary = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        "bart-hk-plot attention", description=summary[0].partition(": ")[2], epilog=summary[1]
    )
    parser.add_argument("model", metavar="MODEL", help="what bart_hk.load takes")
    parser.add_argument("source")
    parser.add_argument("target", nargs="?", help="default: the source")
    parser.add_argument("--layer", type=int, help="of which every head is drawn, from 0")
    parser.add_argument("-o", "--output", type=Path, default=Path("attention.png"))
    args = parser.parse_intermixed_args(argv)
    bart = load(args.model)
    weights = bart.attention(args.source, args.target)
    source_labels = bart.token_labels(weights.src_tokens)
    target_labels = bart.token_labels(weights.prev_output_tokens)
    figure = draw(weights, source_labels, target_labels, args.model, args.layer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # drawn as boxes
        figure.savefig(args.output, dpi=130)
    print(args.output)
