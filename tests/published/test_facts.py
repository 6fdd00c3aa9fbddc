"""The facts' own logic, on stand-ins: what answers rightly passes, what answers otherwise does not.

A stand-in is a small real model whose answers to some questions are replaced by recorded ones. So
every call that a fact makes is one that a real model understands.
"""

import copy
import inspect
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bart_hk.generation.options import GenerationOptions
from bart_hk.text import TextEncoder
from tests.hub.conftest import shared, text, tiny_params  # noqa: F401
from tests.published import facts, upstream
from tests.published.facts import FACTS

CHECKS = {fact.check.__name__: fact.check for fact in FACTS}

PGE = "Lights are out in the state."
HF_FILE = f'''
class Tests:
    def test_xsum_summarization_same_as_fairseq(self):
        model = load("x")
        PGE_ARTICLE = """ {PGE}"""
        EXPECTED_SUMMARY = (
            "</s>"
            "It is dark."
            "</s>"
        )

    def test_cnn_summarization_same_as_fairseq(self):
        FRANCE_ARTICLE = " one"
        SHORTER_ARTICLE = " two"
        IRAN_ARTICLE = " three"
        ARTICLE_SUBWAY = " fo" "ur"
        EXPECTED = ["</s><s>One.</s>", "</s><s>Two.</s><pad>", "</s><s>3...</s>", "</s><s>4...</s>"]
        assert x[:, 1].eq(0)

    def test_contrastive_search_bart(self):
        article = (
            " She"
            " married."
        )
        input_ids = tokenizer(article, max_length=512)

    def test_xsum_1_1_generation(self):
        ARTICLE = "A court."
        EXPECTED = "</s> A summary.</s>"
'''
RUST_FILE = """
#[test]
fn bart_summarization_greedy() -> anyhow::Result<()> {
    let input = ["In findings published Tuesday by a team of scientists \\
from a place, \\"water\\" was found on a planet.
It is far away."];
    // a comment with "a string in it that is longer than sixty characters, which does not count"
    assert_eq!(output[0], " Scientists have found water on a planet that is far away, as a \\
    team of them says.");
}

#[test]
fn bart_summarization_beam_search() -> anyhow::Result<()> {
    let input = ["In findings published Tuesday by a team of scientists from a place, water."];
    assert_eq!(output[0], "Scientists have found water on a planet that is far away. All of them.");
}
"""
TOWER = "The tower is tall."
REPRO_FILE = json.dumps(
    {
        "CNNDM": {"document": TOWER, "summary": "It is tall."},
        "XSum": {"document": TOWER, "summary": "Tall."},
        "nbest": {"document": TOWER, "summaries": ["First.", "Second.", "Third.", "Fourth."]},
    }
)
FILES = {upstream.HF: HF_FILE, upstream.RUST: RUST_FILE, upstream.REPRO: REPRO_FILE}


def sparse(shape: tuple[int, ...], corner: Any) -> np.ndarray:
    """Zeros, but for the values that a fact looks at, in the first place."""
    array = np.zeros(shape)
    corner = np.asarray(corner)
    array[tuple(slice(n) for n in corner.shape)] = corner
    return array


HELLO = [0, 31414, 232, 328, 2]
FEATURES = [[[0.7144, 0.8143, -1.2813], [0.7144, 0.8143, -1.2813], [-0.0467, 2.5911, -2.1845]]]
ENCODER = [[[-0.0828, -0.0251, -0.0674], [0.1277, 0.3311, -0.0255], [0.2613, -0.084, -0.2763]]]
LONG = "A long paragraph for summarization."


