"""Run by the oracle's interpreter: models as the real fairseq and transformers publish them.

The folder holds GPT-2's tokenizer files in `text/` and what to ask in `questions.json`. Written are
`fairseq/` with archives, `hub/` with repositories, the `answers.json` of the models in them, and
their features and logits in `NAME.safetensors`.
"""

import json
import shutil
import sys
import tarfile
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from _oracles import randomise
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.models.bart import BARTModel
from fairseq.models.bart.model import bart_large_architecture
from fairseq.sequence_generator import EnsembleModel
from safetensors.torch import save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    BartTokenizer,
)

FIELDS: dict[str, Any] = {
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_embed_dim": 16,
    "decoder_ffn_embed_dim": 20,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "max_source_positions": 32,
    "max_target_positions": 32,
}


def publish_fairseq(folder: Path, name: str, heads: dict[str, int]) -> Path:
    """A folder with the checkpoint of a BART, as fairseq's archives of 2019 have it."""
    args = Namespace(**FIELDS, task="denoising", arch="bart_large", data="data", seed=1)
    bart_large_architecture(args)
    dictionary = Dictionary.load(str(folder / "text" / "dict.txt"))
    dictionary.add_symbol("<mask>")
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    model = BARTModel.build_model(args, task)
    for head, classes in heads.items():
        model.register_classification_head(head, num_classes=classes)
    model.eval()
    randomise(model, seed=len(name))
    place = folder / "fairseq" / name
    place.mkdir(parents=True)
    history = {"criterion_name": "CrossEntropy", "optimizer_name": "FairseqAdam"}
    content = {
        "args": args,
        "model": model.state_dict(),
        "optimizer_history": [{**history, "lr_scheduler_state": {}, "num_updates": 1}],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }
    checkpoint_utils.torch_persistent_save(content, str(place / "model.pt"))
    shutil.copy(folder / "text" / "dict.txt", place)
    (place / "NOTE").write_text("a small model\n")
    return place


def pack(place: Path) -> None:
    """All three kinds of archive, with the folder at their top."""
    for mode in ("gz", "bz2"):
        with tarfile.open(f"{place}.tar.{mode}", f"w:{mode}") as archive:
            archive.add(place, place.name)
    with zipfile.ZipFile(f"{place}.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(place.iterdir()):
            packed.write(path, f"{place.name}/{path.name}")


def answer_fairseq(folder: Path, place: Path, questions: dict[str, Any]) -> dict[str, Any]:
    bart = BARTModel.from_pretrained(
        str(place),
        gpt2_encoder_json=str(folder / "text" / "encoder.json"),
        gpt2_vocab_bpe=str(folder / "text" / "merges.txt"),
    ).eval()
    rows = [bart.encode(text) for text in questions["texts"]]
    arrays = {f"features/{i}": bart.extract_features(row)[0] for i, row in enumerate(rows)}
    for head in bart.model.classification_heads:
        for i, row in enumerate(rows):
            arrays[f"heads/{head}/{i}"] = bart.predict(head, row, return_logits=True)[0]
    save_file({k: v.contiguous() for k, v in arrays.items()}, folder / f"{place.name}.safetensors")
    hypotheses = [bart.generate([row], **questions["search"])[0] for row in rows]
    return {
        "ids": [row.tolist() for row in rows],
        "generated": [
            [(h["tokens"].tolist(), h["score"].item()) for h in found] for found in hypotheses
        ],
    }


def publish_transformers(folder: Path, name: str, **options: Any) -> Any:
    """A repository's folder, as `save_pretrained` leaves it."""
    classes = {0: "contradiction", 1: "neutral", 2: "entailment"}
    config = BartConfig(
        vocab_size=50265,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=20,
        decoder_ffn_dim=24,
        max_position_embeddings=32,
        id2label=classes,
        label2id={label: index for index, label in classes.items()},
    )
    kind = BartForSequenceClassification if name == "classes" else BartForConditionalGeneration
    model = kind(config).eval()
    randomise(model, seed=len(name))
    if kind is BartForConditionalGeneration:
        model.tie_weights()
    place = folder / "hub" / name
    model.save_pretrained(place, **options)
    files = (str(folder / "text" / file) for file in ("vocab.json", "merges.txt"))
    BartTokenizer(*files).save_pretrained(place)
    return model


def answer_transformers(folder: Path, name: str, model: Any, questions: dict[str, Any]) -> Any:
    tokenizer = BartTokenizer.from_pretrained(folder / "hub" / name)
    rows = [tokenizer(text, return_tensors="pt")["input_ids"] for text in questions["texts"]]
    arrays = {}
    for i, row in enumerate(rows):
        arrays[f"features/{i}"] = model.model(input_ids=row)[0][0]
        if hasattr(model, "classification_head"):
            arrays[f"heads/classification_head/{i}"] = model(input_ids=row).logits[0]
    save_file({k: v.contiguous() for k, v in arrays.items()}, folder / f"{name}.safetensors")
    return {"ids": [row[0].tolist() for row in rows]}


def main(folder: Path) -> None:
    questions = json.loads((folder / "questions.json").read_text())
    answers = {}
    for name, heads in (("bart.tiny", {}), ("bart.tiny.mnli", {"mnli": 3})):
        place = publish_fairseq(folder, name, heads)
        pack(place)
        answers[name] = answer_fairseq(folder, place, questions)
    for name, options in (
        ("safe", {}),
        ("sharded", {"max_shard_size": "1MB"}),
        ("torch", {"safe_serialization": False}),
        ("classes", {"safe_serialization": False}),
    ):
        model = publish_transformers(folder, name, **options)
        answers[name] = answer_transformers(folder, name, model, questions)
    (folder / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    loads = torch.load
    # The default of the torch that this fairseq was written for.
    torch.load = lambda *args, **kwargs: loads(*args, **{"weights_only": False, **kwargs})
    # Or the beam size of one search stays behind in the attention of everything after it.
    EnsembleModel.set_decoder_beam_size = lambda self, beam_size: None
    with torch.no_grad():
        main(Path(sys.argv[1]))
