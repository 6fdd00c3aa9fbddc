import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.config import BARTConfig
from bart_hk.data.readers import DataError
from bart_hk.model import BART, ClassificationHead
from bart_hk.tasks.sentence_prediction import (
    SentencePrediction,
    SentencePredictionConfig,
    SentencePredictionCriterionConfig,
)
from bart_hk.text import train_bpe
from tests.parameters import random_params

PAIRS = "sentence1\tsentence2\tlabel\naa\tbb cc\tyes\ndd ee ff gg\thh\tno\n"
ENCODER = train_bpe(["aa bb cc dd ee ff gg hh"], 300)
MODEL = BARTConfig(
    vocab_size=len(ENCODER.dictionary),
    encoder_embed_dim=8,
    encoder_ffn_embed_dim=8,
    decoder_ffn_embed_dim=8,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    max_source_positions=20,
    max_target_positions=20,
)


def make(tmp_path, train=PAIRS, valid=None, criterion=None, **options):
    (tmp_path / "train.tsv").write_text(train)
    options.setdefault("train", str(tmp_path / "train.tsv"))
    if valid is not None:
        (tmp_path / "valid.tsv").write_text(valid)
        options["valid"] = str(tmp_path / "valid.tsv")
    config = SentencePredictionConfig(**options)
    return SentencePrediction(config, SentencePredictionCriterionConfig(**(criterion or {})))


def test_a_pair_is_framed_as_fairseq_does(tmp_path):
    task = make(tmp_path)
    task.encode(ENCODER, MODEL)
    a, b = ENCODER.encode("aa"), ENCODER.encode("bb cc")
    assert task.train.rows[0].tolist() == [0, *a, 2, *b, 2]
    batch = task.train.batch(np.array([0]), length=12, count=2)
    row = task.train.rows[0].tolist()
    padding = [1] * (12 - len(row))
    assert batch["src_tokens"].tolist() == [row + padding, [1] * 12]
    assert batch["prev_output_tokens"][0].tolist() == [2, *row[:-1], *padding]
    assert batch["mask"].tolist() == [True, False]
    assert batch["targets"].tolist() == [1, 0] and task.labels == ["no", "yes"]


def test_the_loss_is_the_mean_cross_entropy_of_the_head_and_padding_counts_nothing(tmp_path):
    task = make(tmp_path)
    task.encode(ENCODER, MODEL)
    bart = BART(MODEL)
    params = task.init(bart, random_params(MODEL, 0.02), jax.random.key(1), {})
    loss = jax.jit(lambda batch: task.loss(BART(MODEL.replace(dropout=0.0)), params, None, batch))
    rows = np.array([0, 1])
    small, sums = loss(task.train.batch(rows, length=16, count=2))
    large, _ = loss(task.train.batch(rows, length=20, count=5))
    assert float(small) == pytest.approx(float(large), rel=1e-5)
    assert int(sums["count"]) == 2
    assert int(sums["tokens"]) == sum(map(len, task.train.rows))
    # By hand, one row at a time.
    expected = 0.0
    for row, target in zip(task.train.rows, task.train.targets, strict=True):
        source = jnp.array(row)[None]
        features = bart.decode(
            params["model"], jnp.roll(source, 1), bart.encode(params["model"], source)
        ).features
        logits = ClassificationHead(MODEL, 2).apply(params["head"], features[:, -1])
        expected -= float(jax.nn.log_softmax(logits)[0, target])
    assert float(small) == pytest.approx(expected, rel=1e-5)


def test_long_rows_keep_their_last_eos(tmp_path, caplog):
    caplog.set_level("INFO")
    words = " ".join(["aa bb cc dd"] * 20)
    task = make(tmp_path, f"sentence1\tsentence2\tlabel\n{words}\taa\t0\naa\tbb\t1\n")
    task.encode(ENCODER, MODEL)
    row = task.train.rows[0].tolist()
    assert len(row) == 20 and row[-1] == 2 and row.count(2) == 2
    assert row[-1 - len(ENCODER.encode("aa")) : -1] == ENCODER.encode("aa")
    assert "1 of 2 rows cut to 20 tokens" in caplog.text
    task = make(tmp_path, PAIRS, max_positions=7)
    task.encode(ENCODER, MODEL)
    assert [len(row) for row in task.train.rows] == [6, 7]


def test_labels_are_sorted_numbers_as_numbers(tmp_path):
    rows = "".join(f"aa\t{label}\n" for label in ("10", "9", "2"))
    assert make(tmp_path, f"text\tlabel\n{rows}").labels == ["2", "9", "10"]
    assert make(tmp_path, labels=["yes", "no"]).labels == ["yes", "no"]


