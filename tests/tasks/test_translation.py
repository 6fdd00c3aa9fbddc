"""Rows, frames, losses and the reading of every layout; the training of a model is in
tests/training/test_translation.py."""

import json

import jax
import numpy as np
import pytest

from bart_hk.data.readers import DataError
from bart_hk.data.store import StoreWriter
from bart_hk.model import BART
from bart_hk.tasks import losses
from bart_hk.tasks.losses import CrossEntropyConfig, LabelSmoothedCrossEntropyConfig
from bart_hk.tasks.translation import Translation, TranslationConfig
from tests.parameters import random_params
from tests.tasks.tiny import ENCODER, MODEL

TABLE = "source\ttarget\naa bb\tcc\ndd ee ff gg hh\taa bb cc dd ee\ncc\tdd\n"


def make(tmp_path, table=TABLE, valid=None, criterion=None, **options):
    if table is not None:
        (tmp_path / "train.tsv").write_text(table)
        options.setdefault("train", str(tmp_path / "train.tsv"))
    if valid is not None:
        if "\t" in valid:
            (tmp_path / "valid.tsv").write_text(valid)
            valid = str(tmp_path / "valid.tsv")
        options["valid"] = valid
    return Translation(TranslationConfig(**options), criterion or LabelSmoothedCrossEntropyConfig())


def test_rows_begin_with_bos_or_do_not(tmp_path):
    a, b = ENCODER.encode("aa bb"), ENCODER.encode("cc")
    for prepend in (True, False):
        task = make(tmp_path, prepend_bos=prepend)
        task.encode(ENCODER, MODEL)
        bos = [0] if prepend else []
        batch = task.train.batch(np.array([0]), length=20, count=2)
        row, target = [*bos, *a, 2], [*bos, *b, 2]
        assert batch["src_tokens"].tolist() == [row + [1] * (20 - len(row)), [1] * 20]
        room = batch["target"].shape[1]
        assert room == 8
        assert batch["target"][0].tolist() == target + [1] * (room - len(target))
        previous = [2, *target[:-1]]
        assert batch["prev_output_tokens"][0].tolist() == previous + [1] * (room - len(target))
        assert (batch["target"][1] == 1).all()
        assert task.model_config(MODEL, ENCODER).forced_bos_token_id == (0 if prepend else None)
        assert task.extras()["prepend_bos"] is prepend
        learned = {"source_column": "source", "target_column": "target"}
        assert task.extras()["translation"] == learned


def test_a_long_source_is_cut_and_keeps_its_eos(tmp_path, caplog):
    caplog.set_level("INFO")
    ids = ENCODER.encode("dd ee ff gg hh")
    task = make(tmp_path, truncate_source=True, max_source_positions=6)
    task.encode(ENCODER, MODEL)
    assert task.train.sources[1].tolist() == [0, *ids[:4], 2]
    assert "1 sources cut to 6 tokens" in caplog.text
    task = make(tmp_path, truncate_source=True, max_source_positions=6, prepend_bos=False)
    task.encode(ENCODER, MODEL)
    # fairseq: the </s> is taken off, five tokens are kept, and it is put on again.
    assert task.train.sources[1].tolist() == [*ids[:5], 2]


def test_too_long_rows_are_an_error_or_left_out(tmp_path, caplog):
    caplog.set_level("INFO")
    long = len(ENCODER.encode("aa bb cc dd ee")) + 2
    task = make(tmp_path, max_target_positions=long - 1)
    with pytest.raises(
        DataError, match=f"line 3: its target has {long} tokens, and {long - 1} is the limit"
    ):
        task.encode(ENCODER, MODEL)
    task = make(tmp_path, max_target_positions=long - 1, skip_invalid_size_inputs=True)
    task.encode(ENCODER, MODEL)
    assert len(task.train.sources) == 2 and "1 of 3 rows left out" in caplog.text
    assert task.train.where([1]).endswith("lines 4")
    with pytest.raises(DataError, match="every row is too long"):
        make(tmp_path, max_source_positions=2, skip_invalid_size_inputs=True).encode(ENCODER, MODEL)


