"""`bart-hk-generate`: outputs for a file of texts, or for what is typed.

bart-hk-generate --path bart.large.cnn --preset cnn news.txt --format text --output short.txt
bart-hk-generate --path OUT --beam 5 --nbest 5                 # line by line from the keyboard
bart-hk-generate --path a.pt:b.pt dev.tsv --output dev.out     # sources and references: BLEU, ROUGE

With --output the file appears when it is complete. Interrupted at any moment, the same command goes
on where it was.
"""

import argparse
import contextlib
import dataclasses
import difflib
import errno
import hashlib
import itertools
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from tqdm import tqdm

from bart_hk.cli.inputs import COLUMNS, Format, Item, lines_of, open_lines, read_items
from bart_hk.cli.item_generator import DTYPES, ItemGenerator
from bart_hk.cli.option_flags import PRESET_HELP, PRESET_NAMES, add_option_flags, preset_options
from bart_hk.cli.outputs import FORMATS
from bart_hk.cli.unfinished import Unfinished
from bart_hk.generation.lists import BATCH_SIZE, MAX_TOKENS
from bart_hk.generation.options import GenerationOptions
from bart_hk.generation.other_names import instead_of
from bart_hk.tasks.text_metrics import NAMES, TextMetrics

_PROGRAM = "bart-hk-generate"
_WINDOW = 4096  # inputs that are read, sorted into batches and written together

logger = logging.getLogger(_PROGRAM)


# --- What to do -----------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Errors take one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help lists the options\n")


