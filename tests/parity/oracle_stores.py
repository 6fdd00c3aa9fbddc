"""Run by the oracle's interpreter: fairseq makes stores of `text.txt`, reads ours and cuts blocks.

For each tokenizer in the folder, the text is encoded as `multiprocessing_bpe_encoder.py
--keep-empty` does and binarised by `fairseq-preprocess` into `TOKENIZER/fairseq`. `answers.json`
gets what fairseq reads of our stores, blocks of random sizes, and those of its denoising task.
"""

import json
import sys
from pathlib import Path
from typing import Any

from _store_oracle import block_cases, denoising_blocks, denoising_slices, read, write
from fairseq import options
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE, SentencepieceConfig
from fairseq.tasks.denoising import DenoisingConfig, DenoisingTask
from fairseq_cli import preprocess


def binarise(folder: Path, bpe, workers: int) -> None:
    encoded = folder / "encoded.txt"
    with (
        open(folder.parent / "text.txt", encoding="utf-8") as lines,
        open(encoded, "w", encoding="utf-8") as out,
    ):
        for line in lines:
            stripped = line.strip()
            out.write((bpe.encode(stripped) if stripped else "") + "\n")
    arguments = ["--only-source", "--trainpref", str(encoded), "--destdir", str(folder / "fairseq")]
    arguments += ["--srcdict", str(folder / "dict.txt"), "--workers", str(workers)]
    preprocess.main(options.get_preprocessing_parser().parse_args(arguments))


def opened(folder: Path) -> dict[str, Any]:
    """What fairseq's own task finds in a folder."""
    config = DenoisingConfig(
        data=str(folder),
        dataset_impl="mmap",
        seed=1,
        replace_length=1,
        sample_break_mode="complete",
        rotate=0.0,
        mask=0.3,
    )
    task = DenoisingTask.setup_task(config)
    task.load_dataset("train")
    return {
        "symbols": len(task.dictionary),
        "mask": task.mask_idx,
        "target": task.datasets["train"][0]["target"].tolist(),
    }


def main(folder: Path) -> None:
    gpt2 = folder / "gpt2"
    binarise(
        gpt2,
        GPT2BPE(
            GPT2BPEConfig(
                gpt2_encoder_json=str(gpt2 / "encoder.json"),
                gpt2_vocab_bpe=str(gpt2 / "merges.txt"),
            )
        ),
        workers=1,
    )
    pieces = folder / "pieces"
    model = str(pieces / "sentencepiece.bpe.model")
    binarise(pieces, SentencepieceBPE(SentencepieceConfig(sentencepiece_model=model)), workers=2)
    items = json.loads((folder / "items.json").read_text())
    write(folder / "with_eos", [[*item, 2] for item in items], "mmap", 1000)
    modes = ("complete", "complete_doc")
    answers = {
        "task": {name: opened(folder / name) for name in ("gpt2", "pieces")},
        "read": {name: read(folder / name / "train", "mmap") for name in ("gpt2", "pieces")},
        "blocks": block_cases(seed=2, count=2000),
        "slices": {mode: denoising_slices(folder / "with_eos", 40, mode) for mode in modes},
        "with_eos": {mode: denoising_blocks(folder / "with_eos", 40, mode) for mode in modes},
    }
    (folder / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