def test_a_prepared_directory(tmp_path):
    (tmp_path / "train.tsv").write_text(PAIRS)
    (tmp_path / "dev.tsv").write_text(PAIRS)
    task = SentencePrediction(
        SentencePredictionConfig(data=str(tmp_path)), SentencePredictionCriterionConfig()
    )
    assert task.validates and set(task.fingerprint()) == {"train", "valid"}
    shipped = SentencePrediction(
        SentencePredictionConfig(data="pkg://bart_hk.data/sentence_polarity"),
        SentencePredictionCriterionConfig(),
    )
    assert shipped.labels == ["negative", "positive"]
    assert len(list(shipped.texts())) == 9062


SINGLE = "text\tlabel\naa\t{}\nbb\t{}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"valid": PAIRS + "aa\tbb\tmaybe\n"},
            "valid.tsv, line 4: label 'maybe' is not in .*train",
        ),
        ({"labels": ["yes", "never"]}, "train.tsv, line 3: label 'no' is not in task.labels"),
        ({"labels": ["no", "no", "yes"]}, "task.labels has 'no' twice"),
        ({"train": SINGLE.format("a", "a")}, "every row has the label 'a'"),
        ({"num_classes": 3}, "task.num_classes=3, but there are 2 labels: no, yes"),
        ({"criterion": {"regression_target": True}}, "line 2: label 'yes' is not a finite number"),
        (
            {"train": SINGLE.format("1", "nan"), "criterion": {"regression_target": True}},
            "line 3: label 'nan' is not a finite number",
        ),
        ({"valid": "text\tlabel\naa\tyes\n"}, "valid.tsv has no column 'label'|'sentence1'"),
        (
            {"criterion": {"report_pearson_and_spearman": True}},
            "report_pearson_and_spearman needs criterion.regression_target=true",
        ),
        (
            {
                "train": SINGLE.format("1", "2"),
                "criterion": {"regression_target": True, "report_mcc": True},
            },
            "report_mcc and report_acc_and_f1 are for classes",
        ),
        ({"criterion": {"label_smoothing": 1.0}}, "label_smoothing=1.0 must be in"),
    ],
)
def test_bad_input_is_found_before_anything_else(tmp_path, arguments, message):
    with pytest.raises(DataError, match=message) as error:
        make(tmp_path, **arguments)
    assert "\n" not in str(error.value)


def test_bad_places(tmp_path):
    def task(**options):
        SentencePrediction(SentencePredictionConfig(**options), SentencePredictionCriterionConfig())

    with pytest.raises(DataError, match="task.train is not set"):
        task()
    with pytest.raises(DataError, match="task.data or task.train and task.valid, not both"):
        task(data=str(tmp_path), train="x.tsv")
    with pytest.raises(DataError, match="none is not a directory"):
        task(data=str(tmp_path / "none"))
    with pytest.raises(DataError, match="has no train.tsv, train.csv, train.jsonl"):
        task(data=str(tmp_path))
    with pytest.raises(DataError, match="there is no package nowhere"):
        task(data="pkg://nowhere/data")
    (tmp_path / "input0").mkdir()
    with pytest.raises(DataError, match="binarised by fairseq-preprocess"):
        task(data=str(tmp_path))
    with pytest.raises(DataError, match="max_positions=3 leaves no room"):
        make(tmp_path, max_positions=3).encode(ENCODER, MODEL)


def test_token_dropout_masks_ordinary_tokens_alike_on_both_sides(tmp_path):
    words = " ".join(["aa bb cc dd"] * 4)
    rows = f"sentence1\tsentence2\tlabel\n{words}\taa\t0\n" + f"aa\t{words}\t1\n" * 7
    task = make(tmp_path, rows, token_dropout=0.4)
    task.encode(ENCODER, MODEL)
    batch = task.train.batch(np.arange(8), length=20, count=9)
    source, previous = batch["src_tokens"], batch["prev_output_tokens"]
    dropped = task._drop_tokens(batch, jax.random.key(0), MODEL)
    masked = np.asarray(dropped["src_tokens"]) == ENCODER.mask_id
    ordinary = ~np.isin(source, [0, 1, 2])
    assert not np.any(masked & ~ordinary)
    assert 0.3 < masked[ordinary].mean() < 0.5
    np.testing.assert_array_equal(np.where(masked, source, dropped["src_tokens"]), source)
    # The decoder's input is still the source, rolled by one.
    rolled = np.roll(masked, 1, axis=1)
    np.testing.assert_array_equal(
        dropped["prev_output_tokens"], np.where(rolled, ENCODER.mask_id, previous)
    )


def test_token_dropout_is_checked(tmp_path):
    with pytest.raises(DataError, match="task.token_dropout=1.0 must be in"):
        make(tmp_path, token_dropout=1.0)
    without = copy.copy(ENCODER)
    without.dictionary = ENCODER.dictionary.without_last()
    with pytest.raises(DataError, match="token_dropout needs a <mask>"):
        make(tmp_path, token_dropout=0.1).encode(without, MODEL)
