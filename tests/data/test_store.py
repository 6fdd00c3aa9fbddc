"""Stores: fairseq's bytes (golden), and files that are not what they say."""

import itertools
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bart_hk.data.readers import DataError
from bart_hk.data.store import StoreWriter, TokenStore, store_exists, token_dtype, write_store

ITEMS = [[4, 5, 2], [], [6, 2]]
HEADER = 26


def write(prefix: Path, items=ITEMS, vocab_size=1000) -> Path:
    tokens = np.array([token for item in items for token in item], np.int64)
    write_store(prefix, tokens, np.array([len(item) for item in items], np.int64), vocab_size)
    return prefix


def read(prefix: Path) -> list[list[int]]:
    store = TokenStore(prefix)
    return [store[item].tolist() for item in range(len(store))]


def change(file: Path, at: int, new: bytes) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:at] + new + data[at + len(new) :])


def test_fairseq_stores_of_every_kind_are_read(golden, tmp_path):
    cases = golden("stores/stores.json")["stores"]
    for case in cases:
        for end in ("bin", "idx"):
            (tmp_path / f"train.{end}").write_bytes(bytes.fromhex(case[end]))
        assert read(tmp_path / "train") == case["items"], case["impl"]
    assert any([] in case["items"] for case in cases)


def test_what_is_written_is_what_fairseq_writes(golden, tmp_path):
    written = 0
    for case in golden("stores/stores.json")["stores"]:
        if case["impl"] == "mmap":
            write(tmp_path / "ours", case["items"], case["vocab_size"])
            for end in ("bin", "idx"):
                assert (tmp_path / f"ours.{end}").read_bytes().hex() == case[end]
            written += 1
    assert written == 4 and not list(tmp_path.glob("*.sizes"))


def test_the_type_of_a_token():
    sizes = (65499, 65500, 4294967294, 4294967295)
    assert [token_dtype(size).itemsize for size in sizes] == [2, 4, 4, 8]


def test_ranges_and_positions(tmp_path):
    store = TokenStore(write(tmp_path / "train"))
    assert store.ranges(np.array([1, 3]), np.array([2, 2])).tolist() == [5, 2, 6, 2]
    assert store.at(np.array([4, 0])).tolist() == [2, 4]
    assert store.sizes.tolist() == [3, 0, 2] and store.begins.tolist() == [0, 3, 3]
    with pytest.raises(IndexError):
        store[3]


def test_an_empty_store(tmp_path):
    store = TokenStore(write(tmp_path / "train", []))
    assert len(store) == 0
    assert read(write(tmp_path / "empty", [[], []])) == [[], []]


def test_any_cut_of_a_store_is_noticed(tmp_path):
    """Not a token is lost without a word, wherever a file ends."""
    prefix = write(tmp_path / "train")
    for end in ("bin", "idx"):
        file = tmp_path / f"train.{end}"
        whole = file.read_bytes()
        for size in range(len(whole)):
            file.write_bytes(whole[:size])
            with pytest.raises(DataError) as caught:
                TokenStore(prefix)
            assert str(file) in str(caught.value) and "\n" not in str(caught.value)
        file.write_bytes(whole + b"\0\0")
        with pytest.raises(DataError, match=f"{file.name}"):
            TokenStore(prefix)
        file.write_bytes(whole)
    assert read(prefix) == ITEMS


def test_any_flipped_bit_of_an_index_is_noticed(tmp_path):
    prefix = write(tmp_path / "train", [[4, 5, 2], [6, 2]])
    file = tmp_path / "train.idx"
    whole = file.read_bytes()
    silent = []
    for at, bit in itertools.product(range(len(whole)), range(8)):
        change(file, at, bytes([whole[at] ^ 1 << bit]))
        try:
            TokenStore(prefix)
            silent.append((at, bit))
        except DataError as error:
            assert "\n" not in str(error)
        file.write_bytes(whole)
    # Another type of the same size, whose tokens are the same, is all that passes: uint16, int16.
    assert silent == []  # 8 and 3 differ in more than one bit


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (0, b"X", "train.idx is no index of a token store, or a damaged one"),
        (0, b"HUFFIDX\x00", "train.idx: fairseq's Huffman code is not read"),
        (9, b"\2", "train.idx: version 2 is not known, only 1"),
        (17, b"\6", "train.idx: the type of its tokens, 6, is no whole number's"),
        (18, struct.pack("<Q", 2), "2 items, of which it speaks, take 50: it is damaged, or of an"),
        (18, struct.pack("<Q", 2**60), "items, of which it speaks, take"),
        (HEADER, struct.pack("<i", -1), "item 0 has -1 tokens; it is damaged"),
        (HEADER, struct.pack("<i", 2), "item 1 begins at byte 6, those before it end at 4"),
        (HEADER + 12, struct.pack("<q", 2), "item 0 begins at byte 2, those before it end at 0"),
        (
            HEADER + 8,
            struct.pack("<i", 9),
            "train.bin ends early: it has 10 bytes, and its index s",
        ),
        (HEADER + 8, struct.pack("<i", 1), "train.bin is too long: it has 10 bytes, and its index"),
    ],
)
def test_an_index_that_lies(tmp_path, at, new, message):
    prefix = write(tmp_path / "train")
    change(tmp_path / "train.idx", at, new)
    with pytest.raises(DataError, match=message):
        TokenStore(prefix)


