"""GPT-2's byte-level byte-pair encoding, which BART uses, through the `tokenizers` library.

Source: fairseq `data/encoders/gpt2_bpe.py`. A text is cut into words by a regular expression, its
UTF-8 bytes become printable characters, and merges join them to tokens; every token has a symbol
of the dictionary. fairseq's symbols are the decimal GPT-2 ids of the tokens ("15496" for "Hello");
vocabularies made elsewhere use the tokens themselves.
"""

import functools
import gzip
import io
import itertools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

from tokenizers import Tokenizer, models, pre_tokenizers

from bart_hk.text.dictionary import Dictionary

Merges = Sequence[tuple[str, str]]

# The number of symbols in each of fairseq's two dictionaries, `<mask>` included.
GPT2_SIZES = {"bart.large": 50265, "bart.base": 51201}

# A token that no text can give stands for the bytes that a small vocabulary lacks.
_UNKNOWN = "\0"


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for every byte, in the order of GPT-2's ids."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable}
    alphabet.update((byte, chr(256 + number)) for number, byte in enumerate(others))
    return alphabet


BYTE_ALPHABET = _byte_alphabet()
_TO_LATIN1 = str.maketrans({character: chr(byte) for byte, character in BYTE_ALPHABET.items()})


def _settled_words() -> tuple[re.Pattern, re.Pattern]:
    """Finds what is outside of Latin, Greek, Cyrillic and their punctuation; cuts into words what
    is within.

    All versions of Unicode agree on what a letter is there, so GPT-2's expression gives here what
    it gives in the library, whose Unicode is not Python's.
    """
    ranges = [(0, 0x377), (0x400, 0x527), (0x2010, 0x2027), (0x2030, 0x205E)]
    characters = [chr(c) for first, last in ranges for c in range(first, last + 1)]
    letters, digits = (
        "".join(c for c in characters if unicodedata.category(c).startswith(kind)) for kind in "LN"
    )
    space = " \t-\r\x85\xa0"
    words = (
        f"'s|'t|'re|'ve|'m|'ll|'d| ?[{letters}]+| ?[{digits}]+| ?[^{space}{letters}{digits}]+"
        f"|[{space}]+(?![^{space}])|[{space}]+"
    )
    inside = "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
    return re.compile(f"[^{inside}]"), re.compile(words)


_NOT_SETTLED, _WORDS = _settled_words()
_KNOWN_SIZE = 1 << 20  # characters of the words that are remembered: some 60 MB


