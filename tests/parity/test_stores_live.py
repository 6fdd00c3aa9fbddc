"""Stores and blocks beside the real fairseq's."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bart_hk.data.blocks import TokenBlocks, block_slices
from bart_hk.data.documents import find_files
from bart_hk.data.preprocessing import preprocess
from bart_hk.data.store import TokenStore
from bart_hk.text import TextEncoder, train_sentencepiece

SENTENCES = Path(__file__).parent.parent / "goldens" / "inputs" / "sentences.txt"


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Sentences in documents, with all that ends a line or does not, and odd characters."""
    folder = tmp_path_factory.mktemp("stores")
    lines = SENTENCES.read_text(encoding="utf-8").splitlines()
    rng = random.Random(0)
    ends = ["\n"] * 8 + ["\n\n", "\n \n\n\n", "\r\n", "\r", " \x0b\n", "\u2028", "\t\n", "\u3000\n"]
    odd = ["naïve 👍🏽", "  two  spaces ", "\x1c\x1d", "<mask> </s>", "日本語。", "\u200b"]
    with open(folder / "text.txt", "w", encoding="utf-8", newline="") as file:
        for line in lines:
            file.write(f"{line}{rng.choice(odd) if rng.random() < 0.1 else ''}{rng.choice(ends)}")
    return folder / "text.txt"


@pytest.fixture(scope="module")
def answers(oracle, text) -> dict[str, Any]:
    folder = text.parent
    lines = SENTENCES.read_text(encoding="utf-8").splitlines()
    encoders = {"gpt2": TextEncoder.gpt2(), "pieces": train_sentencepiece(lines, 700)}
    for name, encoder in encoders.items():
        preprocess(find_files([text]), folder / name, lambda e=encoder: e, workers=1, chunk=5000)
    rng = random.Random(1)
    items = [
        [rng.randrange(4, 1000) for _ in range(rng.choice([0, 1, 5, 9, 20, 60]))]
        for _ in range(500)
    ]
    (folder / "items.json").write_text(json.dumps(items))
    oracle("oracle_stores.py", folder)
    return {"items": items, **json.loads((folder / "answers.json").read_text())}


@pytest.mark.parametrize("name", ["gpt2", "pieces"])
def test_the_same_text_gives_the_same_bytes(answers, text, name):
    ours, theirs = text.parent / name, text.parent / name / "fairseq"
    for file in ("train.bin", "train.idx", "dict.txt"):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes(), file
    store = TokenStore(ours / "train")
    assert len(store) > 130 and (store.sizes == 1).sum() > 10


@pytest.mark.parametrize("name", ["gpt2", "pieces"])
def test_fairseq_reads_our_stores(answers, text, name):
    store = TokenStore(text.parent / name / "train")
    assert answers["read"][name] == [store[item].tolist() for item in range(len(store))]


@pytest.mark.parametrize("name", ["gpt2", "pieces"])
def test_fairseq_can_be_trained_on_our_folder(answers, text, name):
    encoder, found = TextEncoder.load(text.parent / name), answers["task"][name]
    assert (found["symbols"], found["mask"]) == (len(encoder.dictionary), encoder.mask_id)
    first = TokenStore(text.parent / name / "train")[0].tolist()
    assert found["target"][: len(first)] == [0, *first[:-1]]


def test_blocks_are_those_of_fairseq(answers):
    for case in answers["blocks"]:
        options = case["break_mode"], case["block_size"], case["document_sep_len"]
        assert block_slices(np.array(case["sizes"]), *options).tolist() == case["slices"], case
    assert len(answers["blocks"]) == 2000


def test_blocks_of_a_denoising_task_are_what_fairseq_means(answers, text):
    """B5: its slices of the text without </s>, which its own counts do not give."""
    tokens = [token for item in answers["items"] for token in item]
    store = TokenStore(text.parent / "with_eos")
    for mode, slices in answers["slices"].items():
        made = TokenBlocks(store, 40, mode, strip=2, oversized="keep")
        found = [made[block].tolist() for block in range(len(made))]
        assert found == [tokens[begin:end] for begin, end in slices], mode
        assert found != answers["with_eos"][mode]
        repeated = sum(map(len, answers["with_eos"][mode])) - sum(map(len, found))
        assert repeated > 0 or mode == "complete"
