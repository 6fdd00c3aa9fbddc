"""A small BART to begin pretraining from: random weights that know words and places already.

    python tools/initial_weights.py DATA INIT --weights reviews=20
    bart-hk-train experiment=pretrain_mini task.data=DATA checkpoint.restore_file=INIT ...

DATA is what `bart-hk-preprocess` made, a folder of stores or of folders of them. With the usual
initialisation a network of this width spends millions of tokens on finding out what is put into it
here, in a minute:

- Words of like meaning are neighbours. How often tokens stand beside one another in DATA, as
  positive pointwise mutual information, is factorised to the model's width (Levy, Goldberg and
  Dagan 2015, section 3: contexts smoothed by the power 3/4, eigenvalues by 1/2).
- Positions are sines and cosines (Vaswani et al. 2017, 3.5; the table is trained on), and most
  heads look at their neighbours: to both sides in the encoder, back in the decoder, and from the
  decoder to the same place of the source. Queries and keys whose product is near an identity do
  that, as in networks that have been trained (Trockman and Kolter 2023, "Mimetic initialization of
  self-attention layers").
- What layers read with has the spread 1 / sqrt(width), of which BART's 0.02 is a third here; what
  they write with stays near 0, so that all of this reaches the last layer.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from bart_hk.checkpoint.huggingface import write_model
from bart_hk.checkpoint.tree import Params
from bart_hk.config import ARCHITECTURES, BARTConfig, architecture
from bart_hk.data.folders import find_tokenizer, open_stores
from bart_hk.data.readers import DataError
from bart_hk.data.store import TokenStore
from bart_hk.model import BART
from bart_hk.text import TextEncoder

CONTEXT_POWER = 0.75
SPREAD = 0.04  # of a row's numbers, of both tables
LARGEST = 32768  # rows: their counts are a square
AT_ONCE = 1 << 24  # tokens
INIT_STD = 0.02  # of what `BART.init` draws
FASTEST, SLOWEST = 2.0, 1e-3  # radians a position; the slowest as a share of the fastest
SHARPNESS = 1.2

# (how far on, whether wide) of the first heads; the others stay random.
Looks = tuple[tuple[int, bool], ...]
FIRST_LOOKS: Looks = ((-1, False), (1, False), (-2, False), (2, False))
LOOKS: dict[tuple[str, str], Looks] = {
    ("encoder", "self_attn"): ((-1, False), (1, False), (0, True)),
    ("decoder", "self_attn"): ((-1, False), (-2, False), (-3, True)),
    ("decoder", "encoder_attn"): ((0, False), (0, True), (1, False)),
}


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


def embeddings(
    stores: Mapping[str, TokenStore],
    weights: Mapping[str, float],
    text: TextEncoder,
    window: int,
    width: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """float32 [V, width]: rows of one length, random ones where the texts say nothing."""
    size = len(text.dictionary)
    counted = np.zeros((size, size), np.float32)
    for name, store in stores.items():
        counted += weights[name] * counts(store, size, window)
    known = counted.sum(1) > 0
    known[: text.dictionary.nspecial] = False
    rows = factors(information(counted), width, rng)
    rows = np.where(known[:, None], rows, rng.standard_normal(rows.shape))
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    rows[text.dictionary.pad()] = 0.0
    return (rows * SPREAD * np.sqrt(width)).astype(np.float32)


def network_config(name: str, text: TextEncoder, data: Path) -> BARTConfig:
    """The named architecture over the data's vocabulary.

    Raises:
        DataError: this cannot be done for it.
    """
    dictionary = text.dictionary
    config = architecture(name, vocab_size=len(dictionary))
    ids = (config.bos_token_id, config.pad_token_id, config.eos_token_id)
    if ids != (dictionary.bos(), dictionary.pad(), dictionary.eos()):
        raise DataError(f"{data} does not number <s>, <pad>, </s> as {name}: {ids}")
    if len(dictionary) > LARGEST:
        raise DataError(
            f"{data} has {len(dictionary)} tokens, and this counts pairs of at most {LARGEST}"
        )
    return config


def spread(params: Params, width: int) -> None:
    """Widens what layers read with, and leaves what they write with as it is."""
    for path, leaf in params.items():
        if "/layers_" in path and path.endswith(("q_proj", "k_proj", "v_proj", "fc1")):
            leaf["w"] = leaf["w"] / (INIT_STD * np.sqrt(width))


def frequencies(width: int) -> np.ndarray:
    """Of the sines and cosines, in radians a position, [width / 2]."""
    count = width // 2
    return FASTEST * SLOWEST ** (np.arange(count) / max(count - 1, 1))


def sinusoids(rows: int, width: int, offset: int) -> np.ndarray:
    """float32 [rows, width]: sines, then cosines; row `offset` is the first token's."""
    angles = (np.arange(rows) - offset)[:, None] * frequencies(width)
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return (table * SPREAD * np.sqrt(2)).astype(np.float32)


