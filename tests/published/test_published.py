"""The real checkpoints say what is published about them: `make published`, with a network.

Checkpoints are a few gigabytes each and go into the caches of `bart_hk.load`; without a network
those that are there already are tested. `-k bart.base` takes the facts about one model.
`BART_HK_DATA` names a folder with data sets (see `data.py`), about which there are facts as well:
MNLI's takes an hour on a CPU, those about summaries take days.
"""

import inspect
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

import bart_hk
from tests.published import data
from tests.published.facts import FACTS, Fact, mnli_rows

pytestmark = [pytest.mark.published, pytest.mark.timeout(7200)]


def brought(*parts: str) -> Path:
    """A part of what the user brings; without it the fact is skipped."""
    folder = os.environ.get("BART_HK_DATA")
    if not folder:
        pytest.skip("BART_HK_DATA names no folder of data sets")
    path = Path(folder, *parts)
    if not path.exists():
        pytest.skip(f"there is no {path}")
    return path


@pytest.mark.parametrize("fact", sorted(FACTS, key=lambda fact: fact.models), ids=str)
def test_fact(fact: Fact, models: Any, read: Any, folder_of: Any) -> None:
    wanted = set(inspect.signature(fact.check).parameters)
    given: dict[str, Any] = {}
    if "mnli" in wanted:
        given["mnli"] = mnli_rows(brought("glue", "MNLI", data.GLUE["MNLI"][0]))
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


@pytest.mark.parametrize("task", data.GLUE)
def test_glue(task: str, models: Any) -> None:
    file = brought("glue", task, data.GLUE[task][0])
    name = "bart.large.mnli" if task == "MNLI" else str(brought("models", task))
    data.is_as_good_at_glue(models((name,))[0], data.glue_rows(file.parents[1], task), task)


@pytest.mark.parametrize("task", data.SQUAD_FILES)
def test_squad(task: str, models: Any) -> None:
    questions = data.squad_questions(brought("squad", data.SQUAD_FILES[task]))
    folder = brought("models", task)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*qa_outputs")  # which we apply ourselves
        (bart,) = models((str(folder),))
    data.answers_questions(bart, data.output_layer(folder), questions, task)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", data.SUMMARIES)
def test_rouge(name: str, models: Any) -> None:
    source, target = data.documents(brought(name).parent, name)
    data.summarises_a_test_set(models((data.SUMMARIES[name][0],))[0], source, target, name)
