"""A student and its teacher: the loss by hand, the teacher as an argument, a run, refusals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bart_hk.checkpoint.huggingface import read_model, write_model
from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.checkpoint.students import student
from bart_hk.config import BARTConfig
from bart_hk.data.readers import DataError
from bart_hk.model import BART
from bart_hk.tasks import losses
from bart_hk.tasks.losses import LabelSmoothedCrossEntropyConfig
from bart_hk.tasks.question_answering import LABELS as SPANS
from bart_hk.tasks.question_answering import (
    QuestionAnswering,
    QuestionAnsweringConfig,
    QuestionAnsweringCriterionConfig,
)
from bart_hk.tasks.sentence_prediction import (
    SentencePrediction,
    SentencePredictionConfig,
    SentencePredictionCriterionConfig,
)
from bart_hk.tasks.sentence_ranking import (
    SentenceRanking,
    SentenceRankingConfig,
    SentenceRankingCriterionConfig,
)
from bart_hk.tasks.teaching import hidden_loss, soft_cross_entropy
from bart_hk.tasks.token_classification import (
    TokenClassification,
    TokenClassificationConfig,
    TokenClassificationCriterionConfig,
)
from bart_hk.tasks.translation import Translation, TranslationConfig
from bart_hk.text import train_bpe
from bart_hk.training.config import ConfigError, complete
from bart_hk.training.distillation import DistillationConfig, Teacher
from bart_hk.training.loop import train
from bart_hk.training.step import Step
from tests.parameters import random_params
from tests.tasks.tiny import ENCODER, MODEL

BIG = MODEL.replace(encoder_layers=2, decoder_layers=2)
LABELS = ["no", "yes"]
HEAD = "sentence_classification_head"


def head(seed, labels, classes=2):
    draw = np.random.default_rng(seed).normal(size=(8, 8 + classes)).astype(np.float32)
    return HeadFiles(
        {
            "dense": {"w": draw[:, :8], "b": np.zeros(8, np.float32)},
            "out_proj": {"w": draw[:, 8:], "b": np.arange(classes, dtype=np.float32)},
        },
        labels,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher with a head, and files of five tasks."""
    made = tmp_path_factory.mktemp("teacher")
    heads = {HEAD: head(0, LABELS[::-1])}
    write_model(made / "big", BIG, random_params(BIG, 0.4), heads, also=ENCODER.save)
    words = [["aa bb", "cc"], ["dd ee ff", "aa bb cc"], ["cc", "dd"]]
    lines = ["source\ttarget", *("\t".join(row) for row in words)]
    (made / "texts.tsv").write_text("\n".join(lines) + "\n")
    rows = ["sentence\tlabel", "aa\tyes", "dd ee ff\tno", "gg hh\tyes"]
    (made / "classes.tsv").write_text("\n".join(rows) + "\n")
    rows = ["context\toption1\toption2\tlabel", "aa bb\tcc\tdd dd ee\t1", "ff\tgg\thh\t0"]
    (made / "options.tsv").write_text("\n".join(rows) + "\n")
    (made / "words.txt").write_text("aa yes\nbb no\n\ncc no\ndd yes\nee no\n")
    asked = {"id": "1", "question": "aa", "answers": [{"text": "dd ee", "answer_start": 6}]}
    other = {"id": "2", "question": "bb cc", "answers": [{"text": "bb", "answer_start": 0}]}
    text = {"context": "bb cc dd ee ff", "qas": [asked, other]}
    (made / "answers.json").write_text(json.dumps({"data": [{"paragraphs": [text]}]}))
    return made


def texts(folder, **criterion):
    task = Translation(
        TranslationConfig(train=str(folder / "texts.tsv")),
        LabelSmoothedCrossEntropyConfig(label_smoothing=0.1, **criterion),
    )
    task.encode(ENCODER, MODEL)
    return task


def sentences(folder, **options):
    task = SentencePrediction(
        SentencePredictionConfig(train=str(folder / "classes.tsv")),
        SentencePredictionCriterionConfig(**options),
    )
    task.encode(ENCODER, MODEL)
    return task


def ranked(folder):
    return SentenceRanking(
        SentenceRankingConfig(train=str(folder / "options.tsv")), SentenceRankingCriterionConfig()
    )