# What a model that is right answers: method -> what it gives, in the order of the calls. Facts that
# are not here are about something else, see `others`.
ANSWERS: dict[str, dict[str, Any]] = {
    "encodes_hello_world": {"encode": [HELLO, HELLO]},
    "tokenizes": {"encode": [[0, 250, 251, 17818, 13, 39186, 1938, 4, 2]]},
    "infers": {"predict": [[[9.0, 0, 0]], [[0, 0, 9.0]], [[9.0, 0, 0], [0, 0, 9.0]]]},
    "fills_masks": {"fill_mask": [[facts.CAT]]},
    "fills_masks_of_any_length": {"fill_mask": [[facts.CAT_FREE]]},
    "fills_a_batch_of_masks": {"fill_mask": [[facts.CAT, facts.DOG]]},
    "calls_the_cat_adorable": {"fill_mask": [[[("This cat is adorable.", None)]]]},
    "has_features": {"extract_features": [sparse((1, 11, 1024), FEATURES)]},
    "has_logits": {"predict": [[[0.1907, 1.4342, -1.0289], [0.5, 0.25, 1.0]], [[0.5, 0.25, 1.0]]]},
    "goes_to_five_places": {"project": [[" bathroom", " gym", " wrong", " movies", " hospital"]]},
    "has_healthy_friends": {"project": [[" not", " good", " healthy", " great", " very"]]},
    "completes_a_headline": {"generate": [[[facts.UN]]]},
    "continues_after_padding": {"generate": [[[facts.PEACE]]]},
    "contrasts": {"generate": [[[facts.BARRIENTOS]]]},
    "does_not_without_its_first_token": {"generate": [[["UNALSO SEE"]]]},
    "summarises_the_blackouts": {"sample": [["It is dark."]]},
    "summarises_the_blackouts_in_20_tokens": {
        "sample": [
            [
                "PG&E scheduled the blackouts in response to forecasts for high winds amid dry "
                "conditions"
            ]
        ]
    },
    "summarises_four_articles": {"generate": [[["One."], ["Two."], ["3..."], ["4..."]]]},
    "summarises_with_two_layers": {"sample": [[" A summary."]]},
    "has_encoder_features": {"encoder": [sparse((1, 9, 1024), ENCODER)]},
    "shortens_three_parts": {
        "sample": [
            ["This sentence is made of three parts. One part is about animals, the other part"]
        ]
    },
    "counts_to_four": {"extract_features": [sparse((1, 6, 1024), [[[0.2610]]])]},
    "summarises_a_discovery": {
        "sample": [
            [" Scientists have found water on a planet that is far away, as a team of them says."],
            ["Scientists have found water on a planet that is far away. All of them."],
        ]
    },
    "summarises_the_tower": {"sample": [["It is tall."]]},
    "summarises_the_tower_in_a_sentence": {"sample": [["Tall."]]},
    "has_four_best_summaries": {"generate": [[["First.", "Second.", "Third.", "Fourth."]]]},
}


class StandIn:
    """`model`, but for the answers that are given."""

    def __init__(self, model: Any, answers: dict[str, Any], **attributes: Any):
        self._model = model
        self._answers = {name: iter(copy.deepcopy(given)) for name, given in answers.items()}
        self.__dict__.update(attributes)
        if {"project", "encoder"} & answers.keys():
            self.model = types.SimpleNamespace(project=self._project, encode=self._encode)

    def __getattr__(self, name: str) -> Any:
        if name in self._answers:
            return getattr(self, f"_answer_{name}")
        return getattr(self._model, name)

    @property
    def heads(self) -> dict[str, None]:
        return {"mnli": None}

    def _answer_encode(self, *args: Any, **kwargs: Any) -> np.ndarray:
        self._model.encode(*args, **kwargs)
        return np.asarray(next(self._answers["encode"]))

    def _answer_predict(self, head: str, tokens: Any, return_logits: bool = False) -> np.ndarray:
        self._model.extract_features(tokens)  # which is as particular about what it is given
        answer = np.asarray(next(self._answers["predict"]))
        assert len(answer) == (1 if np.ndim(tokens[0]) == 0 else len(tokens))
        return answer

    def _answer_extract_features(self, tokens: Any) -> np.ndarray:
        self._model.extract_features(tokens)
        return next(self._answers["extract_features"])

    def _answer_fill_mask(self, *args: Any, **kwargs: Any) -> Any:
        return next(self._answers["fill_mask"])

    def _answer_sample(self, *args: Any, **kwargs: Any) -> Any:
        return next(self._answers["sample"])

    def _answer_generate(self, rows: Any, *args: Any, **kwargs: Any) -> Any:
        encode = self._model.encode
        answer = next(self._answers["generate"])
        assert len(rows) == len(answer)
        return [[{"tokens": encode(hypothesis)} for hypothesis in row] for row in answer]

    def _project(self, params: Any, features: np.ndarray) -> np.ndarray:
        assert np.ndim(features) == 1
        logits = np.zeros(50265)
        for rank, token in enumerate(next(self._answers["project"])):
            (index,) = self._model.text.encode(token)[:1]
            logits[index] = 10 - rank
        return logits

    def _encode(self, params: Any, rows: np.ndarray) -> Any:
        assert np.ndim(rows) == 2
        return types.SimpleNamespace(encoder_out=next(self._answers["encoder"]))


