"""SQuAD's files, windows, spans and metrics; the loss by hand, and the hub's answer."""

import gzip
import json

import jax
import numpy as np
import pytest

from bart_hk.data.readers import DataError
from bart_hk.hub import BARTHubInterface
from bart_hk.model import BART, ClassificationHead
from bart_hk.tasks.question_answering import (
    QuestionAnswering,
    QuestionAnsweringConfig,
    QuestionAnsweringCriterionConfig,
    best_answers,
    best_spans,
)
from bart_hk.tasks.squad import exact_match, f1, read_squad
from bart_hk.text import TextEncoder
from bart_hk.text.pieces import encode_pieces
from tests.parameters import random_params
from tests.tasks.tiny import ENCODER, MODEL

CONTEXT = "aa bb cc, dd ee. ff gg hh aa bb cc"


def squad(*entries):
    """entries: (question, answer, where it begins), the answer None where there is none."""
    qas = [
        {
            "id": f"q{i}",
            "question": question,
            "answers": [] if answer is None else [{"text": answer, "answer_start": start}],
            "is_impossible": answer is None,
        }
        for i, (question, answer, start) in enumerate(entries)
    ]
    return json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": qas}]}]})


def make(tmp_path, content=None, valid=None, **options):
    content = squad(("ff", "cc, dd", 6), ("hh", "gg hh", 20)) if content is None else content
    (tmp_path / "train-v1.1.json").write_text(content)
    if valid is not None:
        (tmp_path / "dev-v1.1.json").write_text(valid)
    config = QuestionAnsweringConfig(data=str(tmp_path), **options)
    return QuestionAnswering(config, QuestionAnsweringCriterionConfig())


def test_pieces_are_the_ids_of_the_text_with_their_characters():
    gpt2 = TextEncoder.gpt2()
    texts = [
        "Notre Dame's 12,000 students (2010) don't  pay: caf\u00e9 \u201cx\u201d!",
        " leading, and_underscores ... end",
    ]
    for text, pieces in zip(texts, encode_pieces(gpt2, texts), strict=True):
        plain = " ".join(text.split())
        assert gpt2.decode(pieces.ids).strip() == plain
        if "  " not in text and not text.startswith(" "):
            assert pieces.ids.tolist() == gpt2.encode(text)
        for begin, end in zip(pieces.begins, pieces.ends, strict=True):
            assert text[begin:end].strip() == text[begin:end] != ""
    found = encode_pieces(gpt2, ["Notre Dame's"])[0]
    assert [(int(a), int(b)) for a, b in zip(found.begins, found.ends, strict=True)][-1] == (10, 12)


def test_rows_and_targets(tmp_path):
    model = MODEL.replace(max_source_positions=40, max_target_positions=40)
    task = make(tmp_path)
    task.encode(ENCODER, model)
    pieces = encode_pieces(ENCODER, [CONTEXT])[0]
    question = ENCODER.encode("ff")
    row = task.train.rows[0].tolist()
    assert row == [0, *question, 2, *pieces.ids.tolist(), 2]
    batch = task.train.batch(np.array([0, 1]), length=40, count=3)
    for (first, last), answer in zip(batch["targets"], ("cc, dd", "gg hh"), strict=False):
        source = batch["src_tokens"][0 if answer == "cc, dd" else 1]
        assert ENCODER.decode(source[first : last + 1]).strip() == answer
    assert batch["prev_output_tokens"][0, : len(row)].tolist() == [2, *row[:-1]]
    assert batch["mask"].tolist() == [True, True, False]


def test_a_long_context_is_read_in_windows_that_leave_nothing_out(tmp_path):
    task = make(tmp_path, max_positions=12, doc_stride=3)
    task.encode(ENCODER, MODEL)
    pieces = encode_pieces(ENCODER, [CONTEXT])[0].ids.tolist()
    seen = set()
    for row, owner, shift in zip(task.train.rows, task.train.owner, task.train.shifts, strict=True):
        assert len(row) <= 12
        if owner == 0:
            begin = len(ENCODER.encode("ff")) + 2
            window = row[begin:-1].tolist()
            start = begin - int(shift)
            assert window == pieces[start : start + len(window)]
            seen |= set(range(start, start + len(window)))
    assert seen == set(range(len(pieces)))
    targets = task.train.batch(np.arange(len(task.train.rows)), 12, len(task.train.rows))["targets"]
    with_answer = targets[(task.train.owner == 0) & (targets[:, 0] > 0)]
    assert 1 <= len(with_answer) < (task.train.owner == 0).sum()