def tags(folder):
    return TokenClassification(
        TokenClassificationConfig(train=str(folder / "words.txt")),
        TokenClassificationCriterionConfig(),
    )


def spans(folder):
    return QuestionAnswering(
        QuestionAnsweringConfig(train=str(folder / "answers.json")),
        QuestionAnsweringCriterionConfig(),
    )


def teacher_of(folder, task, small=MODEL, encoder=ENCODER, **options):
    config = DistillationConfig(teacher=str(folder / "big"), **options)
    return Teacher(config, task, BART(small.replace(dropout=0.0)), encoder)


def test_the_loss_of_texts_by_hand(folder):
    """0.2 of the criterion's, 0.8 of the soft targets', 3 of each copied layer's hidden states."""
    task = texts(folder)
    teacher = teacher_of(folder, task, alpha_hid=3.0, temperature=3.0)
    params, config = student(read_model(folder / "big").params, BIG, 1, 1)
    assert config.decoder_layers == 1
    params = jax.tree.map(lambda a: a * 1.2, params)
    batch = task.train.batch(np.arange(3), 20, 4)
    small, big = BART(config.replace(dropout=0.0)), BART(BIG)

    def both(params, right):
        loss, sums = teacher.loss({"model": params}, None, batch, {"model": right})
        own, own_sums = losses.sequence_loss(small, params, None, batch, task.criterion)
        mine, theirs = (
            losses.sequence_states(bart, tree, None, batch, True)
            for bart, tree in ((small, params), (big, right))
        )
        logits = [
            bart.project(tree, states[1].features)
            for bart, tree, states in ((small, params, mine), (big, right, theirs))
        ]
        hidden = [
            (one.hidden_states, other.hidden_states)
            for one, other in zip(mine, theirs, strict=True)
        ]
        return loss, sums, own, own_sums, logits, hidden

    right = read_model(folder / "big").params
    loss, sums, own, own_sums, logits, hidden = jax.jit(both)(params, right)
    real = np.asarray(batch["target"] != 1)
    soft = soft_cross_entropy(*logits, real, 3.0)
    states = hidden_loss(*hidden[0], (0,), np.asarray(batch["src_tokens"] != 1))
    states += hidden_loss(*hidden[1], (0,), real)
    count = int(own_sums["count"])
    assert count == real.sum() and float(soft) > 0.01 and float(states) > 1e-3
    expected = 0.2 * own + 0.8 * soft + 3.0 * count * states
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    assert int(sums["count"]) == count and float(sums["own_loss"]) == pytest.approx(float(own))


