"""From texts to token stores: what `bart-hk-preprocess` does.

One process reads, several encode, and the first writes, chunk after chunk in the order of the
text; so the stores do not depend on the number of processes. A journal beside them says how far
they are and what of the text went into them: when a run was stopped, the next reads that part
again, compares it, and goes on.
"""

import collections
import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from bart_hk.data.documents import MANIFEST, TextFile
from bart_hk.data.readers import DataError
from bart_hk.data.store import StoreWriter, TokenStore, store_exists
from bart_hk.text import TextEncoder

_JOURNAL = "preprocess.journal"  # of a folder that is not complete
_LOCK = "preprocess.lock"
_FORMAT = 1
_CHUNK = 1 << 20  # characters that are encoded in one go

_log = logging.getLogger(__name__)


def unfinished(folder: Path) -> bool:
    """Whether a folder was begun and is not complete."""
    return (folder / _JOURNAL).exists() and not (folder / MANIFEST).exists()


@dataclass(frozen=True)
class Split:
    """How texts become training and validation data.

    Attributes:
        valid_share: of the documents, chosen by their content: equal ones stay together.
        seed: of the choice.
        field: of a JSON object, with the text; None takes the first that is known.
    """

    valid_share: float = 0.0
    seed: int = 1
    field: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.valid_share < 1:
            raise DataError(
                f"the share of validation documents, {self.valid_share}, is not in [0, 1)"
            )

    def holds_out(self, lines: Sequence[str]) -> bool:
        """Whether the document that begins with these lines is for validation."""
        key = str(self.seed).encode()
        digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=8, key=key).digest()
        return int.from_bytes(digest, "little") < self.valid_share * 2**64


@dataclass
class Counts:
    """What went into a store."""

    documents: int = 0
    sentences: int = 0  # lines with text
    tokens: int = 0  # with a </s> after each line
    unknown: int = 0  # <unk> among them


class Reader:
    """Chunks of the lines of some files, each for one of the splits.

    The chunks are a function of the files and `split` alone. `counts` and `position` (bytes read)
    are those of what was given so far.
    """

    def __init__(
        self,
        train: Sequence[TextFile],
        valid: Sequence[TextFile],
        split: Split,
        chunk: int = _CHUNK,
    ) -> None:
        self._files = [("train", f) for f in train] + [("valid", f) for f in valid]
        self._split, self._chunk = split, chunk
        self.counts = {"train": Counts(), "valid": Counts()}
        self.position = 0

    def chunks(self) -> Iterator[tuple[str, list[str]]]:
        """Pairs of "train" or "valid" and lines; an empty line is an item without text."""
        held: dict[str, list[str]] = {"train": [], "valid": []}
        size = dict.fromkeys(held, 0)
        separated = dict.fromkeys(held, True)  # nothing, or an empty line, is what came last
        for given, file in self._files:
            role, before = given, self.position
            for piece in file.pieces(self._split.field, functools.partial(self._read, before)):
                if piece.begins:
                    # Of a folder for validation everything is for validation.
                    out = given == "train" and self._split.holds_out(piece.lines)
                    role = "valid" if out else given
                    if not separated[role]:
                        held[role].append("")
                counts, lines = self.counts[role], piece.lines
                texts = sum(map(bool, lines))
                counts.documents += bool(piece.begins and texts)
                counts.sentences += texts
                held[role] += lines
                size[role] += sum(map(len, lines)) + len(lines)
                separated[role] = not lines[-1]
                if size[role] >= self._chunk:
                    yield role, held[role]
                    held[role], size[role] = [], 0
            self.position = before + file.size
        for role, lines in held.items():
            if lines:
                yield role, lines

    def _read(self, before: int, some: int) -> None:
        self.position = before + some


class Encode(Protocol):
    """Lines to items: tokens, their sizes, and how many tokens are `<unk>`."""

    def __call__(self, lines: list[str], /) -> tuple[np.ndarray, np.ndarray, int]: ...


