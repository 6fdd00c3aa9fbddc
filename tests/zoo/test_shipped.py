"""The models that travel in the package: small, ready without a network, and of some use."""

import socket
from pathlib import Path

import numpy as np
import pytest

import bart_hk
from bart_hk import zoo
from bart_hk.config import ARCHITECTURES
from bart_hk.zoo import names

MB = 10**6
TEXT = "the acting is good , but the plot makes no sense at all ."


@pytest.fixture(scope="module")
def bart() -> bart_hk.BARTHubInterface:
    return bart_hk.load("bart.mini")


@pytest.mark.parametrize("name", names.SHIPPED)
def test_its_files_are_small(name):
    files = [path for path in zoo.locate(name).iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 32 * MB
    assert max(path.stat().st_size for path in files) < 15 * MB
    assert {"README.md", "config.json"} <= {path.name for path in files}


def test_nothing_is_downloaded(monkeypatch, tmp_path):
    def refuse(*arguments, **more):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setenv("BART_HK_CACHE", str(tmp_path / "cache"))
    for name in names.SHIPPED:
        assert bart_hk.load(name.replace(".", "_")).config == bart_hk.load(name).config
    assert not (tmp_path / "cache").exists()


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bart.mini").mkdir()
    assert zoo.locate("bart.mini") == Path("bart.mini")


def test_it_is_a_bart_mini(bart):
    assert bart.config.replace(dropout=0.1) == ARCHITECTURES["bart_mini"].replace(dropout=0.1)
    assert all(leaf.dtype == np.float32 for p in bart.params.values() for leaf in p.values())
    assert bart.decode(bart.encode("Wörter, 日本 & more!")) == "Wörter, 日本 & more!"


def test_it_copies_what_it_reads(bart):
    """A denoiser's first accomplishment."""
    shuffled = " ".join(sorted(TEXT.split()))
    assert bart.score(TEXT)["score"] > -0.5
    assert bart.score(TEXT, TEXT)["score"] > bart.score(TEXT, shuffled)["score"] + 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("this is one of the best <mask> i have ever seen .", {"film", "films", "movie", "movies"}),
        ("He opened the <mask> and went into the room.", {"door", "window", "gate"}),
    ],
)
def test_it_fills_masks_with_sense(bart, text, words):
    before = len(text.split("<mask>")[0].split())
    found = {filled.split()[before] for filled, _ in bart.fill_mask(text, topk=5, exact=True)}
    assert found & words


def test_the_latent_one_gives_sentences_back_and_what_lies_between():
    bart = bart_hk.load("bart.latent")
    texts = ["Tom is a teacher.", "I want to go home.", "She is very happy."]
    latents = bart.encode_latent(texts)
    assert latents.shape == (3, 4, 32)
    assert bart.decode_latent(latents) == texts
    way = bart.interpolate(texts[0], texts[1], steps=7)
    assert [way[0], way[-1]] == texts[:2] and len(set(way)) > 2
