"""fairseq's `Dictionary`: symbols, their ids and the special symbols among them.

Source: fairseq `data/dictionary.py`. Two things differ: encoding a line never adds a symbol, and a
dictionary may have its special symbols anywhere (`from_symbols`), as vocabularies that did not
come from fairseq do.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import TextIO

import numpy as np

_OVERWRITE = "#fairseq:overwrite"


class Dictionary:
    """A mapping between symbols and consecutive ids, starting with `<s> <pad> </s> <unk>`.

    `bos_index`, `pad_index`, `eos_index` and `unk_index` are the special ids; one is None where
    the vocabulary has no such symbol, which only `from_symbols` can bring about.
    """

    bos_index: int | None
    pad_index: int | None
    eos_index: int | None
    unk_index: int | None

    def __init__(
        self,
        *,
        bos: str = "<s>",
        pad: str = "<pad>",
        eos: str = "</s>",
        unk: str = "<unk>",
        extra_special_symbols: Iterable[str] = (),
    ):
        self.bos_word, self.pad_word, self.eos_word, self.unk_word = bos, pad, eos, unk
        self.symbols: list[str] = []
        self.count: list[int] = []
        self.indices: dict[str, int] = {}
        for symbol in (bos, pad, eos, unk, *extra_special_symbols):
            self.add_symbol(symbol)
        self.nspecial = len(self.symbols)
        self._find_special_ids()

    @classmethod
    def load(cls, file: str | PathLike | TextIO) -> "Dictionary":
        """Reads fairseq's `dict.txt`: one `<symbol> <count>` a line, ids in the order of the lines.

        Raises ValueError, naming the line, where a line is malformed or repeats a symbol without
        fairseq's `#fairseq:overwrite` flag.
        """
        if isinstance(file, str | PathLike):
            try:
                with open(file, encoding="utf-8") as opened:
                    return cls.load(opened)
            except UnicodeDecodeError as error:
                raise ValueError(f"{file}: not a dictionary in UTF-8: {error}") from None
        dictionary = cls()
        name = getattr(file, "name", "dictionary")
        # Only a newline ends a line: symbols may hold other characters that splitlines() cuts at.
        lines = file.read().removesuffix("\n").split("\n")
        for number, line in enumerate(lines if lines != [""] else [], start=1):
            fields = line.rstrip().rsplit(" ", 1)
            overwrite = fields[-1] == _OVERWRITE
            if overwrite:
                fields = fields[0].rsplit(" ", 1)
            if len(fields) != 2 or not fields[1].isdecimal():
                raise ValueError(
                    f"{name}, line {number}: {line!r} is not '<symbol> <count>', "
                    f"the format of a fairseq dictionary"
                )
            symbol, count = fields
            if symbol in dictionary.indices and not overwrite:
                raise ValueError(
                    f"{name}, line {number}: the symbol {symbol!r} is already in the dictionary; "
                    f"remove the line or end it with {_OVERWRITE}"
                )
            dictionary.add_symbol(symbol, int(count), overwrite)
        return dictionary

    @classmethod
    def from_symbols(
        cls,
        symbols: Sequence[str],
        *,
        bos: str = "<s>",
        pad: str = "<pad>",
        eos: str = "</s>",
        unk: str = "<unk>",
    ) -> "Dictionary":
        """A dictionary in which symbol i has id i; the special symbols may stand anywhere."""
        dictionary = cls(bos=bos, pad=pad, eos=eos, unk=unk)
        specials = dictionary.symbols  # in fairseq's order
        dictionary.symbols = list(symbols)
        dictionary.count = [1] * len(symbols)
        dictionary.indices = {symbol: index for index, symbol in enumerate(symbols)}
        if len(dictionary.indices) != len(symbols):
            repeated = next(s for i, s in enumerate(symbols) if dictionary.indices[s] != i)
            raise ValueError(f"the symbol {repeated!r} is twice in the vocabulary")
        dictionary.nspecial = (
            len(specials) if dictionary.symbols[: len(specials)] == specials else 0
        )
        dictionary._find_special_ids()
        return dictionary

    def _find_special_ids(self) -> None:
        self.bos_index = self.indices.get(self.bos_word)
        self.pad_index = self.indices.get(self.pad_word)
        self.eos_index = self.indices.get(self.eos_word)
        self.unk_index = self.indices.get(self.unk_word)

    def __len__(self) -> int:
        return len(self.symbols)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dictionary) and self.indices == other.indices

    __hash__ = None  # type: ignore[assignment]  # it can grow, through add_symbol

    def __contains__(self, symbol: str) -> bool:
        return symbol in self.indices

    def __getitem__(self, index: int) -> str:
        """The symbol of an id; the unknown word for an id outside the dictionary."""
        return self.symbols[index] if 0 <= index < len(self.symbols) else self.unk_word

    def __repr__(self) -> str:
        return f"Dictionary({len(self)} symbols)"

    def index(self, symbol: str) -> int:
        """The id of a symbol; the id of `<unk>` for one that is not in the dictionary."""
        found = self.indices.get(symbol, self.unk_index)
        if found is None:
            raise ValueError(f"{symbol!r} is not in the vocabulary, which has no {self.unk_word!r}")
        return found

    def bos(self) -> int | None:
        """The id of the beginning-of-sentence symbol."""
        return self.bos_index

    def pad(self) -> int | None:
        """The id of the padding symbol."""
        return self.pad_index

    def eos(self) -> int | None:
        """The id of the end-of-sentence symbol."""
        return self.eos_index

    def unk(self) -> int | None:
        """The id of the unknown symbol."""
        return self.unk_index

    def unk_string(self, escape: bool = False) -> str:
        """How an unknown symbol is written: `<unk>`, or `<<unk>>` if escaped."""
        return f"<{self.unk_word}>" if escape else self.unk_word

    def get_count(self, index: int) -> int:
        """How often a symbol was seen when the dictionary was made."""
        return self.count[index]

    def add_symbol(self, word: str, n: int = 1, overwrite: bool = False) -> int:
        """Adds a symbol, or `n` to the count of one that is there; returns its id."""
        if word in self.indices and not overwrite:
            self.count[self.indices[word]] += n
        else:
            self.indices[word] = len(self.symbols)
            self.symbols.append(word)
            self.count.append(n)
        return self.indices[word]

    def without_last(self) -> "Dictionary":
        """A copy that lacks the last symbol."""
        shorter = copy.copy(self)
        shorter.symbols, shorter.count = self.symbols[:-1], self.count[:-1]
        last = len(shorter)
        shorter.indices = {symbol: i for symbol, i in self.indices.items() if i < last}
        shorter._find_special_ids()
        return shorter

    def encode_line(self, line: str, append_eos: bool = True) -> np.ndarray:
        """The ids, int32 [T], of symbols separated by white space; unknown ones become `<unk>`."""
        ids = [self.index(word) for word in line.split()]
        if append_eos and self.eos_index is not None:
            ids.append(self.eos_index)
        return np.array(ids, np.int32)

    def string(
        self,
        tensor: Iterable,
        *,
        escape_unk: bool = False,
        extra_symbols_to_ignore: Iterable[int] = (),
        unk_string: str | None = None,
        include_eos: bool = False,
        separator: str = " ",
    ) -> str:
        """The symbols of ids [T], joined; of ids [B, T], one row a line.

        The beginning-of-sentence symbol is always left out, the end-of-sentence symbol unless
        `include_eos`, and `extra_symbols_to_ignore` (ids) as well; padding stays.
        """
        array = np.asarray(tensor, dtype=np.int64)
        ignored = {self.bos_index, *extra_symbols_to_ignore}
        if not include_eos:
            ignored.add(self.eos_index)
        unknown = self.unk_string(escape_unk) if unk_string is None else unk_string
        return "\n".join(
            separator.join(
                unknown if index == self.unk_index else self[index]
                for index in row
                if index not in ignored
            )
            for row in np.atleast_2d(array).tolist()
        )

    def save(self, file: str | PathLike | TextIO) -> None:
        """Writes fairseq's `dict.txt`: every symbol but the leading special ones."""
        if self.nspecial == 0:
            raise ValueError(
                "this vocabulary does not start with <s> <pad> </s> <unk>, which every dict.txt "
                "takes for granted"
            )
        if isinstance(file, str | PathLike):
            with open(file, "w", encoding="utf-8", newline="\n") as opened:
                return self.save(opened)
        start = self.nspecial
        for symbol, count in zip(self.symbols[start:], self.count[start:], strict=True):
            file.write(f"{symbol} {count}\n")
        return None


def token_ids(vocabulary: Mapping[str, int]) -> list[str]:
    """The tokens of a `vocab.json` in the order of their ids; fillers where an id has no token.

    Raises ValueError for an id that is negative, taken twice or far outside the vocabulary.
    """
    size = max(vocabulary.values(), default=-1) + 1
    if size > 2 * len(vocabulary) + 1000:
        raise ValueError(f"a vocabulary of {len(vocabulary)} tokens has the id {size - 1}")
    tokens = [""] * size
    for token, index in vocabulary.items():
        if index < 0 or tokens[index]:
            raise ValueError(f"the token {token!r} has the id {index}, which is taken or negative")
        tokens[index] = token
    # fairseq's own name for rows that only fill a table.
    return [token or f"madeupword{index:04d}" for index, token in enumerate(tokens)]
