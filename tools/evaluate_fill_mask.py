"""How well a BART guesses a masked word, on text that was held out of its pretraining.

    python tools/evaluate_fill_mask.py MODEL DATA [--sentences 1000] [--random]

DATA is what `bart-hk-preprocess --valid-share` made: a folder of stores, or of folders of them, and
each has an equal part in the sentences, or all that it has. Of a sentence of 6 to 40 words one is
masked that is a single piece of the vocabulary (Petroni et al. 2019 ask language models in the same
way); the answer is right if it is that piece. `bart.fill_mask(..., exact=True)` answers. Beside it
the most frequent words of the training text, corpus by corpus, and with `--random` the same network
as it was initialised.
"""

import argparse
import collections
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import bart_hk
from bart_hk.data.folders import open_stores
from bart_hk.data.readers import DataError
from bart_hk.data.store import TokenStore
from bart_hk.text import TextEncoder

PROGRAM = "evaluate_fill_mask.py"
WORDS = range(6, 41)  # of a sentence
TOP = 5


class Cloze(NamedTuple):
    """A sentence with a hole."""

    text: str
    answer: str


def corpora(data: Path) -> dict[str, Path]:
    """Folders with stores to train and to validate on, by name."""
    try:
        train, valid = (open_stores(data, role) for role in ("train", "valid"))
    except DataError as error:
        sys.exit(f"{PROGRAM}: {error}")
    found = {name: store.prefix.parent for name, store in valid.items() if name in train}
    if not found:
        sys.exit(f"{PROGRAM}: {data} has no valid.bin beside a train.bin, nor has a folder in it")
    return found


def single_pieces(encoder: TextEncoder, words: Sequence[str]) -> list[bool]:
    """Which words are one piece where a space comes before them."""
    return [len(ids) == 1 for ids in encoder.encode_batch([f" {word}" for word in words])]


def clozes(folder: Path, encoder: TextEncoder, count: int, seed: int) -> list[Cloze]:
    """At most `count` sentences of the held-out documents, in each a word masked."""
    store, found = TokenStore(folder / "valid"), []
    rng = np.random.default_rng(seed)
    for row in rng.permutation(len(store)):
        words = encoder.decode(store[int(row)].tolist()).split()
        if len(words) not in WORDS or "<mask>" in words:
            continue
        single = single_pieces(encoder, words)
        # Not the first, which has nothing before it, and no punctuation.
        places = [i for i in range(1, len(words)) if single[i] and words[i].isalpha()]
        if places:
            place = int(rng.choice(places))
            text = " ".join([*words[:place], "<mask>", *words[place + 1 :]])
            found.append(Cloze(text, words[place]))
        if len(found) == count:
            break
    if not found:
        sys.exit(f"{PROGRAM}: {folder} has no suitable sentence to validate on")
    return found


def quotas(sizes: Sequence[int], total: int) -> list[int]:
    """How many each gives of what it has, alike as far as they can, so that all give `total`."""
    given = [0] * len(sizes)
    for _ in range(min(total, sum(sizes))):
        open_ = [i for i, size in enumerate(sizes) if given[i] < size]
        given[min(open_, key=given.__getitem__)] += 1
    return given


def most_frequent(folder: Path, encoder: TextEncoder) -> list[str]:
    """The words that are most frequent among the single pieces of the training text."""
    store = TokenStore(folder / "train")
    counts: collections.Counter[str] = collections.Counter()
    for row in range(0, len(store), max(1, len(store) // 50_000)):
        counts.update(encoder.decode(store[row].tolist()).split())
    words = [word for word, _ in counts.most_common(200) if word.isalpha()]
    single = single_pieces(encoder, words)
    return [word for word, one in zip(words, single, strict=True) if one][:TOP]


def guesses(bart: "bart_hk.BARTHubInterface", asked: Sequence[Cloze]) -> Iterator[list[str]]:
    """The words that the model puts in place of each mask, the likeliest first."""
    for cloze, found in zip(
        asked, bart.fill_mask([cloze.text for cloze in asked], topk=TOP, exact=True), strict=True
    ):
        place = cloze.text.split().index("<mask>")
        texts = [text.split() for text, _ in found]
        yield [words[place] if place < len(words) else "" for words in texts]


def shares(asked: Sequence[Cloze], answers: Sequence[Sequence[str]]) -> tuple[float, float]:
    """In percent: how often the first answer is right, and one of the first five."""
    pairs = list(zip(asked, answers, strict=True))
    first = sum(answer[0] == cloze.answer for cloze, answer in pairs)
    among = sum(cloze.answer in answer for cloze, answer in pairs)
    return 100 * first / len(pairs), 100 * among / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", help="what bart_hk.load takes")
    parser.add_argument("data", type=Path)
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1, help="of the choice of sentences and words")
    parser.add_argument("--random", action="store_true", help="the network before training, too")
    given = parser.parse_args()

    bart = bart_hk.load(given.model)
    folders = corpora(given.data)
    asked = {
        name: clozes(path, bart.text, given.sentences, given.seed) for name, path in folders.items()
    }
    shared = quotas([len(those) for those in asked.values()], given.sentences)
    asked = {
        name: those[:count] for (name, those), count in zip(asked.items(), shared, strict=True)
    }
    answers = {
        "most frequent words": {
            name: [most_frequent(path, bart.text)] * len(asked[name])
            for name, path in folders.items()
        },
        given.model: {name: list(guesses(bart, those)) for name, those in asked.items()},
    }
    if given.random:
        bart.params = bart.model.init(jax.random.key(0))
        answers["random weights"] = {
            name: list(guesses(bart, those)) for name, those in asked.items()
        }
    names = [*asked, "all"]
    asked["all"] = [cloze for those in asked.values() for cloze in those]
    print(f"top-1 / top-5 in %, {len(asked['all'])} sentences")
    print(f"{'':24}" + "".join(f"{name:>16}" for name in names))
    for who, found in answers.items():
        found["all"] = [answer for those in found.values() for answer in those]
        row = [shares(asked[name], found[name]) for name in names]
        print(f"{who[-24:]:24}" + "".join(f"{f'{one:.1f} / {five:.1f}':>16}" for one, five in row))


if __name__ == "__main__":
    main()
