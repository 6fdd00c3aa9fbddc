"""The data and the table of `tools/benchmark.py finetune`."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import benchmark_finetune


def test_the_sentences_are_as_long_as_sst2s(tmp_path):
    """Its training file has phrases of nine words on average, a few of more than forty."""
    texts = benchmark_finetune.write_texts(tmp_path / "train.tsv")
    sizes = np.array([len(text.split()) for text in texts])
    assert len(texts) == benchmark_finetune.ROWS and 8 < sizes.mean() < 11
    assert sizes.min() == 1 and sizes.max() > 35
    lines = (tmp_path / "train.tsv").read_text().splitlines()
    assert len(lines) == len(texts) + 1
    assert {line.split("\t")[1] for line in lines[1:]} == {"negative", "positive"}


def test_the_table_has_medians_spread_and_ratio():
    found = {
        "data": {"tokens": 2048, "mean": 2.0, "most": 9},
        "seconds": {"bart_hk": [2.0, 1.0, 4.0], "torch": [3.0, 3.5, 2.5]},
        "versions": {"bart_hk": {"jax": "1"}, "torch": {"torch": "2"}},
    }
    table = benchmark_finetune.report(found, 2)
    assert "| bart_hk | 2.00 s | 1.00 to 4.00 s | 512 | 1024 | 1.00 |" in table
    assert "| torch | 3.00 s | 2.50 to 3.50 s | 341 | 683 | 1.50 |" in table
