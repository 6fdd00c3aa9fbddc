"""The texts that bart.mini is pretrained on, from the archives as their authors publish them.

    python tools/mini_texts.py --books classic_books.tar.xz --reviews movie_reviews.zip \\
        --tatoeba deu-eng.zip --abstracts train.jsonl --output TEXTS

- books: "Classic Books as Markdown", a folder or .tar.xz of it (public domain);
- reviews: movie_reviews.zip, polarity dataset 2.0 (Pang and Lee 2004, CC BY 4.0);
- tatoeba: deu-eng.zip of manythings.org/anki, its English sides (tatoeba.org, CC BY 2.0 FR);
- abstracts: train.jsonl of SciTLDR (Cachola et al. 2020, Apache-2.0), its sources.

Writes TEXTS/{books,reviews,sentences,abstracts}/*.txt, a sentence or paragraph a line and an empty
line after a document, and TEXTS/mixture/*.txt, from which the vocabulary is learned: all but the
books, and every tenth paragraph of those. A tenth of Tatoeba's sentences is left out, for tests of
other tasks: those where the first byte of the sentence's SHA-256 is below 26.
"""

import argparse
import hashlib
import io
import json
import random
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from bart_hk.data.documents import TextFile

HELD_OUT = 26  # of 256
SENTENCES = 8  # of Tatoeba in a document, so that blocks are not all of one sentence


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    for name in ("books", "reviews", "tatoeba", "abstracts", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args(arguments)
    for name in ("books", "reviews", "tatoeba", "abstracts"):
        if not getattr(given, name).exists():
            sys.exit(f"--{name} {getattr(given, name)} does not exist")
    texts = {
        "books": list(books(given.books)),
        "reviews": list(reviews(given.reviews)),
        "sentences": list(sentences(given.tatoeba)),
        "abstracts": list(abstracts(given.abstracts)),
    }
    for name, documents in texts.items():
        write(given.output / name / f"{name}.txt", documents)
        lines = sum(map(len, documents))
        print(f"{name}: {len(documents)} documents, {lines} lines")
    mixture = [
        document[::10] if name == "books" else document
        for name, documents in texts.items()
        for document in documents
    ]
    write(given.output / "mixture" / "mixture.txt", mixture)


def books(source: Path) -> Iterator[list[str]]:
    """The books, each its paragraphs, without Markdown's marks and the lines of the head."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "book.md"
        for content in _markdown(source):
            path.write_bytes(content)
            pieces = TextFile(path, len(content)).pieces()
            lines = [line for piece in pieces for line in piece.lines]
            body = [line for line in lines if line and not line.startswith(_HEAD)]
            if body:
                yield body


_HEAD = ("Title: ", "Author: ", "Year: ")


def _markdown(source: Path) -> Iterator[bytes]:
    """The books' files, in the order of their names; what lies beside the authors is none."""
    if source.is_dir():
        for path in sorted(source.glob("*/*.md")):
            yield path.read_bytes()
        return
    with tarfile.open(source) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if member.name.endswith(".md") and len(Path(member.name).parts) > 2:
                file = archive.extractfile(member)
                assert file is not None
                yield file.read()


def reviews(source: Path) -> Iterator[list[str]]:
    """The reviews: lower-case sentences with spaces around punctuation, as they are."""
    with zipfile.ZipFile(source) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".txt"):
                text = archive.read(name).decode("latin-1")
                yield [line.strip() for line in text.splitlines() if line.strip()]


def sentences(source: Path) -> Iterator[list[str]]:
    """English sentences, each once, in an order that a fixed seed has drawn."""
    with zipfile.ZipFile(source) as archive:
        lines = io.TextIOWrapper(archive.open("deu.txt"), encoding="utf-8")
        found = sorted({line.split("\t")[0].strip() for line in lines})
    kept = [text for text in found if text and not held_out(text)]
    random.Random(1).shuffle(kept)
    for start in range(0, len(kept), SENTENCES):
        yield kept[start : start + SENTENCES]


def held_out(sentence: str) -> bool:
    """Whether an English sentence of Tatoeba is kept from pretraining."""
    return hashlib.sha256(sentence.encode()).digest()[0] < HELD_OUT


def abstracts(source: Path) -> Iterator[list[str]]:
    """Abstracts, introductions and conclusions of papers, a sentence a line."""
    with source.open(encoding="utf-8") as lines:
        for line in lines:
            yield [" ".join(text.split()) for text in json.loads(line)["source"] if text.strip()]


def write(path: Path, documents: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for document in documents:
            out.write("\n".join(document) + "\n\n")


if __name__ == "__main__":
    main()