def test_losses_are_fairseqs_and_padding_counts_nothing(tmp_path):
    """Smoothed over the whole vocabulary, summed over target tokens."""
    criterion = LabelSmoothedCrossEntropyConfig(label_smoothing=0.1)
    task = make(tmp_path, valid=TABLE, criterion=criterion)
    task.encode(ENCODER, MODEL)
    bart = BART(MODEL.replace(dropout=0.0))
    params = task.init(bart, random_params(MODEL, 0.3), jax.random.key(0), {})
    batch = task.train.batch(np.arange(3), 20, 4)
    loss, sums = jax.jit(lambda batch: task.loss(bart, params, None, batch))(batch)
    logits_of = jax.jit(lambda batch: losses.sequence_logits(bart, params["model"], None, batch))
    predict = jax.jit(lambda batch: task.predict(bart, params, batch))
    expected, nll, count = 0.0, 0.0, 0
    for source, target in zip(task.train.sources, task.train.targets, strict=True):
        previous = np.concatenate([[2], target[:-1]])[None]
        logits = logits_of({"src_tokens": source[None], "prev_output_tokens": previous})
        logp = np.asarray(jax.nn.log_softmax(logits), np.float64)[0]
        eps = 0.1 / (MODEL.vocab_size - 1)
        mine = -logp[np.arange(len(target)), target]
        expected += ((1 - 0.1 - eps) * mine - eps * logp.sum(1)).sum()
        nll, count = nll + mine.sum(), count + len(target)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(sums["nll_loss"]) == pytest.approx(nll, rel=1e-5)
    assert int(sums["count"]) == int(sums["tokens"]) == count
    batches = [task.valid.batch(np.array(rows), 20, 2) for rows in ([0, 2], [1])]
    outputs = [predict(batch) for batch in batches]
    rows = {
        name: np.concatenate([np.asarray(outputs[0][name]), np.asarray(outputs[1][name])[:1]])
        for name in outputs[0]
    }
    found = task.metrics(rows)
    assert found["loss"] == pytest.approx(expected / count, rel=1e-5)
    assert found["nll_loss"] == pytest.approx(nll / count, rel=1e-5)
    assert found["ppl"] == pytest.approx(np.exp(nll / count), rel=1e-4)


def test_r_drop_over_target_tokens(tmp_path):
    task = make(tmp_path)
    task.encode(ENCODER, MODEL)
    batch = task.train.batch(np.arange(3), 20, 3)
    params, key = random_params(MODEL, 0.5), jax.random.key(5)
    bart = BART(MODEL.replace(dropout=0.2))
    criteria = [LabelSmoothedCrossEntropyConfig(rdrop_alpha=alpha) for alpha in (1.0, 3.0)]
    found, passes = jax.jit(
        lambda key: (
            [losses.sequence_loss(bart, params, key, batch, c)[0] for c in criteria],
            [losses.sequence_logits(bart, params, k, batch) for k in jax.random.split(key)],
        )
    )(key)
    found = [float(loss) for loss in found]
    p, q = (np.asarray(jax.nn.softmax(x), np.float64) for x in passes)
    each = (p * np.log(p / q) + q * np.log(q / p)).sum(-1) / 2
    divergence = each[batch["target"] != 1].sum()
    assert divergence > 0.01 and found[1] - found[0] == pytest.approx(divergence, rel=1e-3)


