"""What `TextEncoder.save` writes, opened by transformers and by the real fairseq."""

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

import bart_hk
from bart_hk.data.readers import read_examples
from bart_hk.text import Dictionary, SentencePieceBPE, TextEncoder, train_bpe

REVIEWS = Path(bart_hk.__file__).parent / "data" / "sentence_polarity" / "train.tsv.gz"
SENTENCES = Path(__file__).parent.parent / "goldens" / "inputs" / "sentences.txt"


def hard_texts(count: int) -> list[str]:
    """Characters of every kind, in another mix than the recorded ones."""
    rng = random.Random(7)
    ranges = [(0, 0x80), (0x80, 0x600), (0x900, 0x1000), (0x2000, 0x2200), (0x1F300, 0x1F700)]
    texts = []
    for _ in range(count):
        characters = (rng.randrange(*rng.choice(ranges)) for _ in range(rng.randint(0, 20)))
        texts.append("".join(map(chr, characters)))
    return texts


def piece_model(sentences: list[str], **options: Any) -> SentencePieceBPE:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=200,
        minloglevel=2,
        **options,
    )
    return SentencePieceBPE(model.getvalue())


def encoders(sentences: list[str]) -> dict[str, TextEncoder]:
    learnt = train_bpe(sentences, 400)
    symbols = ["<pad>", "<s>", "</s>", "<mask>", "<unk>", *learnt.dictionary.symbols[4:-1]]
    pieces = piece_model(sentences)
    barthez = piece_model(
        sentences, bos_id=0, pad_id=1, eos_id=2, unk_id=3, user_defined_symbols=["<mask>"]
    )
    pad_0 = piece_model(sentences, pad_id=0, bos_id=1, eos_id=2, unk_id=3)
    chosen = Dictionary()
    for piece in [*pieces.symbols[160:2:-1], "<mask>"]:
        chosen.add_symbol(piece)
    few = Dictionary()  # lacks most of GPT-2's tokens
    for number in (*range(256), 262, 290, 995, 15496):
        few.add_symbol(str(number))
    few.add_symbol("<mask>")
    shifted = ("MBartTokenizer", "MBart50Tokenizer", "XLMRobertaTokenizer")
    return {
        "large": TextEncoder.gpt2("bart.large"),
        "base": TextEncoder.gpt2("bart.base"),
        "without_mask": TextEncoder.gpt2().fit(50264),
        "few": TextEncoder(TextEncoder.gpt2().bpe, few),
        "learnt": learnt,
        "learnt_pad_0": TextEncoder(learnt.bpe, Dictionary.from_symbols(symbols)),
        "dictionary": TextEncoder(pieces, chosen, tokenizer_class="BartphoTokenizer"),
        "own_ids": TextEncoder(
            barthez, barthez.dictionary("BarthezTokenizer"), tokenizer_class="BarthezTokenizer"
        ),
        "own_pad_0": TextEncoder(
            pad_0, pad_0.dictionary("BarthezTokenizer"), tokenizer_class="BarthezTokenizer"
        ),
        **{
            name: TextEncoder(pieces, pieces.dictionary(name), tokenizer_class=name)
            for name in shifted
        },
    }


@pytest.fixture(scope="module")
def texts() -> list[str]:
    sentences = SENTENCES.read_text(encoding="utf-8").splitlines()
    reviews = [text for (text,) in read_examples(REVIEWS).texts[:3000]]
    return [*sentences, "", "  a  b ", *reviews, *hard_texts(300)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, texts) -> tuple[Path, dict[str, TextEncoder]]:
    folder = tmp_path_factory.mktemp("text")
    made = encoders(texts[:120])
    cases = {}
    for name, encoder in made.items():
        encoder.save(folder / name)
        (folder / name / "config.json").write_text('{"model_type": "bart"}')
        # Merges cannot tell tokens with the id of <unk> apart, so the fast class needs them all;
        # for SentencePiece it normalises some scripts differently from SentencePiece itself.
        byte_level = encoder.tokenizer_class == "BartTokenizer" and name != "few"
        fairseq = (folder / name / "dict.txt").exists()
        cases[name] = {"fast": byte_level, "fairseq": fairseq}
    (folder / "cases.json").write_text(json.dumps(cases))
    (folder / "texts.json").write_text(json.dumps(texts))
    return folder, made


@pytest.fixture(scope="module")
def answers(oracle, saved) -> dict[str, Any]:
    folder, _ = saved
    oracle("oracle_text.py", folder)
    return json.loads((folder / "answers.json").read_text())


def test_transformers_gives_the_same_ids(answers, saved, texts):
    for name, encoder in saved[1].items():
        d = encoder.dictionary
        special = [d.bos(), d.pad(), d.eos(), d.unk(), encoder.mask_id]
        ids = encoder.encode_batch(texts)
        for kind in {"slow", "fast"} & answers[name].keys():
            answer = answers[name][kind]
            assert answer["class"] == encoder.tokenizer_class + ("Fast" if kind == "fast" else "")
            assert answer["special"] == special, (name, kind)
            assert answer["ids"] == ids, (name, kind)
            if name != "few":  # the tokens it lacks are in transformers' vocabulary too
                assert answer["size"] == len(d), (name, kind)


def test_transformers_decodes_the_same_text(answers, saved, texts):
    for name in ("large", "base", "without_mask", "few", "learnt", "learnt_pad_0", "dictionary"):
        encoder = saved[1][name]
        for kind in {"slow", "fast"} & answers[name].keys():
            answer = answers[name][kind]
            assert answer["text"] == [encoder.decode(row) for row in answer["ids"]], (name, kind)


def test_fairseq_gives_the_same_ids_and_text(answers, saved, texts):
    compared = [name for name in answers if "fairseq" in answers[name]]
    assert compared == ["large", "base", "without_mask", "few", "dictionary"]
    for name in compared:
        encoder, answer = saved[1][name], answers[name]["fairseq"]
        assert answer["ids"] == encoder.encode_batch(texts), name
        assert answer["text"] == [encoder.decode(row) for row in answer["ids"]], name
        assert answer["size"] == len(encoder.dictionary), name


def test_we_open_them_again(saved, texts):
    folder, made = saved
    for name, encoder in made.items():
        again = TextEncoder.load(folder / name)
        assert again.dictionary == encoder.dictionary, name
        assert again.encode_batch(texts) == encoder.encode_batch(texts), name
