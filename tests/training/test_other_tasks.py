"""Tasks with heads of their own through the training loop: they learn, and the hub answers."""

import json
import random

import numpy as np
import pytest

import bart_hk
from bart_hk.training.loop import train
from tests.training.conftest import MODEL

COLOURS, BEASTS = ["red", "blue", "green"], ["dog", "cat", "cow"]


def ranking(folder, draw, count):
    """The option that the context names."""
    lines = ["context\toption1\toption2\tlabel"]
    for _ in range(count):
        pair = draw.sample(COLOURS, 2)
        right = draw.randrange(2)
        lines.append(f"{pair[right]}\t{pair[0]}\t{pair[1]}\t{right}")
    return folder.with_suffix(".tsv"), "\n".join(lines)


def tagging(folder, draw, count):
    sentences = []
    for _ in range(count):
        words = [draw.choice(COLOURS + BEASTS) for _ in range(draw.randint(1, 5))]
        sentences.append("\n".join(f"{w} {'B-C' if w in COLOURS else 'O'}" for w in words))
    return folder.with_suffix(".txt"), "\n\n".join(sentences)


def several(folder, draw, count):
    """The colours of a text, of which there may be none."""
    rows = []
    for _ in range(count):
        words = draw.sample(COLOURS + BEASTS, draw.randint(1, 4))
        rows.append(f"{' '.join(words)}\t{','.join(w for w in words if w in COLOURS)}")
    return folder.with_suffix(".tsv"), "\n".join(["text\tlabel", *rows])


def questions(folder, draw, count):
    """What colour the text names."""
    paragraphs = []
    for number in range(count):
        words = [draw.choice(BEASTS) for _ in range(draw.randint(2, 5))]
        place = draw.randrange(len(words))
        words[place] = draw.choice(COLOURS)
        answer = {"text": words[place], "answer_start": len(" ".join([*words[:place], ""]))}
        entry = {"id": str(number), "question": "colour", "answers": [answer]}
        paragraphs.append({"context": " ".join(words), "qas": [entry]})
    return folder.with_suffix(".json"), json.dumps({"data": [{"paragraphs": paragraphs}]})


CASES = {
    "sentence_ranking": (ranking, "accuracy", 50.0, {}),
    "token_classification": (tagging, "f1", 60.0, {}),
    "question_answering": (questions, "exact_match", 35.0, {}),
    "sentence_prediction": (several, "accuracy", 35.0, {"multi_label": True}),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_it_learns_and_the_hub_answers(name, tmp_path):
    make, metric, chance, options = CASES[name]
    for split, count, seed in (("train", 160, 0), ("valid", 24, 1)):
        path, content = make(tmp_path / split, random.Random(seed), count)
        path.write_text(content + "\n")
    result = train(
        {
            "task": {"_name": name, "data": str(tmp_path), "vocab_size": 300, **options},
            "model": MODEL,
            "dataset": {"batch_size": 16, "length_buckets": [16]},
            "optimization": {"lr": 1e-2, "max_epoch": 12},
            "common": {"no_progress_bar": True},
            "checkpoint": {"save_dir": str(tmp_path / "run"), "best_checkpoint_metric": metric},
        }
    )
    assert result.valid[metric] > chance + 15
    bart = bart_hk.load(tmp_path / "run")
    if name == "sentence_ranking":
        ranked = bart.rank(["red", "blue"], "blue")
        assert sum(p for _, p in ranked) == pytest.approx(1)
    elif name == "token_classification":
        words = ["red", "dog", "blue"]
        assert [word for word, _ in bart.tag(words)] == words
        assert bart.tag(words)[0][1] == "B-C" or result.valid[metric] < 99
    elif name == "sentence_prediction":
        lines = (tmp_path / "valid.tsv").read_text().splitlines()[1:]
        texts, labels = zip(*(line.split("\t") for line in lines), strict=True)
        found = [{label for label, _ in answer} for answer in bart.classify(list(texts))]
        right = [a == set(filter(None, b.split(","))) for a, b in zip(found, labels, strict=True)]
        assert 100 * np.mean(right) == pytest.approx(result.valid["accuracy"])
        assert any(len(answer) > 1 for answer in found)
    else:
        context = "dog red cow"
        answer, score = bart.answer("colour", context)
        assert answer in context and np.isfinite(score)