def near_misses(answer: Any) -> Iterator[Any]:
    """Copies of `answer` with one value changed a little, for each of its values."""
    if isinstance(answer, str):
        yield answer[:-2] + ("e" if answer[-2] != "e" else "a") + answer[-1]
    elif isinstance(answer, np.ndarray):
        for place in zip(*np.nonzero(answer), strict=True):
            other = answer.copy()
            other[place] += 0.003
            yield other
    elif isinstance(answer, dict):
        for key, value in answer.items():
            yield from ({**answer, key: other} for other in near_misses(value))
    elif isinstance(answer, (list, tuple)):
        for i, value in enumerate(answer):
            for other in near_misses(value):
                yield type(answer)([*answer[:i], other, *answer[i + 1 :]])
    elif isinstance(answer, int) and answer > 2:  # an id
        yield answer + 1
    elif isinstance(answer, float):
        yield answer + 0.003


def right(name: str, model: Any) -> StandIn:
    return StandIn(model, ANSWERS[name], **attributes(name, model))


def attributes(name: str, model: Any) -> dict[str, Any]:
    """What else a fact looks at."""
    if name != "summarises_with_two_layers":
        return {}
    return {"config": model.config.replace(encoder_layers=1, decoder_layers=1)}


def given_to(check: Any, bart: Any) -> dict[str, Any]:
    wanted = inspect.signature(check).parameters
    given = dict.fromkeys(("bart", "other", "forced", "unforced"), bart) | {"read": FILES.get}
    return {name: value for name, value in given.items() if name in wanted}


def test_every_fact_has_a_stand_in():
    here = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(ANSWERS) <= set(CHECKS)
    assert set(CHECKS) - set(ANSWERS) <= here
    assert len({str(fact) for fact in FACTS}) == len(FACTS)


@pytest.mark.parametrize("name", ANSWERS)
def test_the_right_answer_passes(name, shared):  # noqa: F811
    check = CHECKS[name]
    check(**given_to(check, right(name, shared)))


@pytest.mark.parametrize("name", sorted(set(ANSWERS) - {"infers"}))
def test_every_other_answer_fails(name, shared):  # noqa: F811
    check = CHECKS[name]
    misses = list(near_misses(ANSWERS[name]))
    assert misses
    for answers in misses:
        with pytest.raises(AssertionError):
            check(**given_to(check, StandIn(shared, answers, **attributes(name, shared))))


@pytest.mark.parametrize("call", range(3))
def test_infers_minds_the_order(shared, call):  # noqa: F811
    answers = copy.deepcopy(ANSWERS["infers"])
    answers["predict"][call][0] = [0, 9.0, 0]
    with pytest.raises(AssertionError):
        facts.infers(StandIn(shared, answers))


@pytest.fixture
def ignorant(shared, monkeypatch):  # noqa: F811
    """A real model that knows nothing, and searches no further than it takes to show it."""
    search = shared.generate

    def generate(rows: Any, beam: int = 5, *args: Any, **options: Any) -> Any:
        kept = {key: options[key] for key in ("attention", "match_source_len") if key in options}
        named = inspect.signature(search).parameters
        rest = {key: value for key, value in options.items() if key not in named}
        GenerationOptions.from_kwargs(beam=beam, **rest)  # every option is one
        short = {} if kept.get("match_source_len") else {"max_len_b": 6}
        return search(rows, 3, *args, **short, **kept)

    monkeypatch.setattr(shared, "generate", generate)
    shared.register_classification_head("mnli", 3)
    yield shared
    shared.remove_classification_head("mnli")


TRUE_OF_ANY = {"encodes_hello_world", "tokenizes"}  # with GPT-2's vocabulary


@pytest.mark.parametrize("name", sorted(set(CHECKS) - TRUE_OF_ANY))
def test_a_model_that_knows_nothing_fails(name, ignorant, tmp_path):
    """The calls are those of a real model: it answers, and answers wrongly."""
    check = CHECKS[name]
    given = given_to(check, ignorant)
    if "mnli" in inspect.signature(check).parameters:
        given["mnli"] = [("a", "b", "nothing")]
    if "folder" in inspect.signature(check).parameters:
        given["folder"] = tmp_path
    if name == "has_its_mask_at_50264":  # as it is, with GPT-2's vocabulary: see below
        check(**given)
    elif name == "row_50264_is_the_same_in_both":
        check(ignorant, ignorant)
    else:
        with pytest.raises(AssertionError):
            check(**given)


