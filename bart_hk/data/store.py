"""Token stores: fairseq's `.bin` and `.idx`, mapped into memory, read and written.

Source: fairseq `data/indexed_dataset.py`. `PREFIX.bin` holds tokens, item after item; `PREFIX.idx`
the type of a token, the number of items, their sizes and where they begin. What is written is what
`fairseq-preprocess` writes, byte for byte; its older format ("cached", "lazy") is read as well.
"""

import hashlib
import os
import struct
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bart_hk.data.ragged import positions_within
from bart_hk.data.readers import DataError

_MAGIC = b"MMIDIDX\x00\x00"
_LEGACY_MAGIC = b"TNTIDX\x00\x00"
_HUFFMAN_MAGIC = b"HUFFIDX\x00"
_CODES: dict[int, np.dtype] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.int8),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
    9: np.dtype("<u4"),
    10: np.dtype("<u8"),
}
_HEADER = struct.Struct("<9sQBQ")  # magic, version, code of the type, number of items
_LEGACY_HEADER = struct.Struct("<8sQQQQQ")  # magic, version, code, its size, items, sizes
_CHUNK = 1 << 24  # tokens or bytes looked at in one go


def token_dtype(vocab_size: int) -> np.dtype:
    """The type of the tokens of a vocabulary in a store that fairseq writes."""
    if vocab_size < 65500:
        return np.dtype("<u2")
    return np.dtype("<u4") if vocab_size < 4294967295 else np.dtype("<i8")


def _files(prefix: str | PathLike) -> tuple[Path, Path]:
    return Path(f"{os.fspath(prefix)}.bin"), Path(f"{os.fspath(prefix)}.idx")


def store_exists(prefix: str | PathLike) -> bool:
    """Whether there are files of a store of that name; they may be damaged."""
    return any(file.exists() for file in _files(prefix))


