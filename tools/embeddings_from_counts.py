"""A BART to begin pretraining from: random weights, but for a table of embeddings that knows words.

    python tools/embeddings_from_counts.py DATA OUT --weights reviews=20
    bart-hk-train experiment=pretrain_mini task.data=DATA checkpoint.restore_file=OUT ...
    python tools/embeddings_from_counts.py DATA OUT --into TRAINED --share 0.5   # in midst of it

DATA is what `bart-hk-preprocess` made, a folder of stores or of folders of them. How often tokens
stand beside one another there, as positive pointwise mutual information, is factorised to the
model's width (Levy, Goldberg and Dagan 2015, section 3: contexts smoothed by the power 3/4,
eigenvalues by 1/2). It takes a minute, and is what a network would need many million tokens to find
out: words of like meaning are neighbours before the first update.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bart_hk.checkpoint.huggingface import write_model
from bart_hk.config import ARCHITECTURES, BARTConfig, architecture
from bart_hk.data.readers import DataError
from bart_hk.data.store import TokenStore
from bart_hk.hub.opening import open_model
from bart_hk.model import BART
from bart_hk.tasks.denoising import find_tokenizer, open_stores
from bart_hk.text import TextEncoder

CONTEXT_POWER = 0.75
SPREAD = 0.04  # of a row's numbers; what a table has after some pretraining is 0.06
LARGEST = 32768  # rows: their counts are a square
AT_ONCE = 1 << 24  # tokens


def pieces(store: TokenStore, window: int) -> Iterator[tuple[np.ndarray, int]]:
    """int64, all tokens, in pieces; with how many of its first a piece shares with the last."""
    rows = np.cumsum(store.sizes)
    first = 0
    before = np.zeros(0, np.int64)
    while first < len(store):
        last = max(first + 1, int(np.searchsorted(rows, rows[first] + AT_ONCE)))
        tokens = [store[row] for row in range(first, min(last, len(store)))]
        run = np.concatenate([before, *tokens]).astype(np.int64)
        yield run, len(before)
        before, first = run[-window:], last


def counts(store: TokenStore, size: int, window: int) -> np.ndarray:
    """float32 [size, size], symmetric: how often two tokens stand at most `window` apart, each time
    divided by how far."""
    total = np.zeros(size * size, np.float32)
    for run, begun in pieces(store, window):
        for distance in range(1, window + 1):
            right = run[max(begun, distance) :]
            left = run[max(begun, distance) - distance :][: len(right)]
            pairs, often = np.unique(left * size + right, return_counts=True)
            total[pairs] += often / distance
    square = total.reshape(size, size)
    return square + square.T


def information(counted: np.ndarray) -> np.ndarray:
    """Positive pointwise mutual information, float32 [size, size], of `counts`."""
    often = counted.sum(1)
    contexts = often**CONTEXT_POWER
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(counted) - np.log(often)[:, None] - np.log(contexts / contexts.sum())
    return np.maximum(np.nan_to_num(found, nan=0.0, neginf=0.0), 0.0)


def factors(matrix: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """[size, width], the largest singular vectors by the roots of their values (Halko, Martinsson
    and Tropp 2011: random projections, four power iterations)."""
    basis = matrix @ rng.standard_normal((len(matrix), width + 64), np.float32)
    for _ in range(4):
        basis = matrix @ (matrix.T @ np.linalg.qr(basis)[0])
    basis = np.linalg.qr(basis)[0]
    vectors, values, _ = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    found = (basis @ vectors)[:, :width] * np.sqrt(values[:width])
    return np.pad(found, ((0, 0), (0, width - found.shape[1])))  # of a small vocabulary


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def fresh(rows: np.ndarray, known: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A table to begin with: rows of one length, random ones where nothing is known."""
    random = rng.standard_normal(rows.shape)
    return unit(np.where(known[:, None], rows, random)) * SPREAD * np.sqrt(rows.shape[1])