def _parser() -> argparse.ArgumentParser:
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = _Parser(
        prog=_PROGRAM,
        description=summary,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("input", nargs="?", default="-", help="a file of inputs; - or nothing: standard input")
    add("--path", required=True, help="what bart_hk.load takes: a name, folder, file; a.pt:b.pt")
    add("--checkpoint-file", help="of a fairseq folder; several, a.pt:b.pt, are an ensemble")
    add("--data", default=".", metavar="DIR", help="where the dictionary is")
    add("--revision", help="of a repository of Hugging Face's hub")
    add("--device", help="cpu, gpu, gpu:1, ...")
    add("--dtype", choices=DTYPES, default="fp32")
    add("--output", metavar="FILE", help="the file to write, which must be new; else standard out")
    add("--format", choices=FORMATS, default="fairseq", help="of the output (default fairseq)")
    add("--preset", choices=PRESET_NAMES, help=PRESET_HELP)
    group = parser.add_argument_group("inputs")
    add = group.add_argument
    columns = "tab-separated: source,target,prefix,constraints; by default a line is a source, of a"
    add("--columns", help=f"{columns} .tsv file source,target; a .jsonl has them as keys")
    add("--references", metavar="FILE", help="a reference on each line, for BLEU and ROUGE")
    add("--metrics", choices=[*NAMES, "none"], nargs="+", help="of the references (default all)")
    add("--prefix", metavar="TEXT", help="what every output begins with")
    add("--prefix-size", type=int, default=0, metavar="N", help="... or N tokens of its reference")
    add("--allowed-outputs", metavar="FILE", help="only what is on one of its lines may come out")
    add("--stop-strings", nargs="+", metavar="TEXT", help="an output that holds one ends there")
    add("--lm", metavar="MODULE:NAME", help="a function (tokens, length) -> log probabilities")
    processor = "a function (tokens, length, scores) -> scores, of the next token"
    add("--logits-processor", metavar="MODULE:NAME", help=processor)
    add(
        "--replace-unk",
        nargs="?",
        const="",
        metavar="FILE",
        help="write what is aligned with <unk> instead, as FILE translates it",
    )
    group = parser.add_argument_group("batches")
    add = group.add_argument
    add("--max-tokens", type=int, default=MAX_TOKENS, metavar="N", help="padded, of a batch")
    add("--batch-size", type=int, default=BATCH_SIZE, metavar="N", help="inputs of a batch")
    add(
        "--buffer-size",
        type=int,
        metavar="N",
        help=f"inputs that are read and sorted together (default {_WINDOW}; 1 from a terminal)",
    )
    add("--quiet", action="store_true", help="no progress bar and no notes")
    group = parser.add_argument_group("search")
    group.add_argument(
        "--nbest", type=int, default=1, metavar="N", help="hypotheses of an input (default 1)"
    )
    add_option_flags(group, leave_out=("nbest",))
    return parser


@dataclasses.dataclass
class _Job:
    """The parsed command."""

    arguments: argparse.Namespace
    options: dict[str, Any]  # of GenerationOptions, those that were given

    @classmethod
    def parse(cls, argv: Sequence[str] | None) -> "_Job":
        """
        Raises:
            ValueError: options do not fit together.
        """
        parser = _parser()
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            parser.error(_about_unknown(unknown[0], parser))
        names = {field.name for field in dataclasses.fields(GenerationOptions)} - {"nbest"}
        asked = {name: value for name, value in vars(arguments).items() if name in names}
        options = {**preset_options(arguments.preset), **asked}
        if arguments.nbest < 1:
            raise ValueError(f"--nbest must be at least 1, not {arguments.nbest}")
        if options.get("sampling"):
            if options.setdefault("beam", arguments.nbest) != arguments.nbest:
                raise ValueError(
                    f"--sampling draws --beam {options['beam']} samples, of which --nbest "
                    f"{arguments.nbest} would be the most probable ones; give both the same number"
                )
        if options.get("penalty_alpha"):
            options.setdefault("beam", 1)
        GenerationOptions.from_kwargs(**options, nbest=arguments.nbest)
        for name in ("max_tokens", "batch_size", "buffer_size"):
            if (value := getattr(arguments, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if arguments.prefix is not None and arguments.prefix_size:
            raise ValueError("--prefix and --prefix-size both say how outputs begin; give one")
        if arguments.prefix_size and "prefix" in (arguments.columns or "").split(","):
            raise ValueError(
                "--prefix-size and the prefix of --columns both say how outputs begin; give one"
            )
        if arguments.prefix_size < 0:
            raise ValueError(f"--prefix-size must be at least 0, not {arguments.prefix_size}")
        if "print_alignment" in options and arguments.format == "text":
            raise ValueError(
                "--print-alignment has no meaning with --format text, which has no place for it; "
                "take fairseq or jsonl"
            )
        if arguments.replace_unk is not None and options.get("print_alignment") == "soft":
            raise ValueError("--replace-unk needs hard alignments, not --print-alignment soft")
        job = cls(arguments, options)
        line_format = job.format()
        has_targets = line_format.json or "target" in line_format.columns
        if arguments.references is not None and "target" in line_format.columns:
            raise ValueError(
                f"--references {arguments.references} and the column target of the input both say "
                "what is right; give one"
            )
        if set(arguments.metrics or ()) - {"none"} and not has_targets and not arguments.references:
            raise ValueError(
                f"--metrics {' '.join(arguments.metrics)} compare with references, and there are "
                "none; give --references FILE or a column target"
            )
        return job

    @property
    def input(self) -> Path | None:
        """The input file; None: standard input."""
        return None if self.arguments.input == "-" else Path(self.arguments.input)

    def format(self) -> Format:
        columns = self.arguments.columns
        return Format.of(
            self.input,
            None if columns is None else columns.split(","),
            "constraints" in self.options,
        )


def _about_unknown(word: str, parser: argparse.ArgumentParser) -> str:
    """What to say about an argument that there is not."""
    name = word.lstrip("-").partition("=")[0].replace("-", "_")
    instead = instead_of(name)
    known = [flag for action in parser._actions for flag in action.option_strings]
    near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
    hint = f"here it is {instead}" if instead else f"did you mean {near[0]}?" if near else ""
    return f"there is no option {word}" + (f", {hint}" if hint else "")


# --- Doing it -------------------------------------------------------------------------------------


def _described(path: Path) -> dict[str, Any]:
    """A file's size and digest, and how many lines it has."""
    digest, size, lines, last = hashlib.sha256(), 0, 0, b"\n"
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size, lines, last = size + len(block), lines + block.count(b"\n"), block
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    lines += not last.endswith(b"\n")
    return {"size": size, "sha256": digest.hexdigest(), "lines": lines}


@contextlib.contextmanager
def _items(job: _Job) -> Iterator[Iterator[Item]]:
    """The inputs, with the files that they come from open."""
    with contextlib.ExitStack() as stack:
        source: IO[bytes] = sys.stdin.buffer
        if job.input is not None:
            source = stack.enter_context(open_lines(job.input))
        references = None
        if job.arguments.references is not None:
            path = Path(job.arguments.references)
            references = lines_of(stack.enter_context(open_lines(path)), str(path))
        name = "standard input" if job.input is None else str(job.input)
        yield read_items(lines_of(source, name), job.format(), references)


def _windows(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while window := list(itertools.islice(items, size)):
        yield window


def generate(job: _Job) -> None:
    """Does what a command asks for.

    Raises:
        ValueError, OSError, ImportError: it cannot be done; the message is one line.
    """
    arguments = job.arguments
    described = {}
    # A pipe can be read only once, whatever its name.
    if job.input is not None and (job.input.is_file() or not job.input.exists()):
        described["input"] = _described(job.input)
    for name in ("references", "allowed_outputs", "replace_unk"):
        if given := getattr(arguments, name):
            path = Path(given)
            if path.exists() and not path.is_file():
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} {path} is no regular file; write it to one first")
            if name == "references" or path.is_file():  # the others are missed where they are read
                described[name] = _described(path)
    names = [name for name in arguments.metrics or NAMES if name != "none"]
    if arguments.references is not None or "target" in job.format().columns:
        TextMetrics(names)  # what is missing is missed before the work is done
    destination = None if arguments.output is None else Path(arguments.output)
    if destination is not None and destination.exists():
        raise FileExistsError(f"{destination} is there already; name another file, or remove it")
    generation = ItemGenerator(arguments, job.options)
    unfinished = None
    if destination is not None and "input" in described:
        run = {
            **described,
            "model": {"digest": generation.bart.digest(), "dtype": arguments.dtype},
            "command": _command(job),
        }
        unfinished = Unfinished(destination, run)
    try:
        with _items(job) as items:
            _generate_all(job, generation, items, unfinished, described, names)
    finally:
        if unfinished is not None:
            unfinished.close()


def _command(job: _Job) -> dict[str, Any]:
    """The options that change what is written."""
    arguments = vars(job.arguments)
    written = ("format", "columns", "metrics", "prefix", "prefix_size", "lm", "logits_processor")
    names = ("nbest", *written, "replace_unk", "stop_strings")
    return {**{name: arguments[name] for name in names}, **job.options}


def _generate_all(
    job: _Job,
    generation: ItemGenerator,
    items: Iterator[Item],
    unfinished: Unfinished | None,
    described: Mapping[str, Any],
    names: Sequence[str],
) -> None:
    arguments = job.arguments
    from_terminal = job.input is None and sys.stdin.isatty()
    size = arguments.buffer_size or (1 if from_terminal else _WINDOW)
    if from_terminal and not arguments.quiet:
        print("Type a text and press return:", file=sys.stderr)
    metrics, done = None, 0
    out = _Out(arguments.output) if unfinished is None else None
    if unfinished is not None:
        done = unfinished.rows
        metrics = TextMetrics(names, unfinished.state) if unfinished.state else None
        for _ in itertools.islice(items, done):
            pass
    total = described["input"]["lines"] if "input" in described else None  # a packed file's differ
    hidden = True if arguments.quiet or from_terminal else None  # None: unless it is a terminal
    cut: list[int] = []
    noted: set[str] = set()
    with tqdm(total=total, initial=done, disable=hidden, unit="input", file=sys.stderr) as bar:
        for window in _windows(items, size):
            if not arguments.quiet:
                _note_what_is_unread(window, noted)
            rows, too_long = generation.encode(window)
            cut += too_long
            if names and metrics is None and any(item.target is not None for item in window):
                metrics = TextMetrics(names)
            found = dict(unfinished.waiting) if unfinished is not None else {}
            bar.update(sum(item.number in found for item in window))
            for batch in generation.batches(rows):
                # As planned, but for batches that were finished before the last interruption.
                if all(window[i].number in found for i in batch):
                    continue
                results = generation.texts([window[i] for i in batch], [rows[i] for i in batch])
                new = {window[i].number: one for i, one in zip(batch, results, strict=True)}
                if unfinished is not None:
                    unfinished.keep(new)
                bar.update(len(new.keys() - found.keys()))
                found |= new
            for item in window:
                if item.target is not None and metrics is not None:
                    metrics.add(found[item.number]["best"], item.target)
            texts = [found[item.number]["text"] for item in window]
            if unfinished is not None:
                unfinished.append(texts, metrics.state if metrics else {})
            elif out is not None:
                out.write("".join(texts))
    if generation.order and not (generation.had_constraints or done or arguments.quiet):
        logger.warning("--constraints %s changed nothing: no input has phrases", generation.order)
    if cut and not arguments.quiet:
        limit = generation.bart.max_positions[0]
        logger.warning(
            "%d inputs were cut to the %d tokens that are read, input %d first",
            len(cut),
            limit,
            cut[0],
        )
    last = _summary(job, metrics, generation.options["beam"])
    if unfinished is not None:
        unfinished.finish(last)
    elif out is not None:
        out.finish(last)


def _note_what_is_unread(items: Sequence[Item], noted: set[str]) -> None:
    """Names the keys of JSON objects that nothing reads, each once."""
    for item in items:
        for name in item.unread:
            if name not in noted:
                noted.add(name)
                known = ", ".join(COLUMNS)
                logger.warning(
                    'input %d: the key "%s" is not read; those are %s', item.number, name, known
                )


def _summary(job: _Job, metrics: TextMetrics | None, beam: int) -> str:
    """The last lines of the output, fairseq's; of other formats they go to standard error."""
    if metrics is None:
        return ""
    subset = "test" if job.input is None else job.input.name.partition(".")[0]
    text = "".join(f"Generate {subset} with beam={beam}: {line}\n" for line in metrics.lines())
    if job.arguments.format == "fairseq":
        return text
    print(text, end="", file=sys.stderr)
    return ""


class _Out:
    """Standard output, or a file that nothing can go on with."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.file: IO[str] = sys.stdout
        if path is not None:
            self.file = open(f"{path}.unfinished", "w", encoding="utf-8")  # noqa: SIM115

    def write(self, text: str) -> None:
        self.file.write(text)
        self.file.flush()

    def finish(self, text: str) -> None:
        self.write(text)
        if self.path is not None:
            self.file.close()
            os.replace(f"{self.path}.unfinished", self.path)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; gives its exit code: 0, or 2 with one line on standard error."""
    logging.basicConfig(format=f"{_PROGRAM}: %(message)s")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        generate(_Job.parse(argv))
    except BrokenPipeError:  # whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"\n{_PROGRAM}: interrupted; with --output the same command goes on", file=sys.stderr)
        return 130
    except (OSError, ValueError, ImportError) as error:
        message = str(error)
        if isinstance(error, OSError) and error.errno is not None:
            message = f"{error.filename or 'the output'}: {error.strerror}"
        print(f"{_PROGRAM}: error: {' '.join(message.split())}", file=sys.stderr)
        # The command is not to blame for a full disk.
        return 1 if isinstance(error, OSError) and error.errno == errno.ENOSPC else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