def test_the_loss_the_metrics_and_the_hub(tmp_path):
    content = squad(("ff", "cc, dd", 6), ("hh", "gg hh", 20))
    model = MODEL.replace(dropout=0.0, max_source_positions=40, max_target_positions=40)
    task = make(tmp_path, content, valid=content)
    task.encode(ENCODER, model)
    bart = BART(model)
    tree = task.init(bart, random_params(model, 0.4), jax.random.key(1), {})
    tree["head"]["out_proj"]["w"] = tree["head"]["out_proj"]["w"] * 20
    batch = task.train.batch(np.arange(2), length=40, count=3)
    loss, sums = task.loss(bart, tree, None, batch)
    expected, spans = 0.0, []
    for row, (first, last) in zip(task.train.rows, batch["targets"][:2], strict=True):
        encoded = bart.encode(tree["model"], row[None])
        features = bart.decode(tree["model"], np.roll(row, 1)[None], encoded).features[0]
        logits = np.asarray(ClassificationHead(model, 2).apply(tree["head"], features), np.float64)
        begin = len(row) - 1 - len(encode_pieces(ENCODER, [CONTEXT])[0].ids)
        allowed = np.array([0, *range(begin, len(row) - 1)])
        for side, target in ((0, first), (1, last)):
            scores = logits[allowed, side]
            expected -= logits[target, side] - np.log(np.exp(scores).sum())
        places = [(a, b) for a in allowed[1:] for b in allowed[1:] if a <= b < a + 30]
        spans.append(max(places, key=lambda ab: logits[ab[0], 0] + logits[ab[1], 1]))
    assert float(loss) == pytest.approx(expected / 2, rel=1e-5) and int(sums["count"]) == 2
    outputs = {k: np.asarray(v) for k, v in task.predict(bart, tree, batch).items()}
    assert [(int(a), int(b)) for a, b in zip(outputs["first"], outputs["last"], strict=True)][
        :2
    ] == spans
    pieces, begin = encode_pieces(ENCODER, [CONTEXT])[0], len(ENCODER.encode("ff")) + 2
    assert begin == len(ENCODER.encode("hh")) + 2
    texts = [CONTEXT[pieces.begins[a - begin] : pieces.ends[b - begin]] for a, b in spans]
    found = task.metrics({name: values[:2] for name, values in outputs.items()})
    references = [["cc, dd"], ["gg hh"]]
    pairs = list(zip(texts, references, strict=True))
    assert found["f1"] == pytest.approx(50 * sum(f1(*pair) for pair in pairs))
    assert found["exact_match"] == pytest.approx(50 * sum(exact_match(*pair) for pair in pairs))
    assert found["loss"] == pytest.approx(float(loss) / 2, rel=1e-5)
    params, heads = task.parts(tree)
    hub = BARTHubInterface(bart.config, params, ENCODER, heads)
    for question, text, score in zip(("ff", "hh"), texts, outputs["score"], strict=False):
        answer, points = hub.answer(question, CONTEXT)
        assert answer == text
        assert points == pytest.approx(float(score), rel=1e-4)
    again = task.init(bart, params, jax.random.key(2), heads)
    assert again["head"] is heads["question_answering_head"].params
    with pytest.raises(ValueError, match="a question and a context that are not empty"):
        hub.answer(" ", CONTEXT)
    hub.register_classification_head("classes", num_classes=2)
    with pytest.raises(ValueError, match="a head that task=question_answering trained"):
        hub.answer("ff", CONTEXT, head="classes")


def test_the_hub_reads_as_the_model_was_trained(tmp_path):
    """In windows of as many tokens, with answers as long, and "" where that may be."""
    small = {"max_positions": 12, "doc_stride": 3, "max_question_length": 2}
    task = make(tmp_path, valid=squad(("ff aa bb", "cc, dd", 6)), max_answer_length=2, **small)
    task.encode(ENCODER, MODEL)
    bart = BART(MODEL)
    tree = task.init(bart, random_params(MODEL, 0.5), jax.random.key(1), {})
    rows = np.arange(len(task.valid.rows))
    assert len(rows) > 2
    batch = task.valid.batch(rows, length=12, count=len(rows))
    outputs = {k: np.asarray(v) for k, v in task.predict(bart, tree, batch).items()}
    params, heads = task.parts(tree)
    hub = BARTHubInterface(MODEL, params, ENCODER, heads, extras=task.extras())
    assert hub.max_positions == (12, MODEL.max_target_positions)
    for none in (False, True):
        hub.extras["question_answering"]["may_be_none"] = none
        ((answer, score),) = best_answers(task.valid, outputs, none)
        assert hub.answer("ff aa bb", CONTEXT) == (answer, pytest.approx(score, rel=1e-4))
    elsewhere = BARTHubInterface(MODEL, params, ENCODER, heads).answer("ff aa bb", CONTEXT)
    assert elsewhere[1] != pytest.approx(score, rel=1e-4)
    asked = make(tmp_path, squad(("ff", None, 0), ("hh", "gg hh", 20)))
    for one, may_be_none in ((task, False), (asked, True)):
        assert one.extras()["question_answering"]["may_be_none"] is may_be_none