def test_the_loss_of_classes_in_the_students_order(folder):
    task = sentences(folder)
    teacher = teacher_of(folder, task)
    stored = read_model(folder / "big")
    assert task.labels == LABELS and stored.heads[HEAD].labels == ["yes", "no"]
    params = {"model": random_params(MODEL, 0.5), "head": head(3, LABELS).params}
    batch = task.train.batch(np.arange(3), 16, 4)
    small, big = (BART(c.replace(dropout=0.0)) for c in (MODEL, BIG))
    turned = {"model": stored.params, "head": stored.heads[HEAD].params}

    def all_of_it(params, right, plain):
        loss = teacher.loss(params, None, batch, right)[0]
        own = task.loss(small, params, None, batch)[0]
        return (
            loss,
            own,
            *(
                task._logits(bart, tree, batch, None)
                for bart, tree in ((small, params), (big, plain))
            ),
        )

    loss, own, mine, theirs = jax.jit(all_of_it)(params, teacher.params, turned)
    soft = soft_cross_entropy(mine, theirs[:, ::-1], batch["mask"], 2.0)
    assert float(loss) == pytest.approx(float(0.2 * own + 0.8 * soft), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "labels", "outputs", "order"),
    [(ranked, None, 1, None), (tags, ["yes", "no"], 2, [1, 0]), (spans, SPANS, 2, None)],
)
def test_the_loss_of_other_heads(folder, tmp_path, make, labels, outputs, order):
    """By hand, from the logits of both; rows of padding count nowhere, in no part of it."""
    task = make(folder)
    task.encode(ENCODER, MODEL)
    stored = {"other name": head(0, labels, outputs)}
    write_model(tmp_path / "big", BIG, random_params(BIG, 0.4), stored, also=ENCODER.save)
    teacher = teacher_of(tmp_path, task, alpha_hid=1.5, temperature=3.0)
    small, big = (BART(c.replace(dropout=0.0)) for c in (MODEL, BIG))
    own = {"model": random_params(MODEL, 0.5), "head": head(3, None, outputs).params}
    plain = {"model": read_model(tmp_path / "big").params, "head": stored["other name"].params}
    rows = np.arange(2)
    batch, padded = (task.train.batch(rows, *shape) for shape in ((16, 2), (19, 4)))

    def parts(params):
        both = ((small, params), (big, plain))
        logits = [task._logits(bart, tree, batch, None) for bart, tree in both]
        source, previous = batch["src_tokens"], batch["prev_output_tokens"]
        states = [bart.encode(t["model"], source, return_all_hiddens=True) for bart, t in both]
        states += [
            bart.decode(t["model"], previous, encoded, return_all_hiddens=True)
            for (bart, t), encoded in zip(both, states, strict=True)
        ]
        states = [side.hidden_states[1] for side in states]  # the student's only layer is a copy
        loss = teacher.loss(params, None, batch, teacher.params)
        return *logits, task.loss(small, params, None, batch), loss, states

    mine, theirs, (alone, _), (loss, sums), states = jax.jit(parts)(own)
    if order:  # of the teacher's outputs, as the student has them
        theirs = theirs[..., order]
    p, q = (np.asarray(jax.nn.log_softmax(x / 3.0)) for x in (theirs, mine))
    each = (np.exp(p) * (p - q)).sum(-1)
    if make is tags:
        each = each[batch["targets"] >= 0]
    soft = 9 * each.sum() / (2 if make is spans else 1)
    assert soft > 0.01 and float(sums["soft_loss"]) == pytest.approx(soft, rel=1e-4)
    assert float(sums["own_loss"]) == pytest.approx(float(alone), rel=1e-5)
    real = batch["src_tokens"] != 1
    hidden = sum(
        np.square(np.asarray(a - b)[real]).mean() for a, b in (states[:2], states[2:])
    ) * float(sums["count"])
    assert hidden > 0.01 and float(sums["hidden_loss"]) == pytest.approx(hidden, rel=1e-4)
    whole = 0.2 * float(alone) + 0.8 * soft + 1.5 * float(sums["hidden_loss"])
    assert float(loss) == pytest.approx(whole, rel=1e-4)

    again, its_sums = jax.jit(teacher.loss)(own, None, padded, teacher.params)
    assert float(again) == pytest.approx(float(loss), rel=1e-5)
    assert {name: float(value) for name, value in its_sums.items()} == pytest.approx(
        {name: float(value) for name, value in sums.items()}, rel=1e-5
    )


@pytest.mark.parametrize("make", ["sentences", "options", "tags", "spans"])
def test_a_students_pass_is_that_of_its_loss(folder, make):
    """With dropout, of tokens too: what a teacher is compared with is what the criterion judges."""
    task = {"sentences": sentences, "options": ranked, "tags": tags, "spans": spans}[make](folder)
    task.encode(ENCODER, MODEL)
    if make == "sentences":
        task.config = dataclasses.replace(task.config, token_dropout=0.3)
    bart = BART(MODEL.replace(dropout=0.2, pooler_dropout=0.2))
    params = task.init(bart, random_params(MODEL, 0.5), jax.random.key(2), {})
    batch = task.train.batch(np.arange(2), 16, 3)

    def both(key, states):
        found = task.answers(bart, params, key, batch, states)
        return task.loss(bart, params, key, batch), task.loss_of(bart, found, batch)

    compiled = jax.jit(both, static_argnums=1)
    values = []
    # With states the last layer computes all tokens, and draws dropout for them.
    for seed, states in ((0, False), (1, False), (None, True)):
        key = None if seed is None else jax.random.key(seed)
        (loss, sums), (again, its_sums) = compiled(key, states)
        assert float(loss) == pytest.approx(float(again), rel=1e-5)
        assert {n: int(v) for n, v in sums.items()} == {n: int(v) for n, v in its_sums.items()}
        values.append(float(loss))
    assert len(set(values)) == 3


