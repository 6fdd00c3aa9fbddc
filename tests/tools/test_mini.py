"""What bart.mini is made of and measured with, on archives of a few lines."""

import io
import json
import random
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

import bart_hk
from bart_hk.checkpoint.huggingface import write_model
from bart_hk.cli.preprocess import main as preprocess
from bart_hk.config import ARCHITECTURES, BARTConfig
from bart_hk.data.store import TokenStore
from bart_hk.model import BART
from bart_hk.text import TextEncoder
from tests.parameters import random_params
from tools import evaluate_fill_mask, initial_weights, mini_texts

BOOK = "# Title: A Book\n\n## Author: Nobody\n\n## Year: 1900\n\n-------\n## One\n\nIt _was_ so.\n"
SUBJECTS = ("the cat", "a dog", "my aunt", "the old king", "every child")
WORDS = ("red", "green", "small", "big", "slow", "quiet", "warm", "cold")


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, f"tools/{name}.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def archives(tmp_path) -> dict[str, Path]:
    paths = {
        "books": tmp_path / "books.tar.xz",
        "reviews": tmp_path / "reviews.zip",
        "tatoeba": tmp_path / "deu-eng.zip",
        "abstracts": tmp_path / "train.jsonl",
    }
    with tarfile.open(paths["books"], "w:xz") as archive:
        for name in ("books/Nobody/A Book.md", "books/README.md"):
            member = tarfile.TarInfo(name)
            member.size = len(BOOK)
            archive.addfile(member, io.BytesIO(BOOK.encode()))
    with zipfile.ZipFile(paths["reviews"], "w") as archive:
        archive.writestr("movie_reviews/pos/1.txt", "a fine film . \n\nreally . \n")
        archive.writestr("movie_reviews/README", "about")
    pairs = [f"Sentence {i}.\tSatz {i}." for i in range(100) for _ in range(2)]
    with zipfile.ZipFile(paths["tatoeba"], "w") as archive:
        archive.writestr("deu.txt", "\n".join(pairs))
    paths["abstracts"].write_text(json.dumps({"source": ["We  show.", " ", "It works."]}) + "\n")
    return paths


