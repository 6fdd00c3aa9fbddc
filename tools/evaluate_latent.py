"""What a bottleneck keeps, and what lies between its latents: `evaluate_latent.py MODEL TEXTS`.

    python tools/evaluate_latent.py OUT test.tsv --column en --corpus train.tsv
    python tools/evaluate_latent.py OUT test.txt --corpus train.txt --perplexity bart.mini
    python tools/evaluate_latent.py OUT test.txt --corpus train.txt --labelled polarity.tsv

On texts that the model has not seen, as long as it takes them:

    tokens           predicted rightly from the latents and the tokens before (`<s>` apart)
    exact            texts that greedy decoding gives back to the letter
    interpolations   between pairs of them, the inner points of an arc: how many are neither end,
                     how many are in the corpus as they are, and the share of their bigrams and
                     trigrams of words that the corpus has; beside that of held-out texts, and of
                     the same texts with their words shuffled
    perplexity       under another model: of a decoder alone the text's own, of a BART that of the
                     text in place of a lone <mask>
    probes           least squares on the latents: the number of words, whether it is above the
                     median, and the classes of --labelled, by their majority's share beside it
"""

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bart_hk
from bart_hk.data.batching import pad_rows
from bart_hk.data.readers import read_examples
from bart_hk.hub import BARTHubInterface
from bart_hk.tasks.autoencoding import AutoencodingConfig, read_texts

_AT_ONCE = 256  # texts
_PENALTY = 1.0  # of the probes, on the squares of weights over latents of variance 1


def fitting(bart: BARTHubInterface, texts: Iterable[str], longest: int | None) -> list[str]:
    """The texts that have at most `longest` tokens, or as many as the model has positions."""
    limit = min(bart.max_positions) if longest is None else longest
    texts = list(texts)
    rows = bart.text.encode_batch(texts)
    return [t for t, row in zip(texts, rows, strict=True) if len(row) <= limit - 2]


