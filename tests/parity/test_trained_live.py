"""What `bart-hk-train` leaves behind, exported, in the hands of transformers and of fairseq."""

import json

import pytest

import bart_hk
from bart_hk.cli.convert import main as convert
from bart_hk.training.loop import train

WIDTHS = ("encoder_embed_dim", "encoder_ffn_embed_dim", "decoder_ffn_embed_dim")
MODEL = {
    **dict.fromkeys(WIDTHS, 16),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("max_source_positions", "max_target_positions"), 24),
}
TEXTS = {"a fine film": "glad", "a dull film": "sad", "a film": "neither", "so fine": "glad"}
PAIRS = {"one two three": "eins zwei drei", "two one": "zwei eins", "three two": "drei zwei"}
HEAD = "sentence_classification_head"


def trained(folder, name, task, rows, **more):
    header = ("text", "label") if task == "sentence_prediction" else ("source", "target")
    lines = ["\t".join(row) + "\n" for row in (header, *rows.items())]
    (folder / f"{name}.tsv").write_text("".join(lines))
    path = str(folder / f"{name}.tsv")
    config = {
        "task": {"_name": task, "train": path, "valid": path, "vocab_size": 270, **more},
        "model": MODEL,
        "criterion": "label_smoothed_cross_entropy" if task == "translation" else task,
        "dataset": {"batch_size": 4, "validate_interval": 100},
        "optimization": {"max_epoch": 400, "lr": 5e-3},
        "checkpoint": {"save_dir": str(folder / name), "save_interval": 400},
    }
    train(config)
    return bart_hk.load(folder / name)


@pytest.mark.timeout(600)
def test_trained_models_are_exported_to_both(oracle, tmp_path):
    classifier = trained(tmp_path, "classifier", "sentence_prediction", TEXTS)
    writer = trained(tmp_path, "writer", "translation", PAIRS)
    for name, head in (("classifier", ["--head", HEAD]), ("writer", [])):
        places = [str(tmp_path / name), str(tmp_path / f"{name}-hf")]
        assert convert([*places, "--to", "hf", *head]) == 0
        places[1] = str(tmp_path / f"{name}-fairseq")
        assert convert([*places, "--to", "fairseq"]) == 0
    asked = {"classifier": [*TEXTS, "dull one"], "writer": list(PAIRS)}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    oracle("oracle_trained.py", tmp_path)
    answered = json.loads((tmp_path / "answered.json").read_text())

    labels = classifier.heads[HEAD].labels
    log_probabilities = classifier.predict(HEAD, classifier.encode(asked["classifier"]))
    for i, row in enumerate(log_probabilities.tolist()):
        for key in ("classes", "fairseq classes"):
            theirs = answered[key][i]
            assert set(theirs) == set(labels)
            ours = dict(zip(labels, row, strict=True))
            assert {n: pytest.approx(2.718281828459045**v, abs=1e-5) for n, v in ours.items()} == (
                theirs
            )
    assert [label for label, _ in classifier.classify(list(TEXTS))] == list(TEXTS.values())
    written = writer.sample(list(PAIRS), beam=2, max_len_b=14)
    assert written == list(PAIRS.values())
    assert answered["texts"] == answered["fairseq texts"] == written
