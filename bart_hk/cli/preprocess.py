"""`bart-hk-preprocess`: texts as token stores, for pretraining.

bart-hk-preprocess books/ --valid-share 0.01 --output DATA
bart-hk-preprocess wiki.txt.gz --valid held_out.txt --tokenizer bart.base --output DATA
bart-hk-preprocess reviews.jsonl.zst --sentencepiece 8192 --output DATA
"""

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bart_hk.data.documents import JSON_LINES, TextFile, find_files
from bart_hk.data.preprocessing import Counts, Reader, Split, preprocess
from bart_hk.data.readers import DataError
from bart_hk.text import TextEncoder, train_sentencepiece
from bart_hk.zoo import load_tokenizer

_MARKED_UP = (".json", ".csv", ".tsv", ".html", ".htm", ".xml")
_FORMATS = """texts:
  .txt           a line is a sentence (or a paragraph), an empty line ends a document
  .md            a file is a document, a paragraph a line; marks are removed
  .jsonl         an object is a document: its "text", or the field named by --field
  .gz .xz .bz2 .zst of these, and folders of all of them"""


def _learnt(
    train: Sequence[TextFile], split: Split, size: int, byte_fallback: bool, sample: int
) -> TextEncoder:
    logging.info("learning %d symbols from %s characters at most", size, f"{sample:,}")
    found = train_sentencepiece(_sample(train, split, sample), size, byte_fallback=byte_fallback)
    if len(found.dictionary) < size:
        logging.warning("the text gives %d symbols, not %d", len(found.dictionary), size)
    return found


def _sample(train: Sequence[TextFile], split: Split, characters: int) -> Iterator[str]:
    """Lines of training text: every n-th chunk, so that all files are heard."""
    total = sum(file.size for file in train)
    every = max(1, round(total / characters))  # packed files have more; that is cut below
    left = characters
    chunk = max(1, min(1 << 16, characters // 16))
    texts = (lines for role, lines in Reader(train, (), split, chunk).chunks() if role == "train")
    for number, lines in enumerate(texts):
        if number % every == 0:
            for line in lines:
                if line and left > 0:
                    left -= len(line)
                    yield line


def _report(counts: dict[str, Counts], output: str, seconds: float) -> None:
    for role, found in counts.items():
        share = 100 * found.unknown / max(found.tokens, 1)
        print(
            f"{output}/{role}: {found.documents:,} documents, {found.sentences:,} lines, "
            f"{found.tokens:,} tokens, {share:.3g} % <unk>"
        )
    total = sum(found.tokens for found in counts.values())
    print(f"{seconds:.1f} s, {total / max(seconds, 1e-9) / 1e6:.2f} million tokens/s")


def _parser() -> argparse.ArgumentParser:
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="bart-hk-preprocess",
        description=summary,
        epilog=f"{_FORMATS}\n\nexamples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("train", nargs="+", help="files and folders of texts")
    add(
        "--output", required=True, metavar="DIR", help="stores and tokenizer; a stopped run goes on"
    )
    add("--valid", nargs="+", default=[], metavar="PATH", help="texts to validate on")
    add(
        "--valid-share", type=float, default=0.0, metavar="X", help="of train's documents, held out"
    )
    add("--field", help="of JSON objects, with the text")
    add("--seed", type=int, help="of the documents that are held out by --valid-share (1)")
    add(
        "--tokenizer",
        metavar="NAME",
        help="of bart.large (which it is by default), bart.base, another model, or a folder with a "
        "tokenizer's files",
    )
    add("--sentencepiece", type=int, metavar="SIZE", help="learn that many symbols from the text")
    add(
        "--byte-fallback",
        action=argparse.BooleanOptionalAction,
        help="learn pieces for bytes as well, so that no character is unknown (it is so by "
        "default)",
    )
    add(
        "--sample",
        type=int,
        metavar="N",
        help="characters at most to learn from (20 million)",
    )
    add("--workers", type=int, metavar="N", help="processes; as many as cores by default")
    add("--quiet", action="store_true", help="no progress bar, no report")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    size = arguments.sentencepiece
    if arguments.workers is not None and arguments.workers < 1:
        raise DataError(f"--workers {arguments.workers} must be at least 1")
    if arguments.sample is not None and arguments.sample < 1:
        raise DataError(f"--sample {arguments.sample} must be at least 1")
    if arguments.valid and arguments.valid_share:
        raise DataError("give --valid or --valid-share, not both")
    if size is not None and arguments.tokenizer is not None:
        raise DataError("give --sentencepiece or --tokenizer, not both")
    for option, given, needed, there in (
        ("--sample", arguments.sample, "--sentencepiece", size),
        ("--byte-fallback", arguments.byte_fallback, "--sentencepiece", size),
        ("--seed", arguments.seed, "--valid-share", arguments.valid_share or None),
    ):
        if given is not None and there is None:
            raise DataError(f"{option} is for {needed}, which is not given; leave it out")
    train = find_files(arguments.train)
    valid = find_files(arguments.valid) if arguments.valid else []
    for file in (*train, *valid):
        if file.kind() in _MARKED_UP:
            raise DataError(
                f"{file.path}: {file.kind()} would be read as plain text; convert it to .jsonl, an "
                'object such as {"text": "..."} on every line, or to .txt'
            )
    both = {file.path.resolve() for file in train} & {file.path.resolve() for file in valid}
    if both:
        raise DataError(f"{both.pop()} is given to train and to validate on")
    output = Path(arguments.output)
    for name in map(Path, (*arguments.train, *arguments.valid)):
        if name.is_dir() and output.resolve().is_relative_to(name.resolve()):
            raise DataError(f"--output {output} is in {name}, whose texts are read; name another")
    if arguments.field and not any(file.kind() in JSON_LINES for file in (*train, *valid)):
        raise DataError(f"--field {arguments.field} is for .jsonl, and there is none; leave it out")
    seed = 1 if arguments.seed is None else arguments.seed
    split = Split(arguments.valid_share, seed, arguments.field)
    tokenizer, sample = arguments.tokenizer or "bart.large", arguments.sample or 20_000_000
    fallback = arguments.byte_fallback is not False
    settings: dict[str, Any] = {"tokenizer": tokenizer}
    if size is not None:
        settings = {"sentencepiece": size, "byte_fallback": fallback, "sample": sample}

    def encoder() -> TextEncoder:
        if size is None:
            return load_tokenizer(tokenizer)
        return _learnt(train, split, size, fallback, sample)

    began = time.perf_counter()
    counts = preprocess(
        train,
        output,
        encoder,
        valid=valid,
        split=split,
        settings=settings,
        workers=arguments.workers,
        progress=not arguments.quiet and sys.stderr.isatty(),
    )
    if not arguments.quiet:
        _report(counts, arguments.output, time.perf_counter() - began)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code: 0, 2 with one line on standard error, 130 if interrupted."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        format="%(message)s", level=logging.WARNING if arguments.quiet else logging.INFO
    )
    try:
        _run(arguments)
    except KeyboardInterrupt:
        print("bart-hk-preprocess: interrupted; the same command goes on", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        said = str(error)
        if isinstance(error, OSError) and error.errno and not error.filename:  # of a write
            said = (
                f"--output {arguments.output}: {error.strerror}; with room the same command goes on"
            )
        print(f"bart-hk-preprocess: {said}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
