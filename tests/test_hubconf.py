"""torch.hub's entry points, without torch: what its list, help and load make use of."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import bart_hk
from bart_hk.zoo.names import ARCHIVES, SHIPPED

ROOT = Path(__file__).resolve().parent.parent
NAMES = (*SHIPPED, *ARCHIVES)


@pytest.fixture
def hubconf() -> ModuleType:
    """Loaded by its path, as torch.hub does."""
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_name_has_two_entries(hubconf):
    """torch.hub.list: what is callable and does not begin with an underscore."""
    entries = {name for name in dir(hubconf) if callable(getattr(hubconf, name)) and name[0] != "_"}
    dotted = set(NAMES)
    assert entries - {"Any"} == {"bart"} | dotted | {name.replace(".", "_") for name in dotted}


def test_entries_load_their_model(hubconf, monkeypatch):
    calls = []
    monkeypatch.setattr(bart_hk, "load", lambda *args, **kwargs: calls.append((args, kwargs)))
    for name in NAMES:
        for entry in (name, name.replace(".", "_")):
            getattr(hubconf, entry)(dtype="bfloat16", cache_dir="here")
            assert calls.pop() == ((name,), {"dtype": "bfloat16", "cache_dir": "here"})
    hubconf.bart("facebook/bart-base", revision="main")
    assert calls.pop() == (("facebook/bart-base",), {"revision": "main"})


def test_entries_explain_themselves(hubconf):
    """torch.hub.help."""
    assert hubconf._SHIPPED == SHIPPED
    texts = {name: getattr(hubconf, name).__doc__ for name in NAMES}
    for name, text in texts.items():
        assert text.startswith(f"{name}: ")
        assert ("local_files_only" in text) is (name in ARCHIVES)
        assert "bfloat16" in text
        assert getattr(hubconf, name.replace(".", "_")).__doc__ == text
    assert len(set(texts.values())) == len(texts)
    assert "bfloat16" in hubconf.bart.__doc__


def test_dependencies_are_importable(hubconf):
    for name in hubconf.dependencies:
        assert importlib.util.find_spec(name) is not None
