"""Stores from texts: the same whoever encodes, gone on with when stopped, never short of a word."""

import fcntl
import gzip
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bart_hk.data import documents, preprocessing
from bart_hk.data.documents import find_files
from bart_hk.data.preprocessing import Counts, Split, preprocess
from bart_hk.data.readers import DataError
from bart_hk.data.store import TokenStore, write_store
from bart_hk.text import TextEncoder, train_bpe

WORDS = "the cat sat on a mat and saw his dog under that old tree".split()
RESULTS = ("train.bin", "train.idx", "valid.bin", "valid.idx", "vocab.json", "merges.txt")


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(count)]


def encoder() -> TextEncoder:
    return train_bpe([" ".join(WORDS)] * 5, 300)


@pytest.fixture
def texts(tmp_path) -> Path:
    """200 documents in files of four kinds."""
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = iter(sentences(1000))
    documents = [list(itertools.islice(lines, 5)) for _ in range(200)]
    plain = "\n".join("\n".join(document) + "\n" for document in documents[:80])
    (folder / "a.txt").write_text(plain)
    (folder / "b.md").write_text("\n\n".join(documents[80]))
    packed = "\n".join("\n".join(document) + "\n" for document in documents[81:150])
    (folder / "c.txt.gz").write_bytes(gzip.compress(packed.encode()))
    records = [json.dumps({"text": "\n".join(document)}) for document in documents[150:]]
    (folder / "d.jsonl").write_text("\n".join(records))
    return folder


def run(texts: Path, output: Path, **options) -> dict[str, Counts]:
    options = {"workers": 1, "chunk": 500, "split": Split(valid_share=0.2)} | options
    return preprocess(find_files([texts]), output, encoder, **options)


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


def lines_of(folder: Path, role: str) -> list[str]:
    text, store = TextEncoder.load(folder), TokenStore(folder / role)
    rows = [store[item] for item in range(len(store))]
    assert all(row[-1] == text.dictionary.eos() for row in rows)
    return [text.decode(row[:-1]) for row in rows]


def documents_of(lines: list[str]) -> list[tuple[str, ...]]:
    groups = itertools.groupby(lines, bool)
    return [tuple(group) for some, group in groups if some]


def all_documents() -> set[tuple[str, ...]]:
    lines = iter(sentences(1000))
    return {tuple(itertools.islice(lines, 5)) for _ in range(200)}


@pytest.mark.parametrize("piece", [60, 1 << 20])  # characters that are held at once
def test_every_document_is_in_one_of_the_stores_and_apart(texts, tmp_path, monkeypatch, piece):
    monkeypatch.setattr(documents, "_PIECE", piece)
    counts = run(texts, tmp_path / "out")
    train = documents_of(lines_of(tmp_path / "out", "train"))
    valid = documents_of(lines_of(tmp_path / "out", "valid"))
    assert set(train) | set(valid) == all_documents()
    assert len(train) + len(valid) == 200 and 25 <= len(valid) <= 55
    assert counts["train"].documents == len(train) and counts["valid"].documents == len(valid)
    assert counts["train"].sentences == 5 * len(train)
    tokens = TokenStore(tmp_path / "out" / "train").sizes.sum()
    assert counts["train"].tokens == tokens and counts["train"].unknown == 0
    left = {file.name for file in (tmp_path / "out").iterdir()}
    assert left == {*RESULTS, "tokenizer_config.json", "preprocess.json"}


def test_a_file_becomes_item_for_item_its_lines(tmp_path):
    (tmp_path / "a.txt").write_text("\n the cat \n\n\nsat\non")
    run(tmp_path / "a.txt", tmp_path / "out", split=Split())
    assert lines_of(tmp_path / "out", "train") == ["", "the cat", "", "", "sat", "on"]
    assert not (tmp_path / "out" / "valid.bin").exists()