class LineEncoder:
    """Lines to items that end with `</s>`, as `fairseq-preprocess` makes them."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        eos = encoder.dictionary.eos_index
        if eos is None:
            raise DataError("the tokenizer has no </s>, which ends every line of a store")
        self._eos = eos

    def __call__(self, lines: list[str]) -> tuple[np.ndarray, np.ndarray, int]:
        """Tokens int32 [N], sizes int64 [len(lines)], the number of `<unk>`."""
        some = np.fromiter(map(bool, lines), bool, len(lines))
        texts = [line for line in lines if line]
        # The libraries hold far more of a text than its ids, as long as they encode.
        parts = [self._encoder.encode_flat(texts[i : i + 1000]) for i in range(0, len(texts), 1000)]
        empty = self._encoder.encode_flat([])
        ids, lengths = (np.concatenate(found) for found in zip(empty, *parts, strict=True))
        sizes = np.ones(len(lines), np.int64)
        sizes[some] += lengths
        tokens = np.empty(int(sizes.sum()), np.int32)
        ends = np.cumsum(sizes) - 1
        inner = np.ones(len(tokens), bool)
        inner[ends] = False
        tokens[ends], tokens[inner] = self._eos, ids
        return tokens, sizes, int(np.count_nonzero(ids == self._encoder.dictionary.unk_index))


_worker_encode: Encode  # of a process that encodes


def _start_worker(folder: str) -> None:
    global _worker_encode
    # Each process encodes by itself.
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker_encode = LineEncoder(TextEncoder.load(folder))


def _encode_in_worker(lines: list[str]) -> tuple[np.ndarray, np.ndarray, int]:
    return _worker_encode(lines)


def preprocess(
    train: Sequence[TextFile],
    output: str | os.PathLike,
    encoder: Callable[[], TextEncoder],
    *,
    valid: Sequence[TextFile] = (),
    split: Split | None = None,
    settings: dict[str, Any] | None = None,
    workers: int | None = None,
    progress: bool = False,
    chunk: int = _CHUNK,
) -> dict[str, Counts]:
    """Writes the stores `train` and, where there is any, `valid`, and the tokenizer's files.

    Args:
        train, valid: texts (`find_files`).
        output: the folder. One that a stopped run left is gone on with; a complete one is left as
            it is, if it was made of the same.
        encoder: gives the tokenizer; not called where the folder has it already.
        split: what of `train` goes to `valid`.
        settings: what else decides the result (which tokenizer), compared with that of a run that
            is gone on with.
        workers: processes that encode; by default as many as there are cores. The result is the
            same.
        progress: whether to show a bar.
        chunk: characters that are encoded in one go.

    Returns:
        What went into each store.

    Raises:
        DataError: there is no text, or nothing of it is held out though it was asked for, a file
            is not what its name says, the folder holds something else, or the text is not that of
            the run that is gone on with.
        ChildProcessError: a process that encodes died.
        OSError: the disk fails, or is full; the same call goes on.
    """
    run = _Run(Path(output), train, valid, split or Split(), settings or {}, chunk)
    if run.complete():
        _log.info("%s is complete already", output)
        return run.counts
    count = workers or len(os.sched_getaffinity(0))
    size = sum(file.size for file in (*train, *valid))
    bar = tqdm(
        desc="encoding",
        total=size,
        unit="B",
        unit_scale=True,
        disable=not progress,
    )
    with _locked(run.folder):
        try:
            run.begin(encoder)
            with bar:
                run.write(_encoded(run.left(bar), run, count))
                bar.update(size - bar.n)
            return run.finish()
        finally:
            run.close()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder, made if need be, for one process; a kill releases it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / _LOCK
    with open(lock, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder} is being written by another process") from None
        yield
        lock.unlink(missing_ok=True)


_Chunk = tuple[str, str, list[str]]  # split, digest, lines
_Encoded = tuple[str, str, tuple[np.ndarray, np.ndarray, int]]


def _encoded(chunks: Iterable[_Chunk], run: "_Run", workers: int) -> Iterator[_Encoded]:
    """The chunks in their order, encoded."""
    if workers == 1:
        encode = LineEncoder(run.encoder)
        for role, digest, lines in chunks:
            yield role, digest, encode(lines)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        # A fork of a process with threads may hang.
        multiprocessing.get_context("spawn"),
        _start_worker,
        (str(run.folder),),
    )
    waiting: collections.deque[tuple[str, str, Any]] = collections.deque()
    try:
        for role, digest, lines in chunks:
            waiting.append((role, digest, pool.submit(_encode_in_worker, lines)))
            if len(waiting) > 2 * workers:
                role, digest, future = waiting.popleft()
                yield role, digest, future.result()
        while waiting:
            role, digest, future = waiting.popleft()
            yield role, digest, future.result()
    except BrokenProcessPool:
        raise ChildProcessError(
            "a process that encodes died (killed, or out of memory); the same command goes on "
            "where it stood, and fewer workers need less memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


class _Run:
    """The folder, its journal and its stores."""

    encoder: TextEncoder  # since `begin`

    def __init__(
        self,
        folder: Path,
        train: Sequence[TextFile],
        valid: Sequence[TextFile],
        split: Split,
        settings: dict[str, Any],
        chunk: int,
    ) -> None:
        self.folder = folder
        self.reader = Reader(train, valid, split, chunk)
        self.header: dict[str, Any] = {
            "format": _FORMAT,
            "train": [[str(file.path), file.size] for file in train],
            "valid": [[str(file.path), file.size] for file in valid],
            **asdict(split),
            "chunk": chunk,
            **settings,
        }
        self.counts: dict[str, Counts] = {}
        self._done: list[dict[str, Any]] = []
        self._writers: dict[str, StoreWriter] = {}
        self._journal: Any = None
        self._unknown = {"train": 0, "valid": 0}
        self._changed = {str(f.path): f.path.stat().st_mtime_ns for f in (*train, *valid)}

    def complete(self) -> bool:
        """Whether the folder holds the result already.

        Raises:
            DataError: it holds another.
        """
        manifest = self.folder / MANIFEST
        if not manifest.exists():
            return False
        try:
            found = json.loads(manifest.read_text(encoding="utf-8"))
            made_of, modified = dict(found["made of"]), dict(found["modified"])
            counts = {role: Counts(**counts) for role, counts in found["splits"].items()}
        except (ValueError, TypeError, LookupError, AttributeError):
            raise self._damaged(manifest) from None
        self._compare(made_of, "was made")
        for name, time in self._changed.items():
            if modified.get(name) != time:
                raise DataError(
                    f"{name} has changed since {self.folder} was made of it; choose another "
                    "folder, or remove this one"
                )
        for role in counts:
            try:
                TokenStore(self.folder / role)
            except DataError as error:
                raise DataError(f"{error}, or remove {self.folder} and begin again") from None
        self.counts = counts
        return True

    def _damaged(self, record: Path) -> DataError:
        return DataError(f"{record} is damaged; remove {self.folder} and begin again")

    def _compare(self, found: dict[str, Any], was: str) -> None:
        for key in sorted({*found, *self.header}):
            old, new = found.get(key), json.loads(json.dumps(self.header.get(key)))
            if old == new:
                continue
            if isinstance(old, list) and isinstance(new, list):  # files
                others = [f for f in (*old, *new) if f not in old or f not in new]
                if others:
                    old, new = "other files", f"{others[0][0]} differs or is not among both"
                else:
                    old, new = "these files", "another order of them"
            raise DataError(
                f"{self.folder} {was} with {key}={old}, now it is {new}; choose another folder, or "
                "remove this one"
            )

    def begin(self, encoder: Callable[[], TextEncoder]) -> None:
        """Begins with the tokenizer and a journal, or goes on."""
        journal = self.folder / _JOURNAL
        if journal.exists():
            self._read_journal(journal)
        else:
            if any(store_exists(self.folder / role) for role in ("train", "valid")):
                raise DataError(
                    f"{self.folder} holds a token store that this command did not make; choose "
                    "another folder"
                )
            encoder().save(self.folder)
            new = journal.with_suffix(".part")
            new.write_text(json.dumps(self.header) + "\n", encoding="utf-8")
            new.replace(journal)
        self.encoder = TextEncoder.load(self.folder)
        vocab_size = len(self.encoder.dictionary)
        for role in ("train", "valid"):
            last = next((e for e in reversed(self._done) if e["split"] == role), None)
            stood = (last["tokens"], last["items"]) if last else (0, 0)
            self._unknown[role] = last["unknown"] if last else 0
            self._writers[role] = StoreWriter(self.folder / role, vocab_size, *stood)
        self._journal = open(journal, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`

    def _read_journal(self, journal: Path) -> None:
        lines = journal.read_text(encoding="utf-8").split("\n")
        if lines.pop():  # cut short while it was written
            journal.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        try:
            header, *self._done = [dict(json.loads(line)) for line in lines]
        except (ValueError, TypeError):
            raise self._damaged(journal) from None
        self._compare(header, "was begun")
        _log.info("going on in %s after %d chunks", self.folder, len(self._done))

    def left(self, bar: tqdm) -> Iterator[_Chunk]:
        """The chunks that are not encoded yet, once the others have turned out to be the same."""
        shown = 0
        done = iter(self._done)
        for role, lines in self.reader.chunks():
            digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
            bar.update(self.reader.position - shown)
            shown = self.reader.position
            before = next(done, None)
            if before is None:
                yield role, digest, lines
            elif (before["split"], before["digest"]) != (role, digest):
                raise DataError(
                    f"the text has changed since {self.folder} was begun (its chunk of "
                    f"{len(lines)} lines from {lines[0]!r:.60}); remove the folder and begin again"
                )
        if next(done, None) is not None:
            raise DataError(
                f"there is less text than when {self.folder} was begun; remove the folder and "
                "begin again"
            )

    def write(self, encoded: Iterable[_Encoded]) -> None:
        """Writes chunks, each with its line in the journal once it is on the disk."""
        for role, digest, (tokens, sizes, unknown) in encoded:
            writer = self._writers[role]
            writer.add(tokens, sizes)
            writer.sync()
            self._unknown[role] += unknown
            entry = {
                "split": role,
                "digest": digest,
                "tokens": writer.tokens,
                "items": writer.items,
                "unknown": self._unknown[role],
            }
            self._journal.write(json.dumps(entry) + "\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())

    def finish(self) -> dict[str, Counts]:
        """Completes the stores and writes the manifest."""
        counts = self.reader.counts
        if not counts["train"].sentences:
            raise DataError("there is no text to train on: all lines are empty, or held out")
        share = self.header["valid_share"]
        if (share or self.header["valid"]) and not counts["valid"].sentences:
            why = "the texts for it have no line"
            if share:
                why = f"the share {share:g} of {counts['train'].documents} documents holds none"
            raise DataError(
                f"there is no text to validate on: {why}. In .txt an empty line ends a document; "
                f"remove {self.folder}, and name texts to validate on, or a larger share, or none"
            )
        self.counts = {role: found for role, found in counts.items() if found.sentences}
        for role, found in self.counts.items():
            found.tokens = self._writers[role].tokens
            found.unknown = self._unknown[role]
            self._writers[role].finish(keep=True)
        content = {
            "splits": {role: asdict(found) for role, found in self.counts.items()},
            "made of": self.header,
            "modified": self._changed,
        }
        new = self.folder / f"{MANIFEST}.part"
        new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        new.replace(self.folder / MANIFEST)
        self.close()
        for role in ("train", "valid"):
            (self.folder / f"{role}.sizes").unlink(missing_ok=True)
            if role not in self.counts:
                (self.folder / f"{role}.bin").unlink(missing_ok=True)
        (self.folder / _JOURNAL).unlink()
        return self.counts

    def close(self) -> None:
        """Lets go of all files."""
        for file in (*self._writers.values(), self._journal):
            if file is not None:
                file.close()