def token_accuracy(bart: BARTHubInterface, texts: Sequence[str]) -> float:
    """The share of tokens, `</s>` among them, that are the most probable, teacher-forced."""
    model, config = bart.model, bart.config

    @jax.jit
    def right(params: Any, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = jnp.full_like(target[:, :1], config.decoder_start_token_id)
        previous = jnp.concatenate([first, target[:, :-1]], axis=1)
        found = model.project(params, model.features(params, target, previous).features)
        counted = (target != config.pad_token_id) & (target != config.bos_token_id)
        return ((found.argmax(-1) == target) & counted).sum(), counted.sum()

    rows = bart.encode(list(texts))
    length, sums = max(map(len, rows)), np.zeros(2)
    for i in range(0, len(rows), _AT_ONCE):
        batch = pad_rows(rows[i : i + _AT_ONCE], config.pad_token_id, length, _AT_ONCE)
        sums += [float(x) for x in right(bart.params, batch)]
    return float(sums[0] / sums[1])


def reconstructions(bart: BARTHubInterface, texts: Sequence[str]) -> list[str]:
    """What greedy decoding makes of the texts' latents."""
    found: list[str] = []
    for i in range(0, len(texts), _AT_ONCE):
        found += bart.decode_latent(bart.encode_latent(list(texts[i : i + _AT_ONCE])))
    return found


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """The n-grams of a text's words, its ends among them."""
    words = ["<s>", *text.split(), "</s>"]
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def overlap(texts: Sequence[str], known: set[tuple[str, ...]], n: int) -> float:
    """The mean over texts of the share of their n-grams that are known."""
    shares = [np.mean([gram in known for gram in found]) for t in texts if (found := ngrams(t, n))]
    return float(np.mean(shares)) if shares else math.nan


def perplexity(judge: BARTHubInterface, texts: Sequence[str]) -> float:
    """exp of the mean negative log probability of all tokens of the texts."""
    if "encoder" in judge.config.sides:
        mask = judge.text.mask_id
        if mask is None:
            raise ValueError("--perplexity needs a decoder alone, or a model with a <mask>")
        source = np.array([judge.config.bos_token_id, mask, judge.config.eos_token_id], np.int32)
        scored = judge.score([source] * len(texts), list(texts), attention=False)
    else:
        scored = judge.score(list(texts), attention=False)
    each = np.concatenate([np.asarray(row["positional_scores"]) for row in scored])
    return math.exp(-float(each.mean()))


def least_squares(train: np.ndarray, targets: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """What a ridge regression on latents [N, F] predicts of others: [M, ...]."""
    mean, scale = train.mean(0), train.std(0) + 1e-6
    x, z = (train - mean) / scale, (held_out - mean) / scale
    gram = x.T @ x + _PENALTY * np.eye(x.shape[1])
    centre = targets.mean(0)
    return z @ np.linalg.solve(gram, x.T @ (targets - centre)) + centre


def latents(bart: BARTHubInterface, texts: Sequence[str]) -> np.ndarray:
    """float64 [N, n Z]."""
    return np.asarray(bart.encode_latent(list(texts)), np.float64).reshape(len(texts), -1)


def probe_classes(bart: BARTHubInterface, texts: Sequence[str], classes: Sequence[str]) -> Any:
    """Of every second text, from the others: the accuracy, and that of the most frequent class."""
    names = sorted(set(classes))
    wanted = np.array([names.index(c) for c in classes])
    x, one_hot = latents(bart, texts), np.eye(len(names))[wanted]
    found = least_squares(x[::2], one_hot[::2], x[1::2]).argmax(1)
    majority = np.bincount(wanted[1::2]).max() / len(found)
    return float((found == wanted[1::2]).mean()), float(majority)


def report(bart: BARTHubInterface, arguments: argparse.Namespace) -> None:
    """Prints everything."""
    config = AutoencodingConfig(text_column=arguments.column)

    def read(path: Path) -> list[str]:
        return list(dict.fromkeys(read_texts(path, config).texts()))

    texts = fitting(bart, read(arguments.texts), arguments.longest)
    draw = np.random.default_rng(arguments.seed)
    texts = [texts[i] for i in np.sort(draw.permutation(len(texts))[: arguments.rows])]
    if len(texts) < 20:
        raise ValueError(
            f"{arguments.texts} has {len(texts)} texts that fit; at least 20 are asked"
        )
    print(f"{len(texts)} texts of {arguments.texts}")
    print(f"tokens: {token_accuracy(bart, texts):.2%}")
    exact = np.mean([a == b for a, b in zip(reconstructions(bart, texts), texts, strict=True)])
    print(f"exact: {exact:.2%}")

    ends = [tuple(draw.permutation(len(texts))[:2]) for _ in range(arguments.pairs)]
    inner, new = [], []
    for one, other in ends:
        path = bart.interpolate(
            texts[one], texts[other], method=arguments.method, whole=arguments.whole
        )
        inner += path[1:-1]
        new += [t not in (path[0], path[-1], texts[one], texts[other]) for t in path[1:-1]]
        if len(inner) <= 3 * (len(path) - 2):
            print("  " + " | ".join(dict.fromkeys(path)))
    print(f"interpolations: {len(ends)} pairs, neither end: {np.mean(new):.2%} of the inner points")
    if arguments.corpus:
        corpus = read(arguments.corpus)
        shuffled = [" ".join(draw.permutation(text.split())) for text in texts]
        whole = set(corpus)
        print(f"  in the corpus: {np.mean([text in whole for text in inner]):.2%}")
        for n, name in ((2, "bigrams"), (3, "trigrams")):
            known = {gram for text in corpus for gram in ngrams(text, n)}
            shares = [overlap(group, known, n) for group in (inner, texts, shuffled)]
            print(
                f"  {name} that the corpus has: {shares[0]:.2%} (held-out texts {shares[1]:.2%}, "
                f"shuffled {shares[2]:.2%})"
            )
    if arguments.perplexity:
        judge = bart_hk.load(arguments.perplexity)
        shuffled = [" ".join(draw.permutation(text.split())) for text in texts]
        shown = [perplexity(judge, [t for t in group if t]) for group in (inner, texts, shuffled)]
        print(
            f"perplexity under {arguments.perplexity}: {shown[0]:.1f} (held-out texts "
            f"{shown[1]:.1f}, shuffled {shown[2]:.1f})"
        )
    words = np.array([len(text.split()) for text in texts], np.float64)
    x, wanted, median = latents(bart, texts), words[1::2], np.median(words)
    spread = np.square(wanted - wanted.mean()).sum()
    if spread:
        found = least_squares(x[::2], words[::2], x[1::2])
        explained = 1 - np.square(found - wanted).sum() / spread
        longer = wanted > median
        accuracy, chance = ((found > median) == longer).mean(), longer.mean()
        print(
            f"probe, words: R2 {explained:.3f}; above the median: {accuracy:.2%}, chance "
            f"{max(chance, 1 - chance):.2%}"
        )
    if arguments.labelled:
        examples = read_examples(arguments.labelled)
        kept = set(fitting(bart, [text[0] for text in examples.texts], None))
        pairs = zip(examples.texts, examples.labels, strict=True)
        rows = [(text[0], label) for text, label in pairs if text[0] in kept]
        accuracy, majority = probe_classes(bart, [r[0] for r in rows], [r[1] for r in rows])
        print(f"probe, {arguments.labelled}: {accuracy:.2%}, chance {majority:.2%}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("model", help="what bart_hk.load takes")
    add("texts", type=Path, help="held-out texts: lines, or a table")
    add("--column", help="of a table, with the text")
    add("--corpus", type=Path, help="what the model was trained on")
    add("--rows", type=int, default=2000, help="texts at most (2000)")
    add("--longest", type=int, help="tokens of a text, <s> and </s> among them; the model's limit")
    add("--pairs", type=int, default=100, help="to interpolate between (100)")
    add("--method", default="slerp", help="slerp or lerp")
    add("--whole", action="store_true", help="one arc for all numbers of a latent")
    add("--perplexity", metavar="MODEL", help="judges the interpolations")
    add("--labelled", type=Path, metavar="TABLE", help="with a text and a label, for a probe")
    add("--seed", type=int, default=1)
    arguments = parser.parse_args(argv)
    try:
        report(bart_hk.load(arguments.model), arguments)
    except (OSError, ValueError) as error:
        print(f"evaluate_latent.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