def test_texts_of_every_archive(archives, tmp_path):
    given = [part for name, path in archives.items() for part in (f"--{name}", path)]
    run("mini_texts", *given, "--output", tmp_path / "texts")

    def text(name: str) -> str:
        return (tmp_path / "texts" / name / f"{name}.txt").read_text()

    assert text("books") == "One\nIt was so.\n\n"  # and none of the README
    assert text("reviews") == "a fine film .\nreally .\n\n"
    assert text("abstracts") == "We show.\nIt works.\n\n"
    documents = [block.split("\n") for block in text("sentences").strip().split("\n\n")]
    lines = [line for document in documents for line in document]
    assert len(lines) == len(set(lines)) < 100
    assert {f"Sentence {i}." for i in range(100)} - set(lines) == {
        f"Sentence {i}." for i in range(100) if mini_texts.held_out(f"Sentence {i}.")
    }
    assert {len(document) for document in documents[:-1]} == {mini_texts.SENTENCES}
    # The vocabulary's text: the first paragraph of a book, and all that is short.
    assert text("mixture").startswith("One\n\na fine film .\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two corpora of simple sentences, with held-out documents."""
    folder, rng = tmp_path_factory.mktemp("data"), random.Random(1)
    for name in ("one", "two"):
        texts = folder / f"{name}.txt"
        documents = [
            "\n".join(
                f"we say that {rng.choice(SUBJECTS)} is {rng.choice(WORDS)} and {rng.choice(WORDS)}"
                for _ in range(5)
            )
            for _ in range(80)
        ]
        texts.write_text("\n\n".join(documents))
        tokenizer = ["--tokenizer", folder / "one"]
        if name == "one":
            tokenizer = ["--sentencepiece", "90", "--no-byte-fallback"]
        made = [texts, *tokenizer, "--valid-share", "0.3", "--output", folder / name, "--quiet"]
        assert not preprocess([str(part) for part in made])
    return folder


def test_the_model_is_asked_and_compared(data, tmp_path):
    text = TextEncoder.load(data / "one")
    config = BARTConfig(
        vocab_size=len(text.dictionary),
        encoder_embed_dim=16,
        encoder_ffn_embed_dim=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        decoder_ffn_embed_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        max_source_positions=64,
        max_target_positions=64,
    )
    write_model(tmp_path / "model", config, random_params(config), also=text.save)
    out = run("evaluate_fill_mask", tmp_path / "model", data, "--sentences", 40, "--random")
    lines = out.splitlines()
    assert lines[0] == "top-1 / top-5 in %, 40 sentences"
    assert lines[1].split() == ["one", "two", "all"]
    frequent = lines[2].removeprefix("most frequent words").replace("/", "").split()
    assert len(frequent) == 6
    # Of seven words or so "that", "is" and "and" are always there.
    assert float(frequent[-1]) > 20
    assert lines[3].split()[0].endswith("model") and lines[4].startswith("random weights")


def test_clozes_mask_one_known_word(data):
    text = TextEncoder.load(data / "one")
    asked = evaluate_fill_mask.clozes(data / "one", text, 30, seed=1)
    assert asked == evaluate_fill_mask.clozes(data / "one", text, 30, seed=1)
    assert asked != evaluate_fill_mask.clozes(data / "one", text, 30, seed=2)
    for cloze in asked:
        assert cloze.text.split().count("<mask>") == 1 and not cloze.text.startswith("<mask>")
        assert evaluate_fill_mask.single_pieces(text, [cloze.answer]) == [True]
        sentence = cloze.text.replace("<mask>", cloze.answer)
        assert sentence.startswith("we say that ")


def test_shares():
    asked = [evaluate_fill_mask.Cloze("a <mask>", word) for word in ("b", "c", "d", "e")]
    answers = [["b", "x"], ["x", "c"], ["x", "y"], ["e", "e"]]
    assert evaluate_fill_mask.shares(asked, answers) == (50.0, 75.0)


@pytest.mark.parametrize(
    ("sizes", "total", "counts"),
    [
        ([500, 500], 101, [51, 50]),
        ([20, 500, 60], 100, [20, 40, 40]),
        ([20, 500, 60], 200, [20, 120, 60]),
        ([3, 5], 100, [3, 5]),
    ],
)
def test_what_one_corpus_lacks_the_others_give(sizes, total, counts):
    assert evaluate_fill_mask.quotas(sizes, total) == counts


def test_data_without_held_out_documents(tmp_path):
    with pytest.raises(SystemExit, match=r"has no valid\.bin beside a train\.bin"):
        evaluate_fill_mask.corpora(tmp_path)
    (tmp_path / "preprocess.journal").touch()
    with pytest.raises(SystemExit, match="fill_mask.py: task.data: .* is not finished; the same "):
        evaluate_fill_mask.corpora(tmp_path)


@pytest.mark.parametrize("at_once", [1, 7, 1 << 24])
def test_counts_of_neighbours(data, monkeypatch, at_once):
    store = TokenStore(data / "one" / "train")
    size, window = len(TextEncoder.load(data / "one").dictionary), 3
    monkeypatch.setattr(initial_weights, "AT_ONCE", at_once)
    found = initial_weights.counts(store, size, window)
    tokens = [int(token) for row in range(len(store)) for token in store[row]]
    expected = np.zeros((size, size))
    for i, left in enumerate(tokens):
        for distance, right in enumerate(tokens[i + 1 : i + 1 + window], start=1):
            expected[left, right] += 1 / distance
            expected[right, left] += 1 / distance
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    assert " parameters" in run("initial_weights", data, folder / "model", "--weights", "two=3")
    return folder / "model"


def test_a_network_begins_with_words_of_like_meaning(begun):
    bart = bart_hk.load(begun)
    size = len(bart.text.dictionary)
    assert bart.config == ARCHITECTURES["bart_mini"].replace(vocab_size=size)
    table = np.asarray(bart.params["embed_tokens"]["embeddings"])
    np.testing.assert_allclose(table[1:2], 0)  # <pad>
    np.testing.assert_allclose(np.linalg.norm(np.delete(table, 1, 0), axis=1), 0.64, rtol=1e-5)
    words = [ids for ids in bart.text.encode_batch([f" {word}" for word in WORDS]) if len(ids) == 1]
    colours = [int(i) for (i,) in words]
    others = np.setdiff1d(np.arange(bart.text.dictionary.nspecial, size), colours)
    assert len(colours) > 3 and len(others) > 3
    table = table / np.linalg.norm(table, axis=1, keepdims=True).clip(1e-9)
    alike = (table[colours] @ table[colours].T)[np.triu_indices(len(colours), 1)]
    assert alike.min() > (table[colours] @ table[others].T).max()


@pytest.mark.parametrize("distance", [-3, -1, 0, 2])
@pytest.mark.parametrize("wide", [False, True])
def test_a_look_is_at_one_distance(distance, wide):
    places = initial_weights.sinusoids(60, 256, offset=2)
    queries, keys = initial_weights.looking(distance, wide, 256, 64)
    scores = (places @ queries) @ (places @ keys).T
    middle = np.arange(5, 55)
    assert (scores[middle].argmax(-1) == middle + distance).all()


def test_its_heads_look_to_their_sides(begun):
    bart = bart_hk.load(begun)
    config = bart.config.replace(vocab_size=400)
    rows = initial_weights.SPREAD * np.random.default_rng(0).standard_normal((400, 256), np.float32)
    params = initial_weights.network(config, rows, seed=1)
    source = np.arange(100, 150)[None]
    model = BART(config)
    encoded = model.encode(params, source, return_attention=True)
    decoded = model.decode(params, source, encoded, return_attention=True)
    middle = np.arange(5, 45)

    def looks(weights, head: int, distance: int) -> float:
        return float(weights[0, head, middle, middle + distance].mean())

    for head, distance in enumerate((-1, 1, -2, 2)):
        weights = encoded.attentions[0]
        assert looks(weights, head, distance) > 3 * looks(weights, head, -distance)
    for head, distance in enumerate((-1, -2)):
        assert looks(decoded.self_attentions[0], head, distance) > 0.1  # 1 of 25, without a look
    for weights in decoded.cross_attentions:  # in all layers
        assert looks(weights, 0, 0) + looks(weights, 0, -1) + looks(weights, 0, 1) > 0.3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--weights", "three=2"], "--weights three=2: "),
        (["--weights", "one=much"], "--weights one=much must be NAME=FACTOR"),
        (["--window", "0"], "--window 0 must be at least 1"),
    ],
)
def test_mistakes_are_named(data, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit, match="2"):
        initial_weights.main([str(data), str(tmp_path / "out"), *more])
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_no_stores_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        initial_weights.main([str(tmp_path), str(tmp_path / "out")])
    assert "has no train.bin" in capsys.readouterr().err