def test_the_teacher_is_an_argument_of_the_compiled_step(folder):
    """Another one of the same shape gives another loss, and nothing is compiled again."""
    task = texts(folder)
    teacher = teacher_of(folder, task)
    step = Step(teacher.loss, optax.sgd(0.0), 0.0, jax.random.key(0), given=(teacher.params,))
    batch = task.train.batch(np.arange(3), 20, 3)
    found = []
    for factor in (1.0, 1.0, 0.5):
        step._given = (jax.tree.map(lambda a, f=factor: a * f, teacher.params),)
        state = step.init({"model": jax.tree.map(jnp.asarray, random_params(MODEL, 0.5))})
        found.append(float(step.update(state, 0, [batch])[1]["soft_loss"]))
    assert found[0] == found[1] != found[2] and step._whole._cache_size() == 1


def test_a_student_comes_nearer_to_its_teacher(folder, tmp_path):
    stored = read_model(folder / "big")
    params, config = student(stored.params, BIG, 1, 1)
    write_model(tmp_path / "small", config, params, also=ENCODER.save)
    train(
        {
            "task": {"_name": "translation", "train": str(folder / "texts.tsv")},
            "criterion": "label_smoothed_cross_entropy",
            "model": {"dropout": 0.0},
            "distillation": {"teacher": str(folder / "big"), "alpha_mlm": 0.0, "alpha_hid": 0.1},
            "dataset": {"batch_size": 3, "length_buckets": [16]},
            "optimization": {"lr": 1e-2, "max_update": 12, "max_epoch": 0},
            "lr_scheduler": "fixed",
            "common": {"no_progress_bar": True, "log_interval": 1},
            "checkpoint": {
                "restore_file": str(tmp_path / "small"),
                "save_dir": str(tmp_path / "run"),
                "save_interval": 100,
            },
        }
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[11]
    assert last["soft_loss"] < 0.5 * first["soft_loss"]
    assert first["loss"] == pytest.approx(0.8 * first["soft_loss"] + 0.1 * first["hidden_loss"])
    assert read_model(tmp_path / "run").config.decoder_layers == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "distillation.temperature=0.0 must be above 0"),
        ({"alpha_hid": -1.0}, "distillation.alpha_hid=-1.0 must not be negative"),
        ({"alpha_ce": 0.0, "alpha_mlm": 0.0}, "alpha_ce, alpha_mlm and alpha_hid are all 0"),
    ],
)
def test_values_that_make_no_sense(options, message):
    with pytest.raises(ConfigError, match=message):
        complete({"task": {"train": "x"}, "distillation": options})


def test_a_teacher_that_does_not_fit(folder, tmp_path):
    def refused(message, *arguments, error=ValueError, **options):
        with pytest.raises(error, match=message) as found:
            teacher_of(*arguments, **options)
        assert "\n" not in str(found.value)

    task = texts(folder)
    refused("no model '.*/big'|no model in", tmp_path, task, error=FileNotFoundError)
    refused("has another vocabulary than the student", folder, task, encoder=train_bpe(["b"], 270))
    refused("has decoder_start_token_id=2", folder, task, MODEL.replace(decoder_start_token_id=0))
    longer = MODEL.replace(max_target_positions=30)
    refused("has max_target_positions=20, fewer than the student's 30", folder, task, longer)
    wide = MODEL.replace(encoder_embed_dim=16)
    refused("have the width 8, the student's 16; set it to 0", folder, task, wide, alpha_hid=1.0)
    alone = MODEL.replace(flavour="encoder_only")
    refused("the student is encoder_only, and both are encoder_decoder", folder, task, alone)
    deep = MODEL.replace(encoder_layers=3)
    refused("the student has 3 encoder layers, and its teacher", folder, task, deep, alpha_hid=1.0)
    refused("rdrop_alpha exclude each other", folder, texts(folder, rdrop_alpha=1.0))
    numbers = object.__new__(SentencePrediction)
    numbers.config = SentencePredictionConfig()
    numbers.criterion = SentencePredictionCriterionConfig(regression_target=True)
    numbers.regression, numbers.labels = True, []
    refused("the teacher's head gives the classes yes, no", folder, numbers, error=DataError)
    config: BARTConfig = read_model(folder / "big").config
    write_model(tmp_path / "big", config, random_params(BIG), also=ENCODER.save)
    refused("the teacher has no head 'sent", tmp_path, sentences(folder), error=DataError)
