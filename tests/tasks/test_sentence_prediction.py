import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.data.readers import DataError
from bart_hk.data.store import StoreWriter
from bart_hk.model import BART, ClassificationHead
from bart_hk.tasks.sentence_prediction import (
    SentencePrediction,
    SentencePredictionConfig,
    SentencePredictionCriterionConfig,
)
from bart_hk.text import train_bpe
from tests.parameters import random_params
from tests.tasks.tiny import ENCODER, MODEL

PAIRS = "sentence1\tsentence2\tlabel\naa\tbb cc\tyes\ndd ee ff gg\thh\tno\n"


def make(tmp_path, train=PAIRS, valid=None, criterion=None, **options):
    if train is not None:
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
            "valid.tsv, line 4: label 'maybe' is not in .*train.tsv, which has no, yes; correct it",
        ),
        (
            {"labels": ["yes", "never"]},
            "train.tsv, line 3: label 'no' is not in task.labels, .*; correct it, or name it there",
        ),
        ({"labels": ["no", "no", "yes"]}, "task.labels has 'no' twice"),
        ({"train": SINGLE.format("a", "a")}, "every row has the label 'a'"),
        ({"train": SINGLE.format("a", "a"), "labels": ["a", "b"]}, "every row has the label 'a'"),
        ({"num_classes": 3}, "task.num_classes=3, but there are 2 labels: no, yes"),
        ({"criterion": {"regression_target": True}}, "line 2: label 'yes' is not a finite number"),
        (
            {"train": SINGLE.format("1", "nan"), "criterion": {"regression_target": True}},
            "line 3: label 'nan' is not a finite number",
        ),
        (
            {"valid": "text\tlabel\naa\tyes\n"},
            "valid.tsv has no column 'sentence1', only text, label; rename this file's, or name "
            "those of all files in task.text_columns",
        ),
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
        *(
            ({**options, "criterion": {"regression_target": True, **more}}, message)
            for options, more, message in (
                (
                    {"labels": ["yes", "no"]},
                    {},
                    "task.labels is for classes; leave out regression_",
                ),
                ({"num_classes": 2}, {}, "task.num_classes is for classes"),
                ({}, {"label_smoothing": 0.1}, "criterion.label_smoothing is for classes"),
            )
        ),
        ({"label_divisor": 5.0}, "task.label_divisor needs criterion.regression_target=true"),
        ({"label_separator": ";"}, "task.label_separator needs task.multi_label=true"),
        (
            {"text_columns": ["sentence1", "sentence1"]},
            "sentence1, sentence1 and the labels in lab",
        ),
        (
            {"label_column": "sentence2", "text_columns": ["sentence2"]},
            "give every column once, in",
        ),
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
    with pytest.raises(DataError, match="has no input0/train.bin and train.idx; fairseq-preproc"):
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
    dropped, _ = task._dropped(batch, jax.random.key(0), MODEL)
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


def ready(task):
    """The task, encoded, with a network without dropout and its parameters."""
    task.encode(ENCODER, MODEL)
    bart = BART(MODEL.replace(dropout=0.0))
    return bart, task.init(bart, random_params(MODEL, 0.05), jax.random.key(1), {})


def logits_of(task, bart, params, batch):
    return np.asarray(task.predict(bart, params, batch)["logits"], np.float64)


UNEVEN = "text\tlabel\naa\tno\nbb\tno\ncc dd\tno\naa bb\tyes\n"


@pytest.mark.parametrize(
    ("weights", "of_rows"),
    [({"yes": 3.0}, [1, 1, 1, 3]), ("balanced", [4 / 6, 4 / 6, 4 / 6, 2])],
)
def test_class_weights_are_torchs(tmp_path, weights, of_rows):
    """sum(w nll) / sum(w), as torch.nn.CrossEntropyLoss(weight=w)."""
    task = make(tmp_path, UNEVEN, UNEVEN, criterion={"class_weights": weights})
    bart, params = ready(task)
    batch = task.train.batch(np.arange(4), length=8, count=6)
    loss, sums = task.loss(bart, params, None, batch)
    logits = logits_of(task, bart, params, batch)[:4]
    nll = np.log(np.exp(logits).sum(1)) - logits[np.arange(4), task.train.targets]
    assert float(sums["count"]) == pytest.approx(sum(of_rows)) and int(sums["predicted"]) == 4
    assert float(loss) == pytest.approx(float(np.dot(nll, of_rows)), rel=1e-5)
    found = task.metrics({"logits": logits})
    assert found["loss"] == pytest.approx(float(np.average(nll, weights=of_rows)), rel=1e-5)


