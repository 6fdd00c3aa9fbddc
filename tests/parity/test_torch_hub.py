"""Where torch is installed: torch.hub's entry points, and fairseq's examples with torch itself."""

import contextlib
import io
import shutil
from pathlib import Path

import pytest
import torch

import bart_hk
from bart_hk.zoo import names
from tests.hub.conftest import shared, text, tiny_params  # noqa: F401
from tests.hub.test_fairseq_examples import as_wide_as_large, run
from tests.zoo.conftest import server  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model(shared, tmp_path):  # noqa: F811
    shared.save(tmp_path / "model")
    return str(tmp_path / "model")


def test_load_from_a_folder(model, shared):  # noqa: F811
    bart = torch.hub.load(str(ROOT), "bart", model, dtype="bfloat16", source="local")
    assert isinstance(bart, bart_hk.BARTHubInterface)
    assert bart.encode("Hello world!").tolist() == shared.encode("Hello world!").tolist()


def test_list_and_help_from_the_cache(model, tmp_path, monkeypatch):
    """They take no folder: the repository must lie in torch.hub's cache, as a download would."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"), raising=False)
    cached = tmp_path / "hub" / "somebody_bart_hk_main"
    ignore = shutil.ignore_patterns(".*", "tests", "__pycache__", "*.egg-info", "build")
    shutil.copytree(ROOT, cached, ignore=ignore)
    with contextlib.redirect_stderr(io.StringIO()):
        known = {"skip_validation": True, "trust_repo": True}
        listed = set(torch.hub.list("somebody/bart_hk:main", **known))
        assert {"bart", "bart.large.cnn", "bart_large_cnn"} <= listed
        about = torch.hub.help("somebody/bart_hk:main", "bart.base", **known)
        assert "140M parameters" in about
        assert "dtype" in torch.hub.help("somebody/bart_hk:main", "bart", **known)
        bart = torch.hub.load("somebody/bart_hk:main", "bart", model, **known)
    assert bart.encode("a").tolist() == [0, 102, 2]


@pytest.mark.parametrize("entry", ["bart.base", "bart_base"])
def test_fairseqs_names(entry, model, server, tmp_path, monkeypatch):  # noqa: F811
    archive = shutil.make_archive(str(tmp_path / "archive"), "gztar", model)
    server.files["/bart.base.tar.gz"] = Path(archive).read_bytes()
    monkeypatch.setitem(names.ARCHIVES, "bart.base", server.url("/bart.base.tar.gz"))
    bart = torch.hub.load(str(ROOT), entry, source="local", cache_dir=tmp_path / "cache")
    assert bart.encode("a").tolist() == [0, 102, 2]
    assert len(server.asked) == 1


def test_functions_of_torch_take_results(shared):  # noqa: F811
    features = shared.extract_features(shared.encode("Hello world!"))
    assert features.size() == torch.Size([1, 5, 16])
    assert torch.all(features == features)
    summed = torch.stack([features, features]).sum()
    assert float(summed) == pytest.approx(2 * float(features.sum()), rel=1e-4)


def test_examples_with_torch_itself(text):  # noqa: F811
    namespace = {"torch": torch, "bart": as_wide_as_large(text)}
    for block in ("load", "encode", "features"):
        run(block, namespace)