class TokenStore:
    """Items of tokens in a mapped file.

    Attributes:
        sizes: int64 [n], tokens of each item; some may be 0.
        begins: int64 [n], where they begin, in tokens; one follows the other.
        dtype: of a token in the file.

    Raises (when made):
        DataError: a file is missing, is no store, is damaged, or the two do not belong together.
    """

    def __init__(self, prefix: str | PathLike) -> None:
        self.prefix = Path(prefix)
        self._bin, self._idx = _files(prefix)
        for file in (self._idx, self._bin):
            if not file.is_file():
                raise DataError(
                    f"{file} does not exist; bart-hk-preprocess makes a store of {prefix}"
                )
        self._added = 0  # the older format's tokens are one too high, as Lua's were
        index = self._idx.read_bytes()
        if index.startswith(_MAGIC):
            self.dtype, self.sizes, self.begins = self._read_index(index)
        elif index.startswith(_LEGACY_MAGIC):
            self.dtype, self.sizes, self.begins = self._read_legacy_index(index)
            self._added = 1
        elif index.startswith(_HUFFMAN_MAGIC):
            raise DataError(f"{self._idx}: fairseq's Huffman code is not read; use the text itself")
        else:
            raise DataError(f"{self._idx} is no index of a token store, or a damaged one")
        needed = int(self.sizes.sum()) * self.dtype.itemsize
        status = self._bin.stat()
        found, self._written = status.st_size, status.st_mtime_ns
        if found != needed:
            what = "ends early" if found < needed else "is too long"
            raise DataError(
                f"{self._bin} {what}: it has {found} bytes, and its index speaks of {needed}; "
                "copy or make the store again"
            )
        self._tokens = np.zeros(0, self.dtype)
        if needed:  # a file of no bytes cannot be mapped
            self._tokens = np.asarray(np.memmap(self._bin, self.dtype, "r"))

    def _read_index(self, data: bytes) -> tuple[np.dtype, np.ndarray, np.ndarray]:
        if len(data) < _HEADER.size:
            raise DataError(f"{self._idx} ends early: it has {len(data)} bytes")
        _, version, code, count = _HEADER.unpack_from(data)
        dtype = self._dtype(version, code)
        needed = _HEADER.size + 12 * count
        if len(data) != needed:
            raise DataError(
                f"{self._idx} has {len(data)} bytes; {count} items, of which it speaks, take "
                f"{needed}: it is damaged, or of another program (Megatron's differ)"
            )
        sizes = np.frombuffer(data, "<i4", count, _HEADER.size).astype(np.int64)
        begins = np.frombuffer(data, "<i8", count, _HEADER.size + 4 * count)
        self._check_sizes(sizes)
        expected = (np.cumsum(sizes) - sizes) * dtype.itemsize
        if wrong := np.flatnonzero(begins != expected).tolist():
            raise DataError(
                f"{self._idx}: item {wrong[0]} begins at byte {begins[wrong[0]]}, those before it "
                f"end at {expected[wrong[0]]}; make the store again"
            )
        return dtype, sizes, np.cumsum(sizes) - sizes

    def _read_legacy_index(self, data: bytes) -> tuple[np.dtype, np.ndarray, np.ndarray]:
        if len(data) < _LEGACY_HEADER.size:
            raise DataError(f"{self._idx} ends early: it has {len(data)} bytes")
        _, version, code, itemsize, count, numbers = _LEGACY_HEADER.unpack_from(data)
        dtype = self._dtype(version, code)
        needed = _LEGACY_HEADER.size + 8 * (2 * (count + 1) + numbers)
        if len(data) != needed or itemsize != dtype.itemsize or numbers != count:
            raise DataError(
                f"{self._idx} is damaged: {len(data)} bytes, {count} items, {numbers} sizes"
            )
        at = _LEGACY_HEADER.size + 8 * (count + 1)
        ends = np.frombuffer(data, "<i8", count + 1, at)
        sizes = np.frombuffer(data, "<i8", count, at + 8 * (count + 1)).astype(np.int64)
        self._check_sizes(sizes)
        if not np.array_equal(ends, np.concatenate([[0], np.cumsum(sizes)])):
            raise DataError(f"{self._idx} is damaged: the items do not follow one another")
        return dtype, sizes, ends[:-1].copy()

    def _dtype(self, version: int, code: int) -> np.dtype:
        if version != 1:
            raise DataError(f"{self._idx}: version {version} is not known, only 1")
        if code not in _CODES:
            raise DataError(f"{self._idx}: the type of its tokens, {code}, is no whole number's")
        return _CODES[code]

    def _check_sizes(self, sizes: np.ndarray) -> None:
        if sizes.size and sizes.min() < 0:
            wrong = int(np.flatnonzero(sizes < 0)[0])
            raise DataError(f"{self._idx}: item {wrong} has {sizes[wrong]} tokens; it is damaged")

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, which maps the same files."""
        return _reopened, (self.prefix, len(self), self._written)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, item: int) -> np.ndarray:
        """The tokens of an item, int32; IndexError where there is none."""
        begin, size = self.begins[item], self.sizes[item]
        return self._plain(self._tokens[begin : begin + size])

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The tokens at some positions of the file, int32."""
        return self._plain(self._tokens[positions])

    def ranges(self, begins: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """The tokens of some ranges, end to end: int32 [sum(sizes)]."""
        return self.at(np.repeat(begins, sizes) + positions_within(sizes))

    def _plain(self, tokens: np.ndarray) -> np.ndarray:
        plain = tokens.astype(np.int32)
        return plain - self._added if self._added else plain

    def check_vocabulary(self, vocab_size: int, what: str) -> None:
        """Makes sure that every token is in a vocabulary; reads them all.

        Raises:
            DataError: one is not; `what` says whose vocabulary it is.
        """
        for chunk in self._chunks():
            low, high = int(chunk.min()) - self._added, int(chunk.max()) - self._added
            if low < 0 or high >= vocab_size:
                wrong = high if high >= vocab_size else low
                raise DataError(
                    f"{self._bin} holds the id {wrong}, and {what} has {vocab_size} symbols: the "
                    "store was made with another vocabulary; make it again with this one"
                )

    def _chunks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self._tokens), _CHUNK):
            yield self._tokens[start : start + _CHUNK]

    def digest(self) -> str:
        """SHA-256 of both files."""
        found = hashlib.sha256(self._idx.read_bytes())
        for chunk in self._chunks():
            found.update(chunk.data)
        return found.hexdigest()