def test_multi_label(tmp_path):
    rows = 'text\tlabel\naa\tred, blue\nbb\t\ncc dd\tblue\naa bb\t["green", "red"]\n'
    task = make(tmp_path, rows, rows, multi_label=True)
    assert task.labels == ["blue", "green", "red"]
    bart, params = ready(task)
    assert task.train.targets.tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1]]
    batch = task.train.batch(np.arange(4), length=8, count=5)
    loss, sums = task.loss(bart, params, None, batch)
    logits = logits_of(task, bart, params, batch)[:4]
    p = 1 / (1 + np.exp(-logits))
    t = task.train.targets
    each = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    assert float(loss) == pytest.approx(4 * each.mean(), rel=1e-5) and int(sums["count"]) == 4
    found = task.metrics({"logits": np.where(t > 0, 5.0, -5.0)})
    assert [found[name] for name in task.metric_names] == [100, 100, 100]
    wrong = np.where(t > 0, 5.0, -5.0)
    wrong[1, 0] = 5.0  # one of twelve decisions, and one row of four
    found = task.metrics({"logits": wrong})
    assert found["accuracy"] == 75 and found["micro_f1"] == pytest.approx(100 * 10 / 11)
    assert found["macro_f1"] == pytest.approx(100 * (4 / 5 + 1 + 1) / 3)
    _, heads = task.parts(params)
    head = heads["sentence_classification_head"]
    assert head.multi_label and head.labels == ["blue", "green", "red"]
    assert task.extras()["sentence_prediction"] == {
        **{"text_columns": ["text"], "label_column": "label", "label_separator": ","}
    }
    # A restored head in another order keeps it, and the targets follow.
    head.labels = ["red", "blue", "green"]
    other = make(tmp_path, rows, multi_label=True)
    other.encode(ENCODER, MODEL)
    other.init(bart, params["model"], jax.random.key(2), {"sentence_classification_head": head})
    assert other.labels == head.labels
    assert other.train.targets.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1]]


def test_r_drop_adds_the_divergence_of_two_passes(tmp_path):
    tasks = [make(tmp_path, UNEVEN, criterion={"rdrop_alpha": alpha}) for alpha in (0.0, 1.0, 3.0)]
    for task in tasks:
        task.encode(ENCODER, MODEL)
    key, batch = jax.random.key(3), tasks[0].train.batch(np.arange(4), length=8, count=4)
    params = tasks[0].init(BART(MODEL), random_params(MODEL, 0.5), jax.random.key(1), {})
    dropping, still = BART(MODEL.replace(dropout=0.3)), BART(MODEL.replace(dropout=0.0))
    # Where nothing is dropped the two passes agree, and there is nothing to add.
    plain, one, three = (float(task.loss(still, params, key, batch)[0]) for task in tasks)
    assert plain == pytest.approx(one, rel=1e-5) and plain == pytest.approx(three, rel=1e-5)
    one, three = (float(task.loss(dropping, params, key, batch)[0]) for task in tasks[1:])
    passes = [tasks[0]._logits(dropping, params, batch, k) for k in jax.random.split(key)]
    p, q = (np.exp(jax.nn.log_softmax(x)) for x in passes)
    divergence = ((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum()) / 2
    assert divergence > 1e-3
    assert three - one == pytest.approx(2 * divergence / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"criterion": {"class_weights": {"maybe": 2}}}, "there is no label 'maybe'; there are no"),
        ({"criterion": {"class_weights": {"no": -2}}}, "class_weights.no=-2 must be a number that"),
        ({"criterion": {"class_weights": {"no": "2"}}}, "class_weights.no=2 must be a number that"),
        ({"criterion": {"class_weights": "balance"}}, "=balance is neither balanced nor {label: w"),
        ({"criterion": {"class_weights": [1, 2]}}, r"=\[1, 2\] is neither balanced nor {label: we"),
        (
            {"criterion": {"class_weights": {"no": 0, "yes": 0}}},
            "class_weights: every row of .*tsv has a weight of 0",
        ),
        (
            {"multi_label": True, "criterion": {"report_mcc": True}},
            "are for classes that exclude each other; with task.multi_label",
        ),
        ({"multi_label": True, "criterion": {"rdrop_alpha": 1.0}}, "rdrop_alpha compares classes"),
        ({"criterion": {"rdrop_alpha": -1.0}}, "rdrop_alpha=-1.0 must not be negative"),
        (
            {"multi_label": True, "criterion": {"regression_target": True}},
            "task.multi_label and criterion.regression_target exclude each other",
        ),
        ({"multi_label": True, "valid": "text\tlabel\naa\tyes,maybe\n"}, "line 2: label 'maybe'"),
    ],
)
def test_bad_options_of_classes(tmp_path, arguments, message):
    with pytest.raises(DataError, match=message) as error:
        make(tmp_path, **{"train": UNEVEN, **arguments})
    assert "\n" not in str(error.value)


