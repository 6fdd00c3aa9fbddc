"""`bart-hk-generate` beside the real `fairseq-interactive` and `fairseq-generate`, line by line.

fairseq puts no `<s>` before a source or an output, which hubs do: so its inputs are written with
the symbol, and the model is not forced to begin with one. Its interactive command prints symbols
where its other one, and ours, print text; and the time that each input took (W-).
"""

import json
import shutil

import pytest

from bart_hk.cli.convert import convert
from bart_hk.cli.generate import main
from bart_hk.hub import BARTHubInterface
from bart_hk.text import TextEncoder
from tests.hub.conftest import CONFIG
from tests.parameters import random_params

TEXTS = ["Hello world!", "The cat sat on the mat.", "a b", "something else, of some length"]
PHRASES = [[" cat", " on the mat"], [], [" b"], [" else"]]
REFERENCES = ["Hello to the world!", "A dog sat on the mat.", "b b", "nothing of that length"]
INTERACTIVE = {
    "plain": [],
    "nbest": ["--beam", "4", "--nbest", "3", "--lenpen", "2"],
    "unnormalized": ["--beam", "3", "--nbest", "3", "--unnormalized", "--min-len", "4"],
    "alignment": ["--beam", "2", "--nbest", "2", "--print-alignment"],
    "constraints": ["--beam", "4", "--constraints", "ordered", "--max-len-b", "12"],
}
GENERATE = {
    "references": ["--beam", "2", "--scoring", "sacrebleu"],
    "soft": ["--beam", "2", "--print-alignment", "soft", "--scoring", "sacrebleu"],
}


@pytest.fixture(scope="module")
def folder(oracle, tmp_path_factory):
    """The model in both formats, fairseq's data, and what fairseq printed."""
    folder = tmp_path_factory.mktemp("cli")
    config = CONFIG.replace(forced_bos_token_id=None)
    text = TextEncoder.gpt2()
    BARTHubInterface(config, random_params(config, 0.16), text).save(folder / "ours")
    convert(str(folder / "ours"), folder / "theirs", "fairseq")
    shutil.copy(folder / "theirs" / "model.pt", folder)
    (folder / "data").mkdir()
    for side, rows in (("source", TEXTS), ("target", REFERENCES)):
        shutil.copy(folder / "theirs" / "dict.txt", folder / "data" / f"dict.{side}.txt")
        start = "<s> " if side == "source" else ""
        lines = [f"{start}{text.bpe.encode(row)}\n" for row in rows]
        (folder / "data" / f"test.source-target.{side}").write_text("".join(lines))
    sources = ["<s> " + text.bpe.encode(row) for row in TEXTS]
    constrained = [
        "\t".join([source, *map(text.bpe.encode, phrases)])
        for source, phrases in zip(sources, PHRASES, strict=True)
    ]
    cases = {}
    for name, options in INTERACTIVE.items():
        lines = constrained if name == "constraints" else sources
        arguments = with_length(options)
        cases[name] = {"command": "interactive", "arguments": arguments, "lines": lines}
    files = [f"--gpt2-{n}={folder / 'theirs' / f}" for n, f in (
        ("encoder-json", "encoder.json"), ("vocab-bpe", "vocab.bpe"))]  # fmt: skip
    for name, options in GENERATE.items():
        # Without the last option it drops the last batch, here all there is.
        more = ["--dataset-impl", "raw", "--bpe", "gpt2", *files]
        more += ["--required-batch-size-multiple", "1"]
        cases[name] = {"command": "generate", "arguments": [*with_length(options), *more]}
    (folder / "cases.json").write_text(json.dumps(cases))
    oracle("oracle_cli.py", folder)
    (folder / "in.txt").write_text("".join(f"{row}\n" for row in TEXTS))
    (folder / "test.tsv").write_text(
        "".join(f"{a}\t{b}\n" for a, b in zip(TEXTS, REFERENCES, strict=True))
    )
    (folder / "c.txt").write_text(
        "".join("\t".join([row, *more]) + "\n" for row, more in zip(TEXTS, PHRASES, strict=True))
    )
    return folder


def with_length(options):
    return options if "--max-len-b" in options else [*options, "--max-len-b", "6"]


def theirs(folder, name):
    """The lines that begin with a tag, in the order of the inputs; and the last ones."""
    lines = [
        line
        for line in (folder / f"{name}.out").read_text().splitlines()
        if line[:2] in ("S-", "T-", "C-", "H-", "D-", "P-", "A-") or line.startswith("Generate")
    ]
    return sorted(lines, key=lambda line: int(line[2:].split("\t")[0]) if line[1] == "-" else 99)


def ours(folder, capsys, source, options):
    options = list(options)
    if "--scoring" in options:
        at = options.index("--scoring")
        options[at : at + 2] = ["--metrics", "bleu"]
    assert main(["--path", str(folder / "ours"), str(folder / source), *with_length(options)]) == 0
    return capsys.readouterr().out.splitlines()


def assert_same(found, expected):
    """Numbers may differ where they are rounded."""
    (tag, *fields), (their_tag, *their_fields) = found.split("\t"), expected.split("\t")
    assert tag == their_tag and len(fields) == len(their_fields)
    kind = tag[0]
    if kind in "HD":
        assert float(fields[0]) == pytest.approx(float(their_fields[0]), abs=2e-4)
        assert fields[1:] == their_fields[1:]
    elif kind == "P" or (kind == "A" and "," in fields[0]):
        numbers, their_numbers = (f[0].replace(",", " ").split() for f in (fields, their_fields))
        assert [len(n) for n in numbers] == [len(n) for n in their_numbers]  # decimals
        values = list(map(float, their_numbers))
        assert list(map(float, numbers)) == pytest.approx(values, abs=3e-4)
    else:
        assert fields == their_fields


@pytest.mark.parametrize("name", INTERACTIVE)
def test_lines_are_those_of_fairseq_interactive(folder, capsys, name):
    source = "c.txt" if name == "constraints" else "in.txt"
    found = ours(folder, capsys, source, INTERACTIVE[name])
    expected = theirs(folder, name)
    bpe = TextEncoder.gpt2().bpe
    # What it prints as symbols.
    expected = [as_text(line, bpe) if line[0] in "SDC" else line for line in expected]
    assert len(found) == len(expected) > 3 * len(TEXTS)
    for line, their in zip(found, expected, strict=True):
        assert_same(line, their)


def as_text(line, bpe):
    *fields, symbols = line.split("\t")
    return "\t".join([*fields, bpe.decode(symbols)])


@pytest.mark.parametrize("name", GENERATE)
def test_lines_are_those_of_fairseq_generate(folder, capsys, name):
    found = ours(folder, capsys, "test.tsv", GENERATE[name])
    expected = theirs(folder, name)
    assert len(found) == len(expected) > 4 * len(TEXTS)
    for line, their in zip(found, expected, strict=True):
        assert_same(line, their)
    assert found[-1].startswith("Generate test with beam=2: BLEU = ")
