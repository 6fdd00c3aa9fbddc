"""Every experiment takes the data that its header asks for, before a model is there."""

import json
from pathlib import Path

import numpy as np
import pytest

from bart_hk.data.store import StoreWriter
from bart_hk.tasks.glue import GLUE
from bart_hk.training.start import make_task
from tests.test_recipes import NAMES, composed


def glue(folder: Path, name: str) -> None:
    task = GLUE[name]
    header = task.header or (*task.text_columns, task.label_column)
    lines = ["\t".join(header)] if task.header is None else []
    for label in task.labels or ("0.5", "5.0"):
        fields = dict.fromkeys(header, "a text") | {task.label_column: label}
        lines.append("\t".join(fields[column] for column in header))
    for split in ("train", task.valid):
        path = folder / task.folder / f"{split}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def table(folder: Path, *columns: str) -> None:
    rows = ["\t".join(f"{column} {i}" for column in columns) for i in range(2)]
    for split in ("train", "valid", "test"):
        (folder / f"{split}.tsv").write_text("\n".join(["\t".join(columns), *rows, ""]))


def lines(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("a text\nanother\n")


def objects(folder: Path, record: dict) -> None:
    for split in ("train", "dev"):
        (folder / f"{split}.jsonl").write_text(json.dumps(record) + "\n")


def squad(folder: Path) -> None:
    asked = {"id": "1", "question": "Who?", "answers": [{"text": "I", "answer_start": 0}]}
    content = {"data": [{"paragraphs": [{"context": "I am", "qas": [asked]}]}]}
    for split in ("train-v1.1", "dev-v1.1"):
        (folder / f"{split}.json").write_text(json.dumps(content))


def stores(folder: Path, *names: str, rows=((5, 6, 2), (7, 2))) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        writer = StoreWriter(folder / name, 300)
        for row in rows:
            writer.add(np.array(row, np.int32), np.array([len(row)]))
        writer.finish()


BOTH = ("train", "valid")
TEXTS = ("train.source", "train.target", "val.source", "val.target")
LANGUAGES = [f"{split}.{language}" for split in BOTH for language in ("ro", "en")]
LAYOUTS = {
    "cnn_dm": lambda folder: lines(folder, *TEXTS),
    "xsum": lambda folder: lines(folder, *TEXTS),
    "source_encoder/first": lambda folder: lines(folder, *LANGUAGES),
    "source_encoder/second": lambda folder: lines(folder, *LANGUAGES),
    "mbart_enro": lambda folder: stores(
        folder, *(f"{s}.en_XX-ro_RO.{end}" for s in BOTH for end in ("en_XX", "ro_RO"))
    ),
    "squad": squad,
    "mnli": lambda folder: glue(folder, "mnli"),
    "multilingual": lambda folder: stores(
        folder, *(f"{language}/{split}" for split in BOTH for language in ("en_XX", "ro_RO"))
    ),
    **{
        f"pretrain_{name}": lambda folder: stores(folder, *BOTH)
        for name in ("bart_base", "bart_large")
    },
    "pretrain_mini": lambda folder: stores(
        folder,
        *(f"{c}/{s}" for c in ("books", "reviews", "sentences", "abstracts") for s in BOTH),
    ),
    "latent_tatoeba": lambda folder: table(folder, "en", "de"),
    "mini/tatoeba_en_de": lambda folder: table(folder, "en", "de"),
    "mini/subjectivity": lambda folder: table(folder, "text", "label"),
    "mini/trec": lambda folder: table(folder, "text", "label"),
    "mini/scitldr": lambda folder: objects(folder, {"source": ["A.", "B."], "target": ["C."]}),
    "mini/aeslc": lambda folder: objects(folder, {"body": "A.", "subject": "B", "more": ["C"]}),
}
OWN = ("rot13", "char_lm", "mini/polarity")  # what they learn from travels in the package


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_takes_its_data(name, tmp_path):
    config = composed(name)
    family, _, task_name = name.partition("/")
    if name not in OWN:
        if family == "glue" or (family == "mini" and task_name in GLUE):
            glue(tmp_path, task_name)
        else:
            LAYOUTS[name](tmp_path)
        assert config.task.data is None
        config.task.data = str(tmp_path)
    if family == "source_encoder":
        config.task.source_lang, config.task.target_lang = "ro", "en"
    task = make_task(config)
    assert task.validates
    assert config.checkpoint.best_checkpoint_metric in ("loss", *task.metric_names)
    if config.common.evaluate:  # what bart-hk-evaluate is to read is there
        assert all(path.is_file() for files in task.labelled_files() for path in files)
        assert task.labelled_files()


@pytest.mark.parametrize("name", ["mnli", "rte", "stsb"])
def test_glue_takes_what_fairseqs_script_makes(name, tmp_path):
    """RTE-bin: input0, input1 and label; STS-B's scores are divided already."""
    official = GLUE[name]
    stores(tmp_path, *(f"{side}/{split}" for side in ("input0", "input1") for split in BOTH))
    (tmp_path / "label").mkdir()
    if official.labels:  # ids in another order than the official one
        names = "".join(f"{label} 1\n" for label in official.labels[::-1])
        (tmp_path / "label" / "dict.txt").write_text(names)
        stores(tmp_path, *(f"label/{split}" for split in BOTH), rows=((4, 2), (5, 2)))
    for split in BOTH:
        (tmp_path / "label" / f"{split}.label").write_text("0.75\n0.5\n")
    config = composed(f"glue/{name}")
    config.task.data = str(tmp_path)
    task = make_task(config)
    assert task.validates and task.labels == list(official.labels)
    last = len(official.labels) - 1
    expected = [last, last - 1] if official.labels else [0.75, 0.5]
    assert task._targets[task._train.path].tolist() == expected
    assert config.checkpoint.best_checkpoint_metric in ("loss", *task.metric_names)
    assert ("pearson" in task.metric_names) is (name == "stsb")
