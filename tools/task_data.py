"""Tables for fine-tuning from published archives: `python tools/task_data.py NAME ARCHIVE OUT_DIR`.

    subjectivity   nltk_data's subjectivity.zip, 5,000 + 5,000 sentences: every tenth of each class
                   is valid.tsv, the next test.tsv
    trec           nltk_data's qc.zip, 5,452 + 500 questions, six coarse classes: some 500 of train
                   are valid.tsv
    tatoeba        deu-eng.zip of manythings.org/anki: split by English sentence, 5 % and 5 %

Which rows go where follows from the text alone, so it is the same everywhere.
"""

import argparse
import hashlib
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

Rows = dict[str, list[tuple[str, ...]]]  # split -> rows, the header first


def _share(text: str) -> float:
    """From 0 to 1, by the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def _lines(archive: zipfile.ZipFile, end: str, encoding: str) -> list[str]:
    names = [name for name in archive.namelist() if name.endswith(end)]
    if len(names) != 1:
        raise ValueError(f"{archive.filename} has {len(names)} files that end with {end}, not one")
    return archive.read(names[0]).decode(encoding).split("\n")


def subjectivity(archive: zipfile.ZipFile) -> Rows:
    splits: Rows = {name: [("text", "label")] for name in ("train", "valid", "test")}
    for end, label in (("plot.tok.gt9.5000", "objective"), ("quote.tok.gt9.5000", "subjective")):
        for number, line in enumerate(filter(str.strip, _lines(archive, end, "cp1252"))):
            split = {8: "valid", 9: "test"}.get(number % 10, "train")
            splits[split].append((" ".join(line.split()), label))
    return splits


def trec(archive: zipfile.ZipFile) -> Rows:
    splits: Rows = {name: [("text", "label")] for name in ("train", "valid", "test")}
    for end, split in (("train.txt", "train"), ("test.txt", "test")):
        for line in filter(str.strip, _lines(archive, end, "latin-1")):
            label, _, text = line.strip().partition(" ")
            held_out = split == "train" and _share(text) < 500 / 5452
            splits["valid" if held_out else split].append((text, label.partition(":")[0]))
    return splits


def tatoeba(archive: zipfile.ZipFile) -> Rows:
    splits: Rows = {name: [("en", "de")] for name in ("train", "valid", "test")}
    for line in filter(str.strip, _lines(archive, "deu.txt", "utf-8-sig")):
        english, german = line.rstrip("\r").split("\t")[:2]
        share = _share(english)
        split = "valid" if share < 0.05 else "test" if share < 0.1 else "train"
        splits[split].append((english, german))
    return splits


SETS: dict[str, Callable[[zipfile.ZipFile], Rows]] = {
    "subjectivity": subjectivity,
    "trec": trec,
    "tatoeba": tatoeba,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name", choices=SETS)
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args(argv)
    try:
        with zipfile.ZipFile(arguments.archive) as archive:
            splits = SETS[arguments.name](archive)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        print(f"task_data.py: {arguments.archive}: {error}", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        text = "".join("\t".join(row) + "\n" for row in rows)
        (arguments.out / f"{split}.tsv").write_text(text, encoding="utf-8")
        print(f"{arguments.out / f'{split}.tsv'}: {len(rows) - 1} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