def test_workers_and_chunks_do_not_matter(texts, tmp_path):
    run(texts, tmp_path / "one")
    run(texts, tmp_path / "two", workers=2)
    run(texts, tmp_path / "three", chunk=1 << 20)
    assert results(tmp_path / "one") == results(tmp_path / "two") == results(tmp_path / "three")


def test_held_out_documents_are_chosen_by_content_and_seed(texts, tmp_path):
    run(texts, tmp_path / "one")
    (texts / "0.txt").write_text("\n".join(["a mat", "", "a dog", "", "old", ""]))
    run(texts, tmp_path / "more")
    one = set(documents_of(lines_of(tmp_path / "one", "valid")))
    assert one <= set(documents_of(lines_of(tmp_path / "more", "valid")))
    run(texts, tmp_path / "seed", split=Split(0.2, seed=2))
    assert one != set(documents_of(lines_of(tmp_path / "seed", "valid")))


def test_texts_to_validate_on(texts, tmp_path):
    (tmp_path / "held.txt").write_text("a mat\n\nold dog")
    preprocess(
        find_files([texts]),
        tmp_path / "out",
        encoder,
        valid=find_files([tmp_path / "held.txt"]),
        workers=1,
    )
    assert lines_of(tmp_path / "out", "valid") == ["a mat", "", "old dog"]
    assert len(documents_of(lines_of(tmp_path / "out", "train"))) == 200


def test_unknown_tokens_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text("cat é\n")

    def few() -> TextEncoder:
        from bart_hk.text import train_sentencepiece

        return train_sentencepiece(sentences(200), 60, byte_fallback=False)

    counts = preprocess(find_files([tmp_path / "a.txt"]), tmp_path / "out", few, workers=1)
    assert counts["train"].unknown == 1


# --- Stopped and gone on with ---------------------------------------------------------------------


@pytest.fixture
def stopping(monkeypatch):
    """`stopping(n)` lets n chunks be written and then fails."""

    def stop(after: int) -> None:
        left = itertools.count()
        encode = preprocessing.LineEncoder.__call__

        def failing(self, lines):
            if next(left) >= after:
                raise KeyboardInterrupt
            return encode(self, lines)

        monkeypatch.setattr(preprocessing.LineEncoder, "__call__", failing)

    yield stop
    monkeypatch.undo()


@pytest.mark.parametrize("after", [0, 1, 7, 30])
def test_a_stopped_run_is_gone_on_with(texts, tmp_path, stopping, monkeypatch, after):
    run(texts, tmp_path / "whole")
    out = tmp_path / "out"
    stopping(after)
    with pytest.raises(KeyboardInterrupt):
        run(texts, out)
    monkeypatch.undo()
    with pytest.raises(DataError, match="train.idx does not exist"):
        TokenStore(out / "train")
    with open(out / "train.bin", "ab") as file:  # written, but not yet in the journal
        file.write(b"more")
    with open(out / "preprocess.journal", "a") as file:
        file.write('{"split": "tra')
    counted = itertools.count()
    encode = preprocessing.LineEncoder.__call__
    monkeypatch.setattr(
        preprocessing.LineEncoder,
        "__call__",
        lambda self, lines: next(counted) >= 0 and encode(self, lines),
    )
    counts = run(texts, out)
    encoded = next(counted)
    assert results(out) == results(tmp_path / "whole")
    assert counts == run(texts, tmp_path / "whole")  # which is complete, and left alone
    total = sum(1 for _ in preprocessing.Reader(find_files([texts]), (), Split(0.2), 500).chunks())
    assert encoded == total - after