def looking(distance: int, wide: bool, width: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries' and keys' weights, [width, size], of a head that looks `distance` tokens on.

    Keys are some of the sines and cosines, the fastest ones, or for a wide look the next; queries
    are the same ones turned by the distance: their product is largest where they agree.
    """
    pairs, places = size // 2, np.arange(size // 2)
    sines = places + (pairs if wide else 0)
    cosines = width // 2 + sines
    angles = frequencies(width)[sines] * distance
    queries, keys = np.zeros((2, width, size))
    keys[sines, places] = keys[cosines, pairs + places] = SHARPNESS
    queries[sines, places] = queries[cosines, pairs + places] = SHARPNESS * np.cos(angles)
    queries[cosines, places] = SHARPNESS * np.sin(angles)
    queries[sines, pairs + places] = -SHARPNESS * np.sin(angles)
    return queries, keys


def look_around(params: Params, config: BARTConfig) -> None:
    """Gives the first heads of every layer their looks; what is random in them becomes less."""
    for path in [path for path in params if path.endswith("attn/q_proj")]:
        stack, layer, kind, _ = path.split("/")
        size = config.attention_dim(stack) // getattr(config, f"{stack}_attention_heads")
        looks = LOOKS[stack, kind]
        if (stack, layer) == ("encoder", "layers_0"):
            looks = FIRST_LOOKS
        given = range(getattr(config, f"{stack}_attention_heads"))
        for head, look in zip(given, looks, strict=False):
            columns = slice(head * size, (head + 1) * size)
            weights = looking(*look, config.encoder_embed_dim, size)
            for name, look_weights in zip(("q_proj", "k_proj"), weights, strict=True):
                leaf = params[f"{stack}/{layer}/{kind}/{name}"]
                leaf["w"][:, columns] = leaf["w"][:, columns] / 3 + look_weights


def network(config: BARTConfig, rows: np.ndarray, seed: int) -> Params:
    """The parameters, with this table of embeddings."""
    made = jax.device_get(BART(config).init(jax.random.key(seed)))
    params = {path: {name: np.array(a) for name, a in leaf.items()} for path, leaf in made.items()}
    params["embed_tokens"]["embeddings"] = rows
    for stack in config.sides:
        if table := params.get(f"{stack}/embed_positions"):
            places, width = table["embeddings"].shape
            table["embeddings"] = sinusoids(places, width, config.position_offset)
    spread(params, config.encoder_embed_dim)
    look_around(params, config)
    return params


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="bart_mini", choices=sorted(ARCHITECTURES))
    parser.add_argument("--weights", nargs="*", default=[], metavar="NAME=FACTOR")
    parser.add_argument("--window", type=int, default=5, help="tokens to each side")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    if given.window < 1:
        parser.error(f"--window {given.window} must be at least 1")
    try:
        stores = open_stores(given.data, "train")
        if not stores:
            raise DataError(f"{given.data} has no train.bin: bart-hk-preprocess makes one")
        text = TextEncoder.load(find_tokenizer(str(given.data), stores))
        config = network_config(given.model, text, given.data)
        for store in stores.values():
            store.check_vocabulary(config.vocab_size, "the tokenizer")
    except (DataError, FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    weights = dict.fromkeys(stores, 1.0)
    for weight in given.weights:
        name, _, factor = weight.partition("=")
        if name not in stores:
            parser.error(f"--weights {weight}: {given.data} has {', '.join(stores)}")
        try:
            weights[name] = float(factor)
        except ValueError:
            parser.error(f"--weights {weight} must be NAME=FACTOR")

    rng = np.random.default_rng(given.seed)
    rows = embeddings(stores, weights, text, given.window, config.encoder_embed_dim, rng)
    params = network(config, rows, given.seed)
    write_model(given.output, config, params, also=text.save)
    count = sum(int(a.size) for leaf in params.values() for a in leaf.values())
    print(f"{given.output}: {count:,} parameters")


if __name__ == "__main__":
    main()