def test_a_label_list_in_another_order_than_the_restored_head_is_refused(tmp_path):
    task = make(tmp_path)
    bart, params = ready(task)
    _, heads = task.parts(params)
    assert heads["sentence_classification_head"].labels == ["no", "yes"]
    again = make(tmp_path, labels=["no", "yes"])
    again.encode(ENCODER, MODEL)
    tree = again.init(bart, params["model"], jax.random.key(2), heads)
    assert tree["head"] is params["head"]
    again = make(tmp_path, labels=["yes", "no"])
    again.encode(ENCODER, MODEL)
    message = r"task.labels=\['yes', 'no'\] are in another order than those of the restored head"
    with pytest.raises(DataError, match=message) as error:
        again.init(bart, params["model"], jax.random.key(2), heads)
    assert "\n" not in str(error.value)


def binarise(folder, pairs, labels, numbers=False):
    """As fairseq-preprocess leaves them: rows with </s>, labels by count."""
    for name in ("input0", "input1", "label"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ENCODER.save_fairseq(folder / "input0")
    for split in ("train", "valid"):
        for side in (0, 1):
            writer = StoreWriter(folder / f"input{side}" / split, len(ENCODER.dictionary))
            for pair in pairs:
                ids = np.array([*ENCODER.encode(pair[side]), 2], np.int32)
                writer.add(ids, np.array([len(ids)]))
            writer.finish()
        if numbers:
            (folder / "label" / f"{split}.label").write_text("".join(f"{x}\n" for x in labels))
            continue
        (folder / "label" / "dict.txt").write_text("yes 3\nno 1\nmadeupword0000 0\n")
        writer = StoreWriter(folder / "label" / split, 7)
        for label in labels:
            writer.add(np.array([4 + ["yes", "no"].index(label), 2]), np.array([2]))
        writer.finish()


def test_fairseqs_binarised_folders_give_the_rows_of_the_table(tmp_path):
    pairs = [("aa", "bb cc"), ("dd ee ff gg", "hh")]
    folder = tmp_path / "data"
    binarise(folder, pairs, ["yes", "no"])
    table, stored = make(tmp_path), make(tmp_path, train=None, data=str(folder))
    assert stored.validates and stored.labels == table.labels == ["no", "yes"]
    assert set(stored.fingerprint()) == {"train", "valid"} and not list(stored.texts())
    for task in (table, stored):
        task.encode(ENCODER, MODEL)
    for one, other in zip(table.train.rows, stored.train.rows, strict=True):
        assert one.tolist() == other.tolist()
    assert stored.train.targets.tolist() == table.train.targets.tolist() == [1, 0]
    assert stored.tokenizer_folder == str(folder)
    before = stored.fingerprint()
    binarise(folder, pairs, ["no", "yes"])
    assert make(tmp_path, train=None, data=str(folder)).fingerprint() != before
    with pytest.raises(DataError, match="another vocabulary"):
        small = train_bpe(["a b"], 262)
        make(tmp_path, train=None, data=str(folder)).encode(small, MODEL)
    (folder / "input1" / "dict.txt").write_text("a 1\nb 1\n")
    with pytest.raises(DataError, match="input1/dict.txt was made with another vocabulary: i"):
        make(tmp_path, train=None, data=str(folder)).encode(ENCODER, MODEL)
    binarise(folder, pairs, ["yes"])
    with pytest.raises(DataError, match="input0/train has 2 rows and label/train 1; binarise them"):
        make(tmp_path, train=None, data=str(folder))
    (folder / "train.tsv").write_text("sentence\tlabel\naa\tyes\n")
    with pytest.raises(DataError, match="has train.tsv and input0; name the file to learn from in"):
        make(tmp_path, train=None, data=str(folder))
    numbers = tmp_path / "numbers"
    binarise(numbers, pairs, [0.5, 0.25], numbers=True)
    with pytest.raises(DataError, match="has no label/dict.txt; for numbers set criterion.regre"):
        make(tmp_path, train=None, data=str(numbers))
    task = make(tmp_path, train=None, data=str(numbers), criterion={"regression_target": True})
    task.encode(ENCODER, MODEL)
    assert task.train.targets.tolist() == [0.5, 0.25]