def test_a_changed_text_is_refused(texts, tmp_path, stopping, monkeypatch):
    out = tmp_path / "out"
    stopping(10)
    with pytest.raises(KeyboardInterrupt):
        run(texts, out)
    monkeypatch.undo()
    whole = (texts / "a.txt").read_text()
    (texts / "a.txt").write_text(whole.replace("cat", "dog", 1))
    with pytest.raises(DataError, match=r"the text has changed since .*out was begun \(its chunk"):
        run(texts, out)
    (texts / "a.txt").write_text(whole + "x")
    with pytest.raises(DataError, match="was begun with train=other files, now it is .*a.txt diff"):
        run(texts, out)
    (texts / "a.txt").write_text(whole)
    with pytest.raises(
        DataError, match="was begun with valid_share=0.2, now it is 0.3; choose ano"
    ):
        run(texts, out, split=Split(0.3))
    with pytest.raises(DataError, match="was begun with tokenizer=None, now it is other; choose a"):
        run(texts, out, settings={"tokenizer": "other"})
    with pytest.raises(DataError, match="with train=these files, now it is another order of them"):
        preprocess(find_files([texts])[::-1], out, encoder, workers=1, chunk=500, split=Split(0.2))
    (texts / "e.txt").write_text("new\n")
    with pytest.raises(DataError, match="e.txt differs or is not among both"):
        run(texts, out)
    (texts / "e.txt").unlink()
    run(texts, out)


def test_a_complete_folder_is_of_its_texts(texts, tmp_path, capsys):
    run(texts, tmp_path / "out", progress=True)
    assert re.search(r"encoding: 100%\|█+\| ([\d.]+k)/\1 ", capsys.readouterr().err)
    before = (tmp_path / "out" / "train.bin").stat().st_mtime_ns
    run(texts, tmp_path / "out")
    assert (tmp_path / "out" / "train.bin").stat().st_mtime_ns == before
    whole = (texts / "a.txt").read_text()
    (texts / "a.txt").write_text(whole.replace("cat", "dog", 1))
    with pytest.raises(DataError, match="a.txt has changed since .*out was made of it"):
        run(texts, tmp_path / "out")
    with pytest.raises(DataError, match="was made with valid_share=0.2, now it is 0.0"):
        run(texts, tmp_path / "out", split=Split())
    (texts / "a.txt").write_text(whole)
    manifest = tmp_path / "out" / "preprocess.json"
    recorded = json.loads(manifest.read_text())
    recorded["modified"][str(texts / "a.txt")] = (texts / "a.txt").stat().st_mtime_ns
    for content in ("[]", "{", '{"made of": 1, "modified": {}, "splits": {}}'):
        manifest.write_text(content)
        with pytest.raises(DataError, match="preprocess.json is damaged; remove .*out and begin"):
            run(texts, tmp_path / "out")
    manifest.write_text(json.dumps(recorded))
    run(texts, tmp_path / "out")
    (tmp_path / "out" / "valid.bin").unlink()
    with pytest.raises(DataError, match="valid.bin does not exist; .*or remove .*out and begin ag"):
        run(texts, tmp_path / "out")


def test_another_store_is_not_written_over(texts, tmp_path):
    write_store(tmp_path / "train", np.array([5]), np.array([1]), 100)
    with pytest.raises(DataError, match="holds a token store that this command did not make"):
        run(texts, tmp_path)


def test_a_folder_is_written_by_one_process_at_a_time(texts, tmp_path):
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / "preprocess.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="out is being written by another process"):
            run(texts, tmp_path / "out")
    run(texts, tmp_path / "out")


def test_a_damaged_journal(texts, tmp_path, stopping, monkeypatch):
    stopping(3)
    with pytest.raises(KeyboardInterrupt):
        run(texts, tmp_path / "out")
    monkeypatch.undo()
    for content in ("no\n", "3\n", ""):
        (tmp_path / "out" / "preprocess.journal").write_text(content)
        with pytest.raises(DataError, match="preprocess.journal is damaged; remove .*out and beg"):
            run(texts, tmp_path / "out")


# --- What goes wrong ------------------------------------------------------------------------------


def test_no_text_at_all(tmp_path):
    for number, content in enumerate(("", "\n\n \n")):
        (tmp_path / "a.txt").write_text(content)
        with pytest.raises(DataError, match="there is no text to train on: all lines are empty"):
            run(tmp_path / "a.txt", tmp_path / f"out{number}")