def test_having_no_answer(tmp_path):
    content = squad(("ff", None, 0), ("hh", "gg hh", 20))
    task = make(tmp_path, content, valid=content)
    task.encode(ENCODER, MODEL.replace(max_source_positions=40, max_target_positions=40))
    assert task.train.batch(np.array([0]), 40, 1)["targets"].tolist() == [[0, 0]]
    shift = int(task.valid.shifts[1])
    pieces = encode_pieces(ENCODER, [CONTEXT])[0]
    first = int(np.flatnonzero(pieces.begins >= 20)[0]) + shift
    last = int(np.flatnonzero(pieces.ends <= 25)[-1]) + shift
    outputs = {
        "score": np.array([1.0, 5.0]),
        "none": np.array([2.0, 3.0]),
        "first": np.array([5, first]),
        "last": np.array([5, last]),
        "loss": np.zeros(2),
    }
    found = task.metrics(outputs)
    assert found["exact_match"] == 100 and found["f1"] == 100
    found = task.metrics(outputs | {"none": np.array([0.0, 9.0])})
    assert found["exact_match"] == 0


def test_best_spans_end_after_they_begin_and_are_short():
    logits = np.full((2, 1, 6), -1e9, np.float32)
    logits[0, 0, :5] = [9.0, 0.0, 1.0, 2.0, 8.0]
    logits[1, 0, :5] = [9.0, 7.0, 0.0, 6.0, 1.0]
    found = best_spans(logits, longest=30)
    assert (int(found["first"][0]), int(found["last"][0])) == (4, 4)
    assert float(found["score"][0]) == 9 and float(found["none"][0]) == 18
    logits[0, 0, 4] = -1e9
    found = best_spans(logits, longest=30)
    assert (int(found["first"][0]), int(found["last"][0])) == (3, 3)
    logits[0, 0, 2:4] = [1.5, -1e9]
    assert [int(best_spans(logits, n)["first"][0]) for n in (1, 2)] == [1, 2]


def test_metrics_are_the_official_ones():
    # evaluate-v1.1.py on these.
    assert exact_match("The Normans.", ["normans"]) == 1 and exact_match("", []) == 1
    assert exact_match("Norman", ["normans", "Norse"]) == 0
    assert f1("in the 10th century", ["10th and 11th centuries", "the 10th century"]) == 0.8
    assert f1("", []) == 1 and f1("x", []) == 0 and f1("", ["x"]) == 0


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            squad(("ff", "dd", 0)),
            {},
            "question q0: the answer 'dd' is not at answer_start=0; it is at .*: correct",
        ),
        (
            squad(("ff", "bb", "x")),
            {},
            "question q0: answer_start='x' is not a whole number",
        ),
        (squad(("ff", "bb", -5)), {}, "'bb' is not at answer_start=-5; it is at 3: correct it"),
        (
            squad(("ff", "zz", 0)),
            {},
            "'zz' is not at answer_start=0; it is nowhere in .*: co",
        ),
        (squad((" ", "aa", 0)), {}, "question q0: the question is empty; leave it out"),
        ("{", {}, "train-v1.1.json: not JSON"),
        ('{"data": [{}]}', {}, "is not in SQuAD's format: KeyError"),
        ('{"data": []}', {}, "has no question"),
        (squad(("ff", "aa", 0)).replace("answers", "answer"), {}, 'q0: it has no "answers"; give'),
        (squad(("ff", "aa", 0), ("hh", "aa", 0)).replace("q1", "q0"), {}, "have the id 'q0'"),
        (None, {"doc_stride": 0}, "task.doc_stride=0 must be at least 1"),
        (None, {"train": "x.json"}, "give task.data or task.train and task.valid, not both"),
    ],
)
def test_bad_input_is_found_before_anything_else(tmp_path, content, options, message):
    with pytest.raises(DataError, match=message) as error:
        make(tmp_path, content, **options)
    assert "\n" not in str(error.value)


def test_a_compressed_file_and_a_byte_order_mark(tmp_path):
    content = squad(("ff", "cc, dd", 6))
    (tmp_path / "train.json.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + content.encode()))
    (tmp_path / "dev.json").write_text(content)
    found = QuestionAnsweringConfig(data=str(tmp_path))
    assert QuestionAnswering(found, QuestionAnsweringCriterionConfig()).validates
    assert read_squad(tmp_path / "train.json.gz") == read_squad(tmp_path / "dev.json")
    with pytest.raises(DataError, match="is a folder; name a file"):
        read_squad(tmp_path)


def test_bad_places(tmp_path):
    with pytest.raises(DataError, match=r"has no train\*.json in SQuAD's format"):
        QuestionAnswering(
            QuestionAnsweringConfig(data=str(tmp_path)), QuestionAnsweringCriterionConfig()
        )
    (tmp_path / "train-v2.0.json").write_text("{}")
    with pytest.raises(DataError, match="has train-v1.1.json, train-v2.0.json; choose with"):
        make(tmp_path)
    (tmp_path / "train-v2.0.json").unlink()
    with pytest.raises(DataError, match="question q0: 4 tokens leave no room for the context in 4"):
        make(tmp_path, squad(("aa bb", "aa", 0)), max_positions=4).encode(ENCODER, MODEL)