def _reopened(prefix: Path, items: int, written: int) -> TokenStore:
    """The store that another process has open; DataError where it is no longer that one."""
    store = TokenStore(prefix)
    if (len(store), store._written) != (items, written):
        raise DataError(f"{store._bin} was changed while it was in use; start the command again")
    return store


class StoreWriter:
    """Writes a store piece by piece; `finish` completes it.

    Until then there is `PREFIX.sizes` beside `PREFIX.bin`, so that a process that was stopped can
    be followed by another, which goes on at any state that `tokens` and `items` once had.

    Args:
        prefix: of the files.
        vocab_size: decides the type of a token.
        tokens, items: where to go on; what was written after that is cut off.

    Raises:
        DataError: there is less than what is to be gone on from.
        OSError: the disk fails, or is full.
    """

    def __init__(
        self, prefix: str | PathLike, vocab_size: int, tokens: int = 0, items: int = 0
    ) -> None:
        self.tokens, self.items = tokens, items
        self._vocab_size, self.dtype = vocab_size, token_dtype(vocab_size)
        self._bin, self._idx = _files(prefix)
        self._sizes = self._bin.with_suffix(".sizes")
        self._files: list[BinaryIO] = []
        try:
            for file, end in ((self._bin, tokens * self.dtype.itemsize), (self._sizes, 4 * items)):
                self._files.append(_cut(file, end))
        except (OSError, DataError):
            self.close()
            raise

    def add(self, tokens: np.ndarray, sizes: np.ndarray) -> None:
        """Items that lie end to end: tokens int [N], sizes int [n] that sum to N.

        Raises:
            ValueError: a token is not in the vocabulary.
        """
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < self._vocab_size:
            raise ValueError(f"a token is not in the vocabulary of {self._vocab_size}")
        if int(sizes.sum()) != len(tokens):
            raise ValueError(f"{len(tokens)} tokens are not items of {int(sizes.sum())} in all")
        self._files[0].write(tokens.astype(self.dtype).tobytes())
        self._files[1].write(sizes.astype("<i4").tobytes())
        self.tokens += len(tokens)
        self.items += len(sizes)

    def sync(self) -> None:
        """Has the disk hold what was written."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Lets go of the files, complete or not."""
        for file in self._files:
            file.close()

    def _written_sizes(self) -> Iterator[np.ndarray]:
        """In parts, for there may be many."""
        with open(self._sizes, "rb") as file:
            while data := file.read(4 * (1 << 18)):
                yield np.frombuffer(data, "<i4")

    def finish(self, keep: bool = False) -> None:
        """Writes the index; `keep` leaves what another process would need to go on."""
        self.sync()
        self.close()
        new = self._idx.with_suffix(".idx.part")
        with open(new, "wb") as index:
            code = next(code for code, dtype in _CODES.items() if dtype == self.dtype)
            index.write(_HEADER.pack(_MAGIC, 1, code, self.items))
            for sizes in self._written_sizes():
                index.write(sizes.tobytes())
            total = 0
            for sizes in self._written_sizes():
                ends = total + np.cumsum(sizes, dtype="<i8")
                index.write(((ends - sizes) * self.dtype.itemsize).tobytes())
                total = int(ends[-1])
            index.flush()
            os.fsync(index.fileno())
        new.replace(self._idx)
        if not keep:
            self._sizes.unlink()


def _cut(path: Path, end: int) -> BinaryIO:
    """A file opened for writing at `end`, which it must reach; what follows is cut off."""
    file = open(path, "r+b" if end else "wb")
    found = file.seek(0, os.SEEK_END)
    if found < end:
        file.close()
        raise DataError(f"{path} ends early: {found} bytes of {end} are there")
    file.truncate(end)
    file.seek(end)
    return file


def write_store(
    prefix: str | PathLike, tokens: np.ndarray, sizes: np.ndarray, vocab_size: int
) -> None:
    """Writes a whole store; arguments as for `StoreWriter.add`."""
    writer = StoreWriter(prefix, vocab_size)
    try:
        writer.add(np.asarray(tokens), np.asarray(sizes))
        writer.finish()
    finally:
        writer.close()
