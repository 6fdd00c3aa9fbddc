"""From an address to the same numbers: archives that the real fairseq wrote and repositories that
the real transformers wrote are fetched over HTTP, loaded, and answer as they do there."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import bart_hk
from bart_hk.text import TextEncoder
from bart_hk.zoo import names
from tests.zoo import hub_server
from tests.zoo import server as servers
from tests.zoo.conftest import own_caches, server  # noqa: F401
from tests.zoo.test_repositories import hub  # noqa: F401

TEXTS = ["Hello world!", "The cat sat on the mat."]
SEARCH = {"beam": 3, "max_len_b": 12, "min_len": 3}
MARGIN = 1e-5  # between the scores of hypotheses, for their order to be beyond doubt
REPOSITORIES = ("safe", "sharded", "torch", "classes")


@pytest.fixture(scope="module")
def published(oracle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    TextEncoder.gpt2().save(folder / "text", 32)
    (folder / "questions.json").write_text(json.dumps({"texts": TEXTS, "search": SEARCH}))
    oracle("oracle_archives.py", folder)
    return folder


@pytest.fixture
def fairseq(published: Path, server: servers.Server, monkeypatch) -> servers.Server:  # noqa: F811
    """The server of fairseq's archives, with bart.base and bart.large.mnli."""
    for path in (published / "fairseq").iterdir():
        if path.is_file():
            server.files[f"/models/{path.name}"] = path.read_bytes()
    for name, file in (("bart.base", "bart.tiny"), ("bart.large.mnli", "bart.tiny.mnli")):
        monkeypatch.setitem(names.ARCHIVES, name, server.url(f"/models/{file}.tar.gz"))
    return server


@pytest.fixture
def repositories(published: Path, hub: hub_server.Hub) -> Iterator[hub_server.Hub]:  # noqa: F811
    for name in REPOSITORIES:
        files = {p.name: p.read_bytes() for p in (published / "hub" / name).iterdir()}
        files["tf_model.h5"] = b"for somebody else"
        hub.repositories[f"owner/{name}"] = {"main": files}
    yield hub


def agrees(bart: Any, published: Path, name: str) -> None:
    """Ids, features, heads and, where they were recorded, hypotheses are the oracle's."""
    answers = json.loads((published / "answers.json").read_text())[name]
    arrays = load_file(published / f"{name}.safetensors")
    assert [row.tolist() for row in bart.encode(TEXTS)] == answers["ids"]
    for i, ids in enumerate(answers["ids"]):
        features = bart.extract_features(np.asarray(ids))[0]
        np.testing.assert_allclose(features, arrays[f"features/{i}"], rtol=0, atol=1e-4)
        for head in {key.split("/")[1] for key in arrays if key.startswith("heads/")}:
            logits = bart.predict(head, np.asarray(ids), return_logits=True)[0]
            np.testing.assert_allclose(logits, arrays[f"heads/{head}/{i}"], rtol=0, atol=1e-4)
        if "generated" not in answers:
            continue
        expected = answers["generated"][i]
        found = bart.generate([np.asarray(ids)], **SEARCH)[0]
        scores = [score for _, score in expected]
        assert min(-np.diff(scores)) > MARGIN  # so that there is one right order
        assert [h["tokens"].tolist() for h in found] == [tokens for tokens, _ in expected]
        np.testing.assert_allclose([h["score"] for h in found], scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["bart.base", "bart_base"])
def test_a_name(fairseq, published, name):
    agrees(bart_hk.load(name), published, "bart.tiny")
    assert [path for _, path, _ in fairseq.asked] == ["/models/bart.tiny.tar.gz"]
    agrees(bart_hk.BARTModel.from_pretrained(name), published, "bart.tiny")
    assert len(fairseq.asked) == 1


def test_a_head(fairseq, published):
    bart = bart_hk.load("bart.large.mnli")
    assert set(bart.heads) == {"mnli"}
    agrees(bart, published, "bart.tiny.mnli")


@pytest.mark.parametrize("ending", ["tar.gz", "tar.bz2", "zip"])
def test_an_address(fairseq, published, ending):
    fairseq.faults = [servers.drop(1_000_000)]  # on the way
    agrees(bart_hk.load(fairseq.url(f"/models/bart.tiny.{ending}")), published, "bart.tiny")
    assert fairseq.ranges_asked() == [None, "bytes=1000000-"]


@pytest.mark.parametrize("ending", ["tar.gz", "tar.bz2", "zip"])
def test_an_archive_that_is_here(published, ending):
    agrees(bart_hk.load(published / "fairseq" / f"bart.tiny.{ending}"), published, "bart.tiny")


def test_a_folder_that_is_here(published):
    agrees(bart_hk.load(published / "fairseq" / "bart.tiny"), published, "bart.tiny")


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_repository(repositories, published, name):
    bart = bart_hk.load(f"owner/{name}")
    agrees(bart, published, name)
    assert "tf_model.h5" not in repositories.downloaded()
    if name == "classes":
        assert bart.heads["classification_head"].labels == [
            "contradiction",
            "neutral",
            "entailment",
        ]


def test_offline_afterwards(fairseq, repositories, published, monkeypatch):
    for name in ("bart.base", "owner/safe"):
        bart_hk.load(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fairseq.asked.clear()
    repositories.asked.clear()
    agrees(bart_hk.load("bart.base"), published, "bart.tiny")
    agrees(bart_hk.load("owner/safe"), published, "safe")
    assert not fairseq.asked and not repositories.asked


@pytest.mark.parametrize(
    ("options", "kept"), [({"local_files_only": True}, 1), ({"force_reload": True}, 2)]
)
def test_loads_arguments_reach_the_cache(fairseq, published, tmp_path, options, kept):
    bart_hk.load("bart.base", cache_dir=tmp_path / "here")
    agrees(
        bart_hk.load("bart.base", cache_dir=tmp_path / "here", **options), published, "bart.tiny"
    )
    assert len(fairseq.asked) == kept