def test_the_layouts_give_the_same_rows(tmp_path):
    """A table, JSON lines with lists, two text files, and fairseq's stores."""
    rows = [line.split("\t") for line in TABLE.splitlines()[1:]]
    table = make(tmp_path, valid=TABLE)
    for name in ("json", "text", "named", "stores"):
        (tmp_path / name).mkdir()
    records = [{"article": [*a.split(" "), " "], "summary": [b, "", "another"]} for a, b in rows]
    for split in ("train", "val"):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / "json" / f"{split}.jsonl").write_text(lines)
        for end, side in (("source", 0), ("target", 1)):
            texts = "".join(row[side] + "\n" for row in rows)
            (tmp_path / "text" / f"{split}.{end}").write_text(texts)
        for end, side in (("en", 0), ("de", 1)):
            texts = "".join(row[side] + "\n" for row in rows)
            (tmp_path / "named" / f"{split}.{end}").write_text(texts)
            writer = StoreWriter(
                tmp_path / "stores" / f"{split.replace('val', 'valid')}.en-de.{end}",
                MODEL.vocab_size,
            )
            for row in rows:
                ids = np.array([*ENCODER.encode(row[side]), 2], np.int32)
                writer.add(ids, np.array([len(ids)]))
            writer.finish()
    ENCODER.save_fairseq(tmp_path / "stores")
    tasks = [
        table,
        make(tmp_path, table=None, data=str(tmp_path / "json")),
        make(tmp_path, table=None, data=str(tmp_path / "text")),
        make(tmp_path, None, data=str(tmp_path / "named"), source_lang="en", target_lang="de"),
        make(
            tmp_path,
            None,
            train=str(tmp_path / "named/train"),
            valid=str(tmp_path / "named/val"),
            source_lang="en",
            target_lang="de",
        ),
        make(tmp_path, table=None, data=str(tmp_path / "stores")),
    ]
    encoded = []
    for task in tasks:
        assert task.validates and set(task.fingerprint()) == {"train", "valid"}
        task.encode(ENCODER, MODEL)
        encoded.append(
            [row.tolist() for row in (*task.train.sources, *task.train.targets)]
            + [row.tolist() for row in (*task.valid.sources, *task.valid.targets)]
        )
    assert all(found == encoded[0] for found in encoded)
    assert tasks[1]._splits.valid.targets[0] == ["cc", "another"]
    assert tasks[-1].tokenizer_folder == str(tmp_path / "stores")
    assert list(tasks[2].texts()) == [row[0] for row in rows] + [row[1] for row in rows]
    # The other direction of the same stores.
    back = make(tmp_path, None, data=str(tmp_path / "stores"), source_lang="de", target_lang="en")
    back.encode(ENCODER, MODEL)
    assert [row.tolist() for row in back.train.sources] == encoded[0][3:6]
    with pytest.raises(DataError, match="has en-de, not en-fr"):
        make(tmp_path, None, data=str(tmp_path / "stores"), source_lang="en", target_lang="fr")
    # The ids of another dictionary of the same size are other texts.
    dictionary = tmp_path / "stores" / "dict.txt"
    first, second, *rest = dictionary.read_text().splitlines(keepends=True)
    (tmp_path / "stores" / "dict.de.txt").write_text("".join([second, first, *rest]))
    with pytest.raises(DataError, match=r"dict.de.txt was made with another vocabulary: id 4 is"):
        tasks[-1].encode(ENCODER, MODEL)


def test_some_validation_rows_are_spread_over_the_file(tmp_path):
    """A file may be in the order of its texts' lengths."""
    rows = "".join(f"{'a' * (i + 1)}\t{'b' * (i + 1)}\n" for i in range(11))
    task = make(tmp_path, valid="source\ttarget\n" + rows, eval_bleu=True, eval_rows=3)
    task.encode(ENCODER, MODEL)
    bart = BART(MODEL)
    _, references = task.hypotheses(bart, {"model": bart.init(jax.random.key(0))})
    assert [len(text) for (text,) in references] == [1, 6, 11]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"table": "a\tb\naa\tbb\n"}, "has the columns a, b: .* sources in task.source_column"),
        ({"table": "text\tb\naa\tbb\n"}, "name the one with the targets in task.target_column"),
        ({"source_column": "sorce"}, "no column 'sorce', only source, target; did you mean 'sour"),
        ({"source_column": "target"}, "task.source_column and task.target_column are both target"),
        ({"table": TABLE + "aa\t \n"}, "line 5: 'target' is empty; remove the line"),
        ({"table": "source\ttarget\n"}, "has a header and no rows"),
        ({"source_lang": "en"}, "give task.source_lang and task.target_lang, or neither"),
        ({"eval_bleu": True}, "eval_bleu=true needs texts to compare with; set task.valid"),
        ({"generation": {"beem": 4}}, "task.generation: .*beem"),
        ({"generation": {"beam": 0}}, "task.generation: beam must be at least 1"),
        (
            {"eval_rows": 3},
            "task.eval_rows needs task.eval_bleu, eval_rouge or eval_exact_match=tr",
        ),
        (
            {"source_lang": "en", "target_lang": "de"},
            "is a table: task.source_lang and task.target",
        ),
        ({"eval_rows": -1}, "eval_rows=-1 must not be negative"),
        (
            {"criterion": LabelSmoothedCrossEntropyConfig(label_smoothing=1.0)},
            "label_smoothing=1.0 must be in",
        ),
        (
            {"criterion": LabelSmoothedCrossEntropyConfig(rdrop_alpha=-1.0)},
            "rdrop_alpha=-1.0 must not be negative",
        ),
    ],
)
def test_bad_input_is_found_before_anything_else(tmp_path, arguments, message):
    with pytest.raises(DataError, match=message) as error:
        make(tmp_path, **arguments)
    assert "\n" not in str(error.value)