# --- The others -----------------------------------------------------------------------------------


def test_has_features_of_every_layer(shared):  # noqa: F811
    layers = [np.full((1, 5, 1024), i / 10) for i in range(13)]

    def stand_in(layers, last):
        return types.SimpleNamespace(
            encode=shared.encode,
            extract_features=lambda ids, return_all_hiddens=False: (
                layers if return_all_hiddens else last
            ),
        )

    check = facts.has_features_of_every_layer
    check(stand_in(layers, layers[-1]))
    for wrong in (
        stand_in(layers[1:], layers[-1]),
        stand_in(layers[::-1], layers[-1]),
        stand_in([layers[-1]] * 13, layers[-1]),
        stand_in(layers, layers[-1][:, :, :16]),
        shared,
    ):
        with pytest.raises(AssertionError):
            check(wrong)


@pytest.mark.parametrize("name", ["is_as_large_as_claimed", "is_as_large_as_claimed_too"])
def test_is_as_large_as_claimed(name, shared):  # noqa: F811
    right, layers = (140, 6) if name == "is_as_large_as_claimed" else (406, 12)

    def stand_in(millions, encoder, decoder):
        config = types.SimpleNamespace(encoder_layers=encoder, decoder_layers=decoder)
        params = {"a": {"w": np.broadcast_to(0.0, (millions, 10**6))}}
        return types.SimpleNamespace(config=config, params=params)

    CHECKS[name](stand_in(right, layers, layers))
    for wrong in (
        stand_in(right + 10 * layers // 6, layers, layers),
        stand_in(right - 20, layers, layers),
        stand_in(right, layers, layers - 1),
        stand_in(right, layers - 1, layers),
        shared,
    ):
        with pytest.raises(AssertionError):
            CHECKS[name](wrong)


test_is_as_large_as_claimed_too = test_is_as_large_as_claimed


def with_vocabulary(size: int, encoder: TextEncoder) -> Any:
    task = types.SimpleNamespace(source_dictionary=encoder.dictionary)
    config = types.SimpleNamespace(vocab_size=size)
    return types.SimpleNamespace(config=config, text=encoder, task=task)


def test_has_madeup_words_before_its_mask():
    base, large = TextEncoder.gpt2("bart.base"), TextEncoder.gpt2("bart.large")
    facts.has_madeup_words_before_its_mask(with_vocabulary(51201, base))
    for wrong in (with_vocabulary(50265, large), with_vocabulary(51200, base)):
        with pytest.raises((AssertionError, KeyError)):
            facts.has_madeup_words_before_its_mask(wrong)


def test_has_its_mask_at_50264():
    base, large = TextEncoder.gpt2("bart.base"), TextEncoder.gpt2("bart.large")
    facts.has_its_mask_at_50264(with_vocabulary(50265, large))
    for wrong in (with_vocabulary(51201, base), with_vocabulary(50264, large)):
        with pytest.raises(AssertionError):
            facts.has_its_mask_at_50264(wrong)


def test_row_50264_is_the_same_in_both():
    rng = np.random.default_rng(0)
    tables = [rng.standard_normal((rows, 4)) for rows in (51201, 50265)]
    tables[1][50264] = tables[0][50264]
    models = [types.SimpleNamespace(params={"embed_tokens": {"embeddings": t}}) for t in tables]
    facts.row_50264_is_the_same_in_both(*models)
    tables[1][50264, 2] += 1e-3
    with pytest.raises(AssertionError):
        facts.row_50264_is_the_same_in_both(*models)


def test_goes_to_the_bathroom(shared):  # noqa: F811
    right = {"project": [[" gym", " wrong", " movies", " hospital", " bathroom"]]}
    facts.goes_to_the_bathroom(StandIn(shared, right))
    sixth = {"project": [[" gym", " wrong", " movies", " hospital", " house", " bathroom"]]}
    for wrong in (StandIn(shared, sixth), shared):
        with pytest.raises(AssertionError):
            facts.goes_to_the_bathroom(wrong)


def test_recommends_its_settings(tmp_path: Path):
    settings = {"num_beams": 6, "early_stopping": True}
    (tmp_path / "config.json").write_text(json.dumps({"num_beams": 4}))
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    facts.recommends_its_settings(tmp_path)
    for wrong in ({"num_beams": 4}, {"length_penalty": 2.0}, {"do_sample": True}):
        (tmp_path / "generation_config.json").write_text(json.dumps(settings | wrong))
        with pytest.raises(AssertionError):
            facts.recommends_its_settings(tmp_path)


def topic_answers(probabilities: dict[str, list[float]], several: bool) -> dict[str, Any]:
    """Logits of contradiction, neutral and entailment that give these probabilities."""
    rows = np.asarray([probabilities[key] for key in (facts.QUESTION, facts.STIMULUS)])
    logits = np.zeros((*rows.shape, 3))
    logits[..., 1 if several else 0] = 9.0  # not looked at
    logits[..., 2] = np.log(rows / (1 - rows)) if several else np.log(rows)
    return {"predict": list(logits)}


@pytest.mark.parametrize("several", [False, True])
def test_knows_topics(several, shared):  # noqa: F811
    if several:
        check, places = facts.knows_several_topics, [(t, i) for t in range(2) for i in range(4)]
        rows = [[0.9805, 0.0130, 0.0255, 0.0013], [0.9432, 0.0045, 0.9851, 0.0004]]
    else:
        check, places = facts.knows_topics, [(0, 0), (1, 2)]
        rows = [[0.9630, 0.02, 0.01, 0.007], [0.2, 0.1, 0.6416, 0.0584]]

    def ask(rows: list[list[float]]) -> None:
        texts = dict(zip((facts.QUESTION, facts.STIMULUS), rows, strict=True))
        check(StandIn(shared, topic_answers(texts, several)))

    ask(rows)
    for row, topic in places:
        wrong = copy.deepcopy(rows)
        wrong[row][topic] += 0.005
        if not several:  # they sum to one
            wrong[row][3] -= 0.005
        with pytest.raises(AssertionError):
            ask(wrong)
    with pytest.raises(AssertionError):
        ask([row[::-1] for row in rows])


test_knows_several_topics = test_knows_topics


def test_is_right_about_mnli(shared, tmp_path):  # noqa: F811
    header, row = "index\tsentence1\tsentence2\tgold_label\n", '0\tIt "is.\tIt is not.\t{}\n'
    labels = ["contradiction"] * 9010 + ["neutral"] * 990
    (tmp_path / "dev.tsv").write_text(header + "".join(row.format(label) for label in labels))
    rows = facts.mnli_rows(tmp_path / "dev.tsv")
    assert rows[0] == ('It "is.', "It is not.", "contradiction")
    assert len(rows) == 10_000

    def always(*logits):
        return types.SimpleNamespace(
            encode=lambda pairs, truncate: pairs,
            predict=lambda head, pairs: np.tile(logits, (len(pairs), 1)),
        )

    facts.is_right_about_mnli(always(1, 0, 0), rows)
    for wrong in (always(0, 1, 0), always(0, 0, 1)):
        with pytest.raises(AssertionError):
            facts.is_right_about_mnli(wrong, rows)
    with pytest.raises(AssertionError):
        facts.is_right_about_mnli(always(1, 0, 0), rows[200:])


# --- Where the texts come from --------------------------------------------------------------------


def test_constants_of_a_python_file():
    found = upstream.constants(HF_FILE, "test_cnn_summarization_same_as_fairseq")
    assert found["ARTICLE_SUBWAY"] == " four"
    assert upstream.constants(HF_FILE, "test_xsum_summarization_same_as_fairseq") == {
        "PGE_ARTICLE": f" {PGE}",
        "EXPECTED_SUMMARY": "</s>It is dark.</s>",
    }
    with pytest.raises(LookupError, match="no function test_of_something_else"):
        upstream.constants(HF_FILE, "test_of_something_else")


def test_strings_of_a_rust_file():
    article, summary = upstream.rust_strings(RUST_FILE, "bart_summarization_greedy")
    assert article == (
        "In findings published Tuesday by a team of scientists from a place, "
        '"water" was found on a planet.\nIt is far away.'
    )
    assert summary.endswith("as a team of them says.")
    with pytest.raises(LookupError):
        upstream.rust_strings(RUST_FILE, "gpt2")