def test_no_text_to_validate_on(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match="to validate on: the share 0.2 of 1 documents holds none"):
        run(tmp_path / "a.txt", tmp_path / "out")
    (tmp_path / "b.txt").write_text("\n")
    held = find_files([tmp_path / "b.txt"])
    with pytest.raises(DataError, match="to validate on: the texts for it have no line"):
        run(tmp_path / "a.txt", tmp_path / "again", split=Split(), valid=held)


def test_a_share_that_is_none():
    with pytest.raises(DataError, match=r"validation documents, 1.5, is not in \[0, 1\)"):
        Split(1.5)


def test_a_damaged_file_ends_the_run_and_nothing_is_complete(texts, tmp_path):
    data = (texts / "c.txt.gz").read_bytes()
    (texts / "c.txt.gz").write_bytes(data[:-20])
    with pytest.raises(DataError, match="c.txt.gz cannot be read"):
        run(texts, tmp_path / "out")
    assert not (tmp_path / "out" / "train.idx").exists()


SCRIPT = """
import os, resource, signal, sys
from pathlib import Path
from bart_hk.data import preprocessing
from bart_hk.data.documents import find_files
from bart_hk.data.preprocessing import Split, preprocess
from bart_hk.text import TextEncoder, train_bpe

def encoder():
    return TextEncoder.load(sys.argv[3])

if __name__ == "__main__":
    texts, out, _, limit, workers = sys.argv[1:]
    if int(limit):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    try:
        preprocess(find_files([texts]), out, encoder, split=Split(0.2), chunk=500,
                   workers=int(workers))
        print(Path("/proc/self/status").read_text())
    except OSError as error:
        print(type(error).__name__, error)
        sys.exit(2)
"""


def start(tmp_path, texts, out, limit=0, workers=1) -> subprocess.Popen:
    encoder().save(tmp_path / "tokenizer")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = [texts, out, tmp_path / "tokenizer", limit, workers]
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_a_full_disk_is_an_error_and_the_run_goes_on_where_there_is_room(texts, tmp_path):
    (texts / "z.txt").write_text("\n".join(sentences(3000, seed=1)))
    run(texts, tmp_path / "whole")
    process = start(tmp_path, texts, tmp_path / "out", limit=30_000)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2 and "File too large" in said, said
    run(texts, tmp_path / "out")
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_killed_at_any_moment_it_goes_on(texts, tmp_path):
    (texts / "z.txt").write_text("\n\n".join(sentences(8_000, seed=1)))
    run(texts, tmp_path / "whole")
    journal = tmp_path / "out" / "preprocess.journal"
    for size in (1_000, 15_000, 30_000):
        process = start(tmp_path, texts, tmp_path / "out")
        while process.poll() is None:
            if journal.exists() and journal.stat().st_size > size:
                process.kill()
                break
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL  # it was in the middle of it
    run(texts, tmp_path / "out")
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def dies(lines):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_ends_the_run_with_an_error(texts, tmp_path, monkeypatch):
    run(texts, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(preprocessing, "_encode_in_worker", dies)
        with pytest.raises(
            ChildProcessError, match=r"a process that encodes died \(killed, or out"
        ):
            run(texts, tmp_path / "out", workers=2)
    run(texts, tmp_path / "out", workers=2)
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_memory_does_not_grow_with_the_text(tmp_path):
    """What is held is a few chunks, however long the text."""
    peaks = []
    lines = sentences(20_000)
    for times in (4, 12):
        text = "\n\n".join(lines[:50]) + "\n\n" + "\n".join(lines * times)  # the last is long
        (tmp_path / f"{times}.txt").write_text(text)
        process = start(tmp_path, tmp_path / f"{times}.txt", tmp_path / f"out{times}")
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 0
        peaks.append(int(said.partition("VmHWM:")[2].split()[0]))
    assert peaks[1] < 1.2 * peaks[0], peaks
