"""GLUE by name: rows laid out as in the official archives, with their mark and their bad lines."""

import jax
import numpy as np
import pytest

from bart_hk.data.readers import DataError
from bart_hk.model import BART
from bart_hk.tasks.glue import GLUE
from bart_hk.tasks.sentence_prediction import (
    SentencePrediction,
    SentencePredictionConfig,
    SentencePredictionCriterionConfig,
)
from tests.parameters import random_params
from tests.tasks.tiny import ENCODER, MODEL

# Header and two rows of each: texts "aa ..." (and "bb"), the labels in the order of the file.
FILES = {
    "cola": "gj04\t1\t\taa aa\ngj04\t0\t*\taa\n",
    "sst2": "sentence\tlabel\naa aa \t1\naa\t0\n",
    "mrpc": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    "1\t70\t71\taa aa\tbb\n0\t7\t8\taa\tbb\n",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    "1\t2\t3\taa aa\tbb\t1\n7\tbroken\n2\t4\t5\taa\t\t0\n",
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\t"
    "sentence1\tsentence2\tscore\n"
    "0\tg\tf\t2012\t1\tn\tn\taa aa\tbb\t5.000\n1\tg\tf\t2012\t4\tn\tn\taa\tbb\t0.500\n",
    "mnli": "index\tpairID\tgenre\tsentence1_binary_parse\t"
    "sentence1\tsentence2\tlabel1\tgold_label\n"
    "0\t1n\tx\t( aa )\taa aa\tbb\tneutral\tneutral\n"
    "1\t2c\tx\t( aa )\taa\tbb\tneutral\tcontradiction\n",
    "qnli": "index\tquestion\tsentence\tlabel\n"
    '0\taa aa\tbb\tnot_entailment\n1\taa\t"bb\tentailment\n',
    "rte": "index\tsentence1\tsentence2\tlabel\n"
    "0\taa aa\tbb\tnot_entailment\n1\taa\tbb\tentailment\n",
    "wnli": "index\tsentence1\tsentence2\tlabel\n0\taa aa\tbb\t1\n1\taa\tbb\t0\n",
}
TARGETS = {"mnli": [1, 0], "stsb": [1.0, 0.1]}
METRICS = {
    "cola": {"accuracy", "mcc"},
    "mrpc": {"accuracy", "f1", "acc_and_f1"},
    "qqp": {"accuracy", "f1", "acc_and_f1"},
    "stsb": {"pearson", "spearman"},
}


def write(folder, name):
    """The archive's layout: GLUE/FOLDER/train.tsv and dev.tsv."""
    inside = folder / GLUE[name].folder
    inside.mkdir()
    for file in ("train", GLUE[name].valid):
        (inside / f"{file}.tsv").write_text(FILES[name])
    return inside


def make(data, name, **options):
    config = SentencePredictionConfig(data=str(data), glue=name, **options)
    return SentencePrediction(config, SentencePredictionCriterionConfig())


@pytest.mark.parametrize("name", sorted(FILES))
def test_official_files_labels_and_metrics(tmp_path, name):
    inside = write(tmp_path, name)
    task = make(tmp_path, name)
    task.encode(ENCODER, MODEL)
    pair = len(GLUE[name].text_columns) == 2
    counts = [(row == MODEL.eos_token_id).sum() for row in task.train.rows]
    assert counts == [1 + pair] * 2
    long = ENCODER.encode("aa aa ") if name == "sst2" else ENCODER.encode("aa aa")
    assert task.train.rows[0][1 : 1 + len(long)].tolist() == long
    np.testing.assert_allclose(task.train.targets, TARGETS.get(name, [1, 0]), rtol=1e-6)
    assert task.validates and len(task.valid.rows) == 2
    assert set(task.metric_names) == METRICS.get(name, {"accuracy"})
    assert make(inside, name.upper()).fingerprint() == task.fingerprint()  # the folder itself


def test_the_names_are_known_and_the_files_are_there(tmp_path):
    with pytest.raises(DataError, match="task.glue=sst3 is not one of cola, sst2, "):
        make(tmp_path, "sst3")
    numbers = SentencePredictionCriterionConfig(regression_target=True)
    with pytest.raises(DataError, match="RTE has classes: leave out criterion.regression_target"):
        SentencePrediction(SentencePredictionConfig(glue="rte"), numbers)
    with pytest.raises(DataError, match=r"has neither train.tsv nor SST-2/train.tsv"):
        make(tmp_path, "sst2")
    with pytest.raises(DataError, match="glue=ax has nothing to train on: train task.glue=mnli"):
        make(tmp_path, "ax")
    assert FILES.keys() == GLUE.keys() - {"ax"}
    assert GLUE["mnli"].labels.index("entailment") == 2  # as bart.large.mnli


def test_an_stsb_head_gives_fifths(tmp_path):
    """What is learned are the scores over 5, as in fairseq's recipe; correlations do not care."""
    write(tmp_path, "stsb")
    task = make(tmp_path, "stsb")
    task.encode(ENCODER, MODEL)
    bart = BART(MODEL)
    tree = task.init(bart, random_params(MODEL, 0.02), jax.random.key(0), {})
    assert tree["head"]["out_proj"]["w"].shape[1] == 1
    found = task.metrics({"logits": np.array([[0.9], [0.3]])})
    assert found == {"loss": pytest.approx((0.01 + 0.04) / 2), "pearson": 100, "spearman": 100}
