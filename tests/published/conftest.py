"""The real checkpoints, one at a time."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bart_hk
from bart_hk import zoo


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only `make published` goes to the network. Facts about one model stand together."""
    if not os.environ.get("BART_HK_PUBLISHED"):
        skip = pytest.mark.skip(reason="needs the network: make published")
        for item in items:
            if item.get_closest_marker("published"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def models() -> Callable[[tuple[str, ...]], list[Any]]:
    """Loads models by name; those of another fact are let go first, for want of memory."""
    loaded: dict[str, Any] = {}

    def load(names: tuple[str, ...]) -> list[Any]:
        for name in set(loaded) - set(names):
            del loaded[name]
        gc.collect()
        for name in names:
            if name not in loaded:
                loaded[name] = bart_hk.load(name)
        return [loaded[name] for name in names]

    return load


@pytest.fixture(scope="session")
def read() -> Callable[[str], str]:
    """A file of the sources, downloaded once: given a name that says it is one file, no archive."""

    def get(url: str) -> str:
        from bart_hk.zoo.cache import cache_folder
        from bart_hk.zoo.download import fetch

        folder = cache_folder() / "published"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / url.removeprefix("https://").replace("/", "_")
        if not path.exists():
            fetch(url, path.with_name(path.name + ".part"))
            path.with_name(path.name + ".part").rename(path)
        return path.read_text(encoding="utf-8")

    return get


@pytest.fixture
def folder_of() -> Callable[[str], Path]:
    return zoo.locate
