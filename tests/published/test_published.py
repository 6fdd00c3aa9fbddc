"""The real checkpoints say what is published about them: `make published`, with a network.

Checkpoints are a few gigabytes each and go into the caches of `bart_hk.load`; without a network
those that are there already are tested. `-k bart.base` takes the facts about one model.
`BART_HK_MNLI=dev_matched.tsv` (from GLUE) adds MNLI's accuracy, which takes an hour on a CPU.
"""

import inspect
import os
from pathlib import Path
from typing import Any

import pytest

import bart_hk
from tests.published.facts import FACTS, Fact, mnli_rows

pytestmark = [pytest.mark.published, pytest.mark.timeout(7200)]


@pytest.mark.parametrize("fact", sorted(FACTS, key=lambda fact: fact.models), ids=str)
def test_fact(fact: Fact, models: Any, read: Any, folder_of: Any) -> None:
    wanted = set(inspect.signature(fact.check).parameters)
    given: dict[str, Any] = {}
    if "mnli" in wanted:
        path = os.environ.get("BART_HK_MNLI")
        if not path:
            pytest.skip("BART_HK_MNLI names no dev_matched.tsv")
        given["mnli"] = mnli_rows(Path(path))
    if "read" in wanted:
        given["read"] = read
    if "folder" in wanted:
        given["folder"] = folder_of(fact.models[0])
    for name, first in (("forced", 0), ("unforced", None)):
        if name in wanted:
            given[name] = bart_hk.load(fact.models[0], forced_bos_token_id=first)
    if "bart" in wanted:
        given |= zip(("bart", "other"), models(fact.models), strict=False)
    fact.check(**given)
