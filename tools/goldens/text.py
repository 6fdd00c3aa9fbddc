"""What fairseq's GPT-2 BPE and dictionary make of text, easy and hard: `text.json`.

Run by `make_goldens.py`. The dictionary and the merges are those shipped in `bart_hk/text/gpt2`;
that they are the published ones is what the first hash in the golden says.
"""

import gzip
import hashlib
import json
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
from _recording import input_hash, write_json
from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode

ROOT = Path(__file__).resolve().parent.parent.parent
GPT2 = ROOT / "bart_hk" / "text" / "gpt2"
SENTENCES = ROOT / "tests" / "goldens" / "inputs" / "sentences.txt"

WRITTEN = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n \t\r\n",
    "Hello world",
    " world",
    "world",
    "Hello world!",
    "  two  spaces   three ",
    "tab\tand\nnewline\r\nand\x0bvertical\x0cfeed",
    "no\u00a0break\u2003em\u3000ideographic\u200bzero\ufeffwidth\u2028line\u2029paragraph\x85next",
    "\x1c\x1d\x1e\x1f a\x1cb  \x1f",
    "\x00\x01\x02\x7f\x80\x9f",
    "<s> <pad> </s> <unk> <mask> madeupword0000 <|endoftext|>",
    "<mask>",
    " <mask>.",
    "50256 0",
    "I'll you've she'd we're it's I'm don't 'S 'LL 'tis rock'n'roll ''s ' s",
    "can\u2019t won\u2019t \u2018quoted\u2019 \u201cdouble\u201d \u2014 dash \u2026",
    "1234567890 3.14159 1,000,000 2\u00b2 \u00bd \u2167 \u0663\u0664\u0665 1st",
    "naïve café Ünïcödé ß ẞ ﬁ Å A\u030a e\u0301\u0301",
    "Größenwahn, Straße, Übermut",
    "Съешь ещё этих мягких французских булок",
    "Το γρήγορο καφέ αλεπού",
    "שלום עולם",
    "مرحبا بالعالم \u0640\u064b",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "你好，世界。這是測試",
    "こんにちは世界、カタカナ ﾊﾝｶｸ",
    "안녕하세요 세계",
    "👍🏽 👩‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️ ☺ 😀😀😀",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 🂡 \U0010ffff",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!!????....,,,,;;;;::::----____====++++****////\\\\\\\\||||~~~~",
    "https://example.org/a?b=c&d=%20#e user@example.org",
    "def f(x):\n    return {\"a\": [1, 2], 'b': x[-1]}  # comment\n",
    "SolidGoldMagikarp  externalToEVA rawdownloadcloneembedreportprint",
]

POOLS = [
    range(0x20, 0x7F),
    [*range(0x21), 0x85, 0xA0, 0x1680, 0x180E, *range(0x2000, 0x2010), 0x2028, 0x2029, 0x3000],
    range(0xA0, 0x250),
    range(0x300, 0x370),
    range(0x370, 0x700),
    range(0x900, 0xE00),
    [*range(0x2150, 0x2190), *range(0x660, 0x66A), 0xB2, 0xBD],
    range(0x4E00, 0x4F00),
    [*range(0x1F300, 0x1F700), 0x200D, 0xFE0F],
    [ord(c) for c in "'smtdrevl "],
]


def random_texts(count: int) -> list[str]:
    """Texts that mix the characters of up to three pools."""
    rng = random.Random(0)
    texts = []
    for _ in range(count):
        pools = rng.sample(POOLS, rng.randint(1, 3))
        size = rng.randint(1, 24)
        texts.append("".join(chr(rng.choice(rng.choice(pools))) for _ in range(size)))
    return texts


def code_points() -> list[str]:
    """Every character of the first plane and every 64th of the others, each in a context."""
    points = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 64)]
    return [f"{chr(point)} {chr(point)}1" for point in points]


def main(out: Path) -> None:
    merges = gzip.decompress((GPT2 / "vocab.bpe.gz").read_bytes())
    symbols = gzip.decompress((GPT2 / "dict.txt.gz").read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, name) for name in ("encoder.json", "vocab.bpe", "dict.txt")}
        pairs = merges.decode("utf-8").split("\n")[1:-1]
        tokens = [*bytes_to_unicode().values(), *(pair.replace(" ", "") for pair in pairs)]
        encoder = {token: index for index, token in enumerate([*tokens, "<|endoftext|>"])}
        files["encoder.json"].write_text(json.dumps(encoder))
        files["vocab.bpe"].write_bytes(merges)
        files["dict.txt"].write_bytes(symbols)
        paths = {name: str(file) for name, file in files.items()}
        bpe = GPT2BPE(
            GPT2BPEConfig(
                gpt2_encoder_json=paths["encoder.json"], gpt2_vocab_bpe=paths["vocab.bpe"]
            )
        )
        dictionary = Dictionary.load(paths["dict.txt"])
    dictionary.add_symbol("<mask>")

    def ids(text: str) -> list[int]:
        line = bpe.encode(text)
        return dictionary.encode_line(line, append_eos=False, add_if_not_exist=False).tolist()

    texts = [*WRITTEN, *SENTENCES.read_text(encoding="utf-8").splitlines(), *random_texts(200)]
    encoded = []
    for text in texts:
        row = ids(text)
        decoded = bpe.decode(dictionary.string(row))
        encoded.append([text, row] if decoded == text else [text, row, decoded])
    every = np.array([i for text in code_points() for i in ids(text)], "<i4")
    # Rows of ids that no text gives: specials among them, characters cut in the middle.
    rng = random.Random(1)
    rows = [[rng.randrange(4, 50260) for _ in range(rng.randint(1, 12))] for _ in range(60)]
    rows += [[rng.choice([0, 2, 3, 50264, *row]) for _ in range(9)] for row in rows[:40]]
    fillers = {i for i in range(len(dictionary)) if dictionary[i].startswith("madeup")}
    rows = [[i for i in row if i not in fillers] for row in rows]
    content = {
        "encoded": encoded,  # [text, ids], and what fairseq decodes from them where it differs
        "code_points": {"count": len(every), "sha256": hashlib.sha256(every.tobytes()).hexdigest()},
        "decoded": [[row, bpe.decode(dictionary.string(row))] for row in rows],
    }
    write_json(out / "text.json", content, input_hash(merges, symbols, texts, rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