def blend(
    old: np.ndarray, rows: np.ndarray, known: np.ndarray, often: np.ndarray, share: float
) -> np.ndarray:
    """A trained table, of which `share` becomes what the counts say; rows keep their length.

    The counts' table is turned onto the old one (orthogonal Procrustes, rows by the roots of how
    often they are), so that the network around it still reads it.
    """
    weights = np.where(known, np.sqrt(often), 0.0)[:, None]
    old_mean, mean = (np.sum(weights * those, 0) / weights.sum() for those in (old, rows))
    old_rows, rows = old - old_mean, rows - mean
    left, _, right = np.linalg.svd((weights * rows).T @ old_rows)
    lengths = np.linalg.norm(old_rows, axis=1, keepdims=True)
    mixed = (1 - share) * old_rows + share * lengths * unit(rows @ (left @ right))
    return np.where(known[:, None], old_mean + lengths * unit(mixed), old)


def network(given: argparse.Namespace, encoder: TextEncoder) -> tuple[BARTConfig, dict[str, Any]]:
    """What the table goes into: a trained model, or one of random weights.

    Raises:
        DataError: it and the data's tokenizer do not belong together.
    """
    dictionary = encoder.dictionary
    if given.into:
        members, theirs = open_model(given.into)
        if len(members) > 1 or theirs.dictionary.symbols != dictionary.symbols:
            raise DataError(
                f"--into {given.into} is no one model of the vocabulary of {given.data}"
            )
        config, params = members[0].config, members[0].params
        return config, {name: dict(leaf) for name, leaf in params.items()}
    config = architecture(given.model, vocab_size=len(dictionary))
    ids = (config.bos_token_id, config.pad_token_id, config.eos_token_id)
    if ids != (dictionary.bos(), dictionary.pad(), dictionary.eos()):
        raise DataError(f"{given.data} does not number <s>, <pad>, </s> as {given.model}: {ids}")
    return config, jax.device_get(BART(config).init(jax.random.key(given.seed)))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="bart_mini", choices=sorted(ARCHITECTURES))
    parser.add_argument("--weights", nargs="*", default=[], metavar="NAME=FACTOR")
    parser.add_argument("--window", type=int, default=5, help="tokens to each side")
    parser.add_argument("--into", metavar="MODEL", help="a trained one, instead of random weights")
    parser.add_argument("--share", type=float, default=0.5, help="of its table that is replaced")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    if given.window < 1:
        parser.error(f"--window {given.window} must be at least 1")
    if not 0 <= given.share <= 1:
        parser.error(f"--share {given.share} must be in [0, 1]")
    try:
        found = open_stores(given.data, "train")
        if not found:
            raise DataError(f"{given.data} has no train.bin: bart-hk-preprocess makes one")
        encoder = TextEncoder.load(find_tokenizer(str(given.data), found))
        size = len(encoder.dictionary)
        for store in found.values():
            store.check_vocabulary(size, "the tokenizer")
        config, params = network(given, encoder)
    except (DataError, FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    weights = {}
    for weight in given.weights:
        name, _, factor = weight.partition("=")
        if name not in found:
            parser.error(f"--weights {weight}: {given.data} has {', '.join(found)}")
        try:
            weights[name] = float(factor)
        except ValueError:
            parser.error(f"--weights {weight} must be NAME=FACTOR")
    if size > LARGEST:
        parser.error(f"{given.data} has {size} tokens, and this counts pairs of at most {LARGEST}")

    counted = np.zeros((size, size), np.float32)
    for name, store in found.items():
        counted += weights.get(name, 1.0) * counts(store, size, given.window)
    rng = np.random.default_rng(given.seed)
    often = counted.sum(1)
    known = often > 0
    known[: encoder.dictionary.nspecial] = False
    rows = unit(factors(information(counted), config.encoder_embed_dim, rng))
    if given.into:
        old = np.asarray(params["embed_tokens"]["embeddings"], np.float32)
        rows = blend(old, rows, known, often, given.share)
    else:
        rows = fresh(rows, known, rng)
        rows[encoder.dictionary.pad_index] = 0.0
    params["embed_tokens"]["embeddings"] = rows.astype(np.float32)
    write_model(given.output, config, params, also=encoder.save)
    print(f"{given.output}: {size} rows from {int(counted.sum()):,} weighted pairs")


if __name__ == "__main__":
    main()
