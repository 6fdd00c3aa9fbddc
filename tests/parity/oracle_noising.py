"""Run by the oracle's interpreter: fairseq's noise on the rows of `cases.json`, with its draws.

`answers.json` gets, for each case, what `_noise_oracle.noised` gives; `sources.json` what the
dataset makes of the rows of `many.json` with draws of its own; `tables.json` fairseq's word starts
with the tokenizers in the folder; `defects.json` what goes wrong without being patched.
"""

import json
import sys
from pathlib import Path

import torch
from _noise_oracle import dataset, dictionary, noised
from fairseq.data import Dictionary, encoders
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE, SentencepieceConfig
from fairseq.data.encoders.utils import get_whole_word_mask


def main(folder: Path) -> None:
    torch.manual_seed(5)
    answers = []
    for case in json.loads((folder / "cases.json").read_text()):
        vocabulary = dictionary(case["vocab_size"])
        answers.append(noised(case["rows"], case["options"], vocabulary, case["word_starts"]))
    (folder / "answers.json").write_text(json.dumps(answers))
    sources = []
    for many in json.loads((folder / "many.json").read_text()):
        vocabulary = dictionary(many["vocab_size"])
        made = dataset(many["rows"], many["options"], vocabulary, many["word_starts"])
        # It changes the rows that it is given: each read needs its own.
        made.dataset = Fresh(made.dataset)
        sources.append([made[index]["source"].tolist() for index in range(len(many["rows"]))])
    (folder / "sources.json").write_text(json.dumps(sources))
    tokenizers = {
        "gpt2": GPT2BPE(
            GPT2BPEConfig(
                gpt2_encoder_json=str(folder / "gpt2" / "encoder.json"),
                gpt2_vocab_bpe=str(folder / "gpt2" / "merges.txt"),
            )
        ),
        "pieces": SentencepieceBPE(
            SentencepieceConfig(
                sentencepiece_model=str(folder / "pieces" / "sentencepiece.bpe.model")
            )
        ),
    }
    (folder / "defects.json").write_text(json.dumps(defects(made, folder)))
    tables = {}
    for name, bpe in tokenizers.items():
        encoders.build_bpe = lambda _, bpe=bpe: bpe  # it would look for its default files
        dictionary_of = Dictionary.load(str(folder / name / "dict.txt"))
        tables[name] = get_whole_word_mask(None, dictionary_of).tolist()
    (folder / "tables.json").write_text(json.dumps(tables))


def defects(made, folder: Path) -> dict[str, str]:
    """fairseq as it is: an item read twice, and the words of a SentencePiece model."""
    first, again = made[3]["source"].tolist(), made[3]["source"].tolist()
    found = {"read again": "the same noise" if first == again else "another noise"}
    try:
        vocabulary = Dictionary.load(str(folder / "pieces" / "dict.txt"))
        get_whole_word_mask("sentencepiece", vocabulary)
        found["sentencepiece words"] = "found"
    except OSError as error:
        found["sentencepiece words"] = str(error)
    return found


class Fresh(list):
    def __getitem__(self, index):
        return super().__getitem__(index).clone()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