def test_an_older_index_that_lies(golden, tmp_path):
    case = next(c for c in golden("stores/stores.json")["stores"] if c["impl"] == "cached")
    for end in ("bin", "idx"):
        (tmp_path / f"train.{end}").write_bytes(bytes.fromhex(case[end]))
    file = tmp_path / "train.idx"
    whole = file.read_bytes()
    for size in range(8, len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"train.idx (ends early|is damaged)"):
            TokenStore(tmp_path / "train")
    last = len(whole) - 8  # the last item's size
    file.write_bytes(whole[:last] + struct.pack("<q", 77))
    with pytest.raises(DataError, match="the items do not follow one another"):
        TokenStore(tmp_path / "train")


def test_a_file_that_is_missing(tmp_path):
    prefix = tmp_path / "train"
    assert not store_exists(prefix)
    with pytest.raises(DataError, match="train.idx does not exist; bart-hk-preprocess makes a sto"):
        TokenStore(prefix)
    write(prefix)
    assert store_exists(prefix)
    (tmp_path / "train.bin").unlink()
    with pytest.raises(DataError, match="train.bin does not exist"):
        TokenStore(prefix)


def test_a_vocabulary_that_does_not_fit(tmp_path):
    store = TokenStore(write(tmp_path / "train"))
    store.check_vocabulary(7, "dict.txt")
    with pytest.raises(DataError, match="train.bin holds the id 6, and dict.txt has 6 symbols: th"):
        store.check_vocabulary(6, "dict.txt")


def test_digests_tell_stores_apart(tmp_path):
    digest = TokenStore(write(tmp_path / "a")).digest()
    assert TokenStore(write(tmp_path / "b")).digest() == digest
    assert TokenStore(write(tmp_path / "c", [[4, 5, 2], [6, 2]])).digest() != digest
    assert TokenStore(write(tmp_path / "d", [[4, 5, 2], [], [7, 2]])).digest() != digest


def test_a_writer_refuses_what_is_no_token(tmp_path):
    writer = StoreWriter(tmp_path / "train", 100)
    for wrong in (100, -1):
        with pytest.raises(ValueError, match="not in the vocabulary of 100"):
            writer.add(np.array([wrong]), np.array([1]))
    with pytest.raises(ValueError, match="1 tokens are not items of 2"):
        writer.add(np.array([5]), np.array([2]))
    writer.close()


def test_writing_goes_on_where_it_stood(tmp_path):
    first = StoreWriter(tmp_path / "train", 100)
    first.add(np.array([4, 5, 2]), np.array([3, 0]))
    stood = first.tokens, first.items
    first.add(np.array([9, 9, 9]), np.array([3]))  # written, but of no account
    first.close()
    second = StoreWriter(tmp_path / "train", 100, *stood)
    second.add(np.array([6, 2]), np.array([2]))
    second.finish()
    assert read(tmp_path / "train") == ITEMS
    (tmp_path / "train.sizes").write_bytes(b"")
    with pytest.raises(DataError, match="train.sizes ends early: 0 bytes of 4 are there"):
        StoreWriter(tmp_path / "train", 100, 1, 1)


FULL = """
import resource, sys
import numpy as np
from bart_hk.data.store import StoreWriter
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
writer = StoreWriter(sys.argv[1], 100)
try:
    writer.add(np.full(5000, 7), np.full(100, 50))
    writer.finish()
except OSError as error:
    print(error.strerror)
"""


def test_a_full_disk_is_an_error_and_leaves_no_store(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "train")], capture_output=True, text=True
    )
    assert done.stdout.strip() == "File too large", done.stderr
    with pytest.raises(DataError, match="train.idx does not exist"):
        TokenStore(tmp_path / "train")
