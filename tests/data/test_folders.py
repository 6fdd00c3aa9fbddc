"""Shards and the stores in a folder."""

import numpy as np
import pytest

from bart_hk.data.folders import find_tokenizer, open_stores, shard_of_epoch, split_shards
from bart_hk.data.readers import DataError
from bart_hk.data.store import write_store


def test_shards_go_round():
    shards = split_shards("a:b:c")
    assert [shard_of_epoch(shards, epoch) for epoch in range(1, 6)] == ["a", "b", "c", "a", "b"]
    assert split_shards("s3://a:b") == ["s3://a:b"]
    with pytest.raises(DataError, match="task.data='a::b' names an empty folder"):
        split_shards("a::b")


def test_a_store_or_those_of_the_folders_inside(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        write_store(tmp_path / name / "train", np.arange(3), [3], 5000)
    (tmp_path / "notes").mkdir()
    found = open_stores(tmp_path, "train")
    assert list(found) == ["a", "b"] and found["a"].prefix == tmp_path / "a" / "train"
    assert list(open_stores(tmp_path / "a", "train")) == ["a"]
    assert open_stores(tmp_path, "valid") == {}
    with pytest.raises(DataError, match="task.data=.*nowhere is not a folder"):
        open_stores(tmp_path / "nowhere", "train")
    assert find_tokenizer(str(tmp_path), found) == str(tmp_path)  # none; whoever reads it says so