class GPT2BPE:
    """Byte-level BPE between text and dictionary symbols.

    Args:
      symbols: the dictionary symbol of every token.
      merges: pairs of tokens, the most important first; each pair joined must be a token as well.
      add_prefix_space: whether a text that does not start with a space gets one first.
    """

    def __init__(
        self,
        symbols: Mapping[str, str],
        merges: Merges,
        *,
        add_prefix_space: bool = False,
    ):
        self.tokens = dict(symbols)
        self.merges = list(merges)
        self.add_prefix_space = add_prefix_space
        # Of every index that `indices` gives.
        self.symbols = [*self.tokens.values(), "<unk>"]
        self.token_of = {symbol: token for token, symbol in self.tokens.items()}
        for first, second in self.merges:
            for token in (first, second, first + second):
                if token not in self.tokens:
                    raise ValueError(
                        f"the merge {first!r} {second!r} needs {token!r}, which is not in the "
                        f"vocabulary: the two belong to different tokenizers"
                    )
        vocabulary = {token: index for index, token in enumerate((*self.tokens, _UNKNOWN))}
        self._tokenizer = Tokenizer(
            models.BPE(vocab=vocabulary, merges=self.merges, unk_token=_UNKNOWN)
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._known: dict[str, list[int]] = {}  # indices of words
        self._known_size = 0

    def indices(self, texts: Sequence[str]) -> list[list[int]]:
        """Per text, the positions in `symbols` of its symbols.

        A word's tokens do not depend on its neighbours, and a text has far fewer words than tokens:
        only new ones, and what `_settled_words` cannot cut, go to the library, all at once, which
        uses all cores.
        """
        if self.add_prefix_space:
            texts = [text if not text or text[0] == " " else f" {text}" for text in texts]
        cut = [[text] if _NOT_SETTLED.search(text) else _WORDS.findall(text) for text in texts]
        known = self._known  # other threads may begin another one
        new = list(set().union(*cut).difference(known))
        found = self._tokenizer.encode_batch_fast(new)
        known.update((word, encoding.ids) for word, encoding in zip(new, found, strict=True))
        self._known_size += sum(map(len, new))
        if self._known_size > _KNOWN_SIZE:
            self._known, self._known_size = {}, 0
        chained = itertools.chain.from_iterable
        return [list(chained(map(known.__getitem__, words))) for words in cut]

    def encode(self, text: str) -> str:
        """Text to symbols, separated by spaces: "Hello world" to "15496 995"."""
        return " ".join([self.symbols[index] for index in self.indices([text])[0]])

    def decode(self, symbols: str) -> str:
        """Symbols, separated by spaces, to text; `join` has the rules."""
        return self.join(symbols.split())

    def join(self, symbols: Iterable[str]) -> str:
        """Symbols to text.

        A symbol that is no token (`<mask>`, `<unk>`, fairseq's fillers) is kept as it is, and bytes
        that are not UTF-8 become U+FFFD.
        """
        return b"".join(map(self.spelling, symbols)).decode("utf-8", errors="replace")

    def spelling(self, symbol: str) -> bytes:
        """What a symbol adds to a text."""
        token = self.token_of.get(symbol)
        if token is None:
            return symbol.encode()
        try:
            return token.translate(_TO_LATIN1).encode("latin-1")
        except UnicodeEncodeError:  # a token that is not written in the byte alphabet
            return token.encode()

    def is_beginning_of_word(self, symbol: str) -> bool:
        """Whether a symbol starts with a space."""
        return self.decode(symbol).startswith(" ")


def read_merges(text: str) -> list[tuple[str, str]]:
    """The merges in the text of a `vocab.bpe` or `merges.txt`, with or without its version line."""
    lines = text.split("\n")
    if lines[0].startswith("#version"):
        lines = lines[1:]
    merges = []
    for number, line in enumerate(lines, start=1):
        pair = line.split()
        if len(pair) == 2:
            merges.append((pair[0], pair[1]))
        elif pair:
            raise ValueError(f"merge {number}, {line!r}, is not a pair of tokens")
    return merges


def _shipped(name: str) -> str:
    data = resources.files("bart_hk.text").joinpath("gpt2", name).read_bytes()
    return gzip.decompress(data).decode("utf-8")


@functools.cache
def gpt2_merges() -> tuple[tuple[str, str], ...]:
    """GPT-2's 50000 merges."""
    return tuple(read_merges(_shipped("vocab.bpe.gz")))


@functools.cache
def gpt2_symbols() -> Mapping[str, str]:
    """fairseq's symbol of each of GPT-2's 50257 tokens: its GPT-2 id, in decimal.

    GPT-2's `encoder.json` follows from its merges: the bytes, the merges, the end of text.
    """
    tokens = [*BYTE_ALPHABET.values(), *map("".join, gpt2_merges()), "<|endoftext|>"]
    return {token: str(index) for index, token in enumerate(tokens)}


@functools.cache
def gpt2_bpe() -> GPT2BPE:
    """The BPE of GPT-2 and of the published BARTs, from the files in this package."""
    return GPT2BPE(gpt2_symbols(), gpt2_merges())


def gpt2_dictionary(layout: str) -> Dictionary:
    """fairseq's dictionary of "bart.large" (`<mask>` = 50264) or "bart.base" (`<mask>` = 51200).

    The one of bart.base has the same symbols, then fillers that no text gives, then `<mask>`.
    """
    if layout not in GPT2_SIZES:
        raise ValueError(f"layout {layout!r} is not one of {', '.join(GPT2_SIZES)}")
    dictionary = Dictionary.load(io.StringIO(_shipped("dict.txt.gz")))
    number = 3  # the large dictionary has three fillers itself
    while len(dictionary) < GPT2_SIZES[layout] - 1:
        dictionary.add_symbol(f"madeupword{number:04d}", 0)
        number += 1
    dictionary.add_symbol("<mask>")
    return dictionary