def test_the_name_of_a_table_may_end_in_capitals(tmp_path):
    (tmp_path / "PAIRS.TSV").write_text(TABLE)
    task = make(tmp_path, None, train=str(tmp_path / "PAIRS.TSV"))
    assert task._splits.train.sources == ["aa bb", "dd ee ff gg hh", "cc"]


def test_bad_files(tmp_path):
    def lines(one, other):
        (tmp_path / "train.en").write_text(one)
        (tmp_path / "train.de").write_text(other)
        return make(tmp_path, None, data=str(tmp_path), source_lang="en", target_lang="de")

    with pytest.raises(DataError, match=r"train.en has 2 lines and .*train.de 1; they go line by"):
        lines("a\nb\n", "a\n")
    with pytest.raises(DataError, match=r"train.de, line 1 is empty; remove it there and in the"):
        lines("a\nb\n", "\nb\n")
    with pytest.raises(DataError, match=r"has no train.tsv, .csv or .jsonl, no train.source and"):
        make(tmp_path, None, data=str(tmp_path))
    for end in ("source", "target"):
        (tmp_path / f"train.{end}").write_text("a\n")
    with pytest.raises(DataError, match=r"train.source is no table: leave out task.source_column"):
        make(tmp_path, None, data=str(tmp_path), source_column="source")
    (tmp_path / "train.tsv").write_text(TABLE)
    with pytest.raises(DataError, match=r"has train.tsv and train.source; name the file to learn"):
        make(tmp_path, None, data=str(tmp_path))
    stores = tmp_path / "stores"
    stores.mkdir()
    for end, count in (("en", 2), ("de", 1)):
        writer = StoreWriter(stores / f"train.en-de.{end}", 300)
        for _ in range(count):
            writer.add(np.array([5, 299, 2]), np.array([3]))
        writer.finish()
    with pytest.raises(DataError, match=r"train.en-de.en has 2 rows and .*train.en-de.de 1; they"):
        make(tmp_path, None, data=str(stores))
    (stores / "train.tsv").write_text(TABLE)
    with pytest.raises(DataError, match=r"has train.tsv and stores of en-de; name the file to"):
        make(tmp_path, None, data=str(stores))


def test_what_is_no_text_in_json(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"source": "[1] is a note", "target": ["a", "b"]}\n')
    assert make(tmp_path, None, train=str(path))._splits.train.sources == ["[1] is a note"]
    for field, kind in (("[1]", "a list"), ("{}", "an object"), ("true", "true")):
        path.write_text(f'{{"source": {field}, "target": "a"}}\n')
        with pytest.raises(DataError, match=f"line 1: 'source' is {kind}, and a text is wanted"):
            make(tmp_path, None, train=str(path))


def test_a_divisor_of_sentences(tmp_path):
    task = make(tmp_path, criterion=CrossEntropyConfig(sentence_avg=True))
    outputs = {name: np.array([2.0, 4.0]) for name in ("loss", "nll", "correct")}
    outputs |= {"tokens": np.array([4, 4]), "predicted": np.array([4, 4])}
    found = task.metrics(outputs)
    assert found["loss"] == 3.0 and found["nll_loss"] == 0.75 and found["accuracy"] == 75
