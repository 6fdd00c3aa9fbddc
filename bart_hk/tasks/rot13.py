"""Deciphering rot13, letter by letter: a task that makes its data itself, anew in every epoch.

    uryyb  ->  hello

Words are random letters, so there is nothing to learn but the cipher and where a letter stands; and
words that are validated on are never trained on. It is the smallest task of BART's kind, which a
network of 61 thousand parameters learns exactly, in a minute of a core.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from bart_hk.config import BARTConfig
from bart_hk.data.readers import DataError
from bart_hk.tasks import TaskKind, translation
from bart_hk.tasks.losses import CrossEntropyConfig
from bart_hk.tasks.pairs import Pairs, Splits
from bart_hk.tasks.translation import Translation, TranslationConfig
from bart_hk.text import TextEncoder

LETTERS = "abcdefghijklmnopqrstuvwxyz"
_VALID_EPOCH = 0  # of the words that are validated on: always the same


@dataclass
class Rot13Config(TranslationConfig):
    """task=translation's options, but for where the texts are, and these."""

    _name: str = "rot13"
    tokenizer: str | None = "characters"
    eval_exact_match: bool = True
    words: int = 8192  # to train on in an epoch
    valid_words: int = 1000
    longest: int = (
        12  # letters of a word; of those to validate on at least a third of them, and two
    )
    rotation: int = 13
    seed: int = "${common.seed}"  # type: ignore[assignment]


def rotate(word: str, by: int = 13) -> str:
    """Each of the 26 letters becomes the one that stands so many places further in the alphabet."""
    return "".join(LETTERS[(LETTERS.index(letter) + by) % len(LETTERS)] for letter in word)


class Rot13(Translation):
    """The task; see `bart_hk.tasks.Task` for what its methods are for.

    Raises (when made):
        DataError: an option makes no sense.
    """

    config: Rot13Config

    def __init__(self, config: Rot13Config, criterion: CrossEntropyConfig) -> None:
        if config.data or config.train or config.valid:
            raise DataError("task=rot13 makes its words: leave task.data, train and valid out")
        for name in ("words", "valid_words", "longest"):
            if getattr(config, name) < 1:
                raise DataError(f"task.{name}={getattr(config, name)} must be at least 1")
        there = sum(len(LETTERS) ** n for n in range(_shortest(config), config.longest + 1))
        if config.valid_words > there // 2:
            raise DataError(
                f"task.valid_words={config.valid_words} is more than half of the {there} words of "
                f"{_shortest(config)} to {config.longest} letters; raise task.longest"
            )
        super().__init__(config, criterion)

    def _read(self) -> Splits:
        config = self.config
        held = _words(config, _VALID_EPOCH, config.valid_words, _shortest(config))
        self._held = frozenset(held)
        return Splits(self._of_epoch(1), _pairs("the words to validate on", held, config))

    def _of_epoch(self, epoch: int) -> Pairs:
        found = _words(self.config, epoch, self.config.words, 1, self._held)
        return _pairs(f"the words of epoch {epoch}", found, self.config)

    def texts(self) -> Iterable[str]:
        """The alphabet."""
        return (LETTERS,)

    def encode(self, encoder: TextEncoder, config: BARTConfig) -> None:
        """As `Translation.encode`."""
        self._model = config
        super().encode(encoder, config)

    def begin_epoch(self, epoch: int) -> None:
        """New words, by (seed, epoch)."""
        self.train = self._encode(self._of_epoch(epoch), self._encoder, self._model)


KIND = TaskKind(Rot13Config(), translation.KIND.criteria, Rot13)


def _shortest(config: Rot13Config) -> int:
    return min(max(config.longest // 3, 2), config.longest)


def _words(
    config: Rot13Config, epoch: int, count: int, shortest: int, without: Collection[str] = ()
) -> list[str]:
    """So many different words where none are left out, of lengths that are equally frequent."""
    draw = np.random.default_rng((config.seed, epoch))
    found: dict[str, None] = {}
    some: list[str] = []
    while len(some) < count:
        length = int(draw.integers(shortest, config.longest + 1))
        word = "".join(LETTERS[i] for i in draw.integers(len(LETTERS), size=length))
        if word in without or (not without and word in found):
            continue
        found[word] = None
        some.append(word)
    return some


def _pairs(name: str, words: list[str], config: Rot13Config) -> Pairs:
    """Of what is read and what is to be written."""
    sources = [rotate(word, config.rotation) for word in words]
    return Pairs(name, (), sources, [[word] for word in words], range(1, len(words) + 1))
