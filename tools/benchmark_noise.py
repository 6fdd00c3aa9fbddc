"""Noise and preprocessing, beside fairseq's: what one core does.

    python tools/benchmark_noise.py noise  [--text PATH ...] [--rounds 5]
    python tools/benchmark_noise.py fairseq STORE      (run by .venv-oracle's python: the peer)
    python tools/benchmark_noise.py encode [--text PATH ...]

`noise` makes a store of the texts (the repository's own README files and sources, many times over,
where none are named), cuts it into blocks of 512 tokens and noises them as BART's authors do, in
batches of 16, 64 and 256 rows; where `.venv-oracle` is there, fairseq's `DenoisingDataset` does the
same with the same blocks in turn. Times are medians with the fastest and the slowest; a block is
512 tokens with `<s>` and `</s>`, and reading it from the store is part of both. `encode` says how
many tokens a second `bart-hk-preprocess --workers 1` writes, and how many the tokenizer's library
alone (tokenizers, sentencepiece) gives for the lines of the same texts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# One core is what is measured.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

ROOT = Path(__file__).resolve().parent.parent
ORACLE = ROOT / ".venv-oracle" / "bin" / "python"
BLOCKS = 2048
MASK = 0.3
AUTHORS = {
    "mask": MASK,
    "mask_random": 0.1,
    "insert": 0.0,
    "rotate": 0.0,
    "permute_sentences": 1.0,
    "replace_length": 1,
    "mask_length": "span-poisson",
    "poisson_lambda": 3.5,
}


def measured(times: Sequence[float]) -> str:
    """Microseconds."""
    median, low, high = (1e6 * f(times) for f in (statistics.median, min, max))
    return f"{median:7.1f} us ({low:.1f} to {high:.1f})"


def repeated(job: Callable[[], Any], rounds: int) -> list[float]:
    """Seconds of each round, after one that is not counted."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        job()
        times.append(time.perf_counter() - began)
    return times[1:]


def make_store(texts: Sequence[str], folder: Path) -> None:
    from bart_hk.data.documents import TextFile, find_files
    from bart_hk.data.preprocessing import preprocess
    from bart_hk.text import TextEncoder

    files = find_files(texts) if texts else []
    if not files:
        own = "\n".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.md")))
        made = folder / "own.md"
        made.write_text(own * max(1, 6_000_000 // len(own)), encoding="utf-8")
        files = [TextFile(made, made.stat().st_size)]
    preprocess(files, folder / "store", TextEncoder.gpt2, workers=1)


def noise(texts: Sequence[str], rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_store(texts, folder)
        store = folder / "store"
        blocks, jobs = _ours(store)
        peer = None
        if ORACLE.exists():
            command = [str(ORACLE), __file__, "fairseq", str(store)]
            peer = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
            )
            assert peer.stdin is not None and peer.stdout is not None
            theirs = json.loads(peer.stdout.readline())
            assert theirs["blocks"] == blocks, (theirs, blocks)  # the same work
        found: dict[str, list[float]] = {size: [] for size in jobs}
        fairseq: list[float] = []
        for round_ in range(rounds + 1):  # the first is for warming up
            for size, job in jobs.items():
                began = time.perf_counter()
                job(round_)
                found[size].append((time.perf_counter() - began) / BLOCKS)
            if peer is not None and peer.stdin is not None and peer.stdout is not None:
                peer.stdin.write("go\n")
                peer.stdin.flush()
                fairseq.append(float(peer.stdout.readline()))
        if peer is not None:
            peer.communicate("")
        if fairseq:
            print(f"fairseq              {measured(fairseq[1:])} a block of 512 tokens")
        for size, times in found.items():
            line = f"bart_hk, {size:4} a time {measured(times[1:])} a block"
            if fairseq:
                ratio = statistics.median(fairseq[1:]) / statistics.median(times[1:])
                line += f": {ratio:.1f} times as fast"
            print(line)


def _ours(folder: Path) -> tuple[list[int], dict[str, Callable[[int], None]]]:
    import numpy as np

    from bart_hk.data.blocks import TokenBlocks
    from bart_hk.data.draws import KeyedDraws
    from bart_hk.data.noising import PRESETS, Noiser, word_starts
    from bart_hk.data.store import TokenStore
    from bart_hk.text import TextEncoder

    encoder = TextEncoder.load(folder)
    words = encoder.dictionary
    blocks = TokenBlocks(TokenStore(folder / "train"), 510, "none", strip=words.eos_index)
    noiser = Noiser(
        PRESETS["bart"],
        vocab_size=len(words),
        mask_id=encoder.mask_id,
        full_stops=[words.index("13")],
        word_starts=word_starts(encoder.bpe, words),
    )
    rows = np.arange(BLOCKS) % (len(blocks) - 1)

    def job(size: int) -> Callable[[int], None]:
        def run(epoch: int) -> None:
            for at in range(0, BLOCKS, size):
                chosen = rows[at : at + size]
                tokens, lengths = blocks.take(chosen, words.bos_index, words.eos_index)
                noiser.flat(tokens, lengths, KeyedDraws(1, epoch, chosen))

        return run

    tokens, lengths = blocks.take(rows[:8], words.bos_index, words.eos_index)
    return [int(tokens.sum()), int(lengths.sum())], {str(n): job(n) for n in (16, 64, 256)}


def fairseq_peer(folder: Path) -> None:
    """A round for every line on standard input; prints seconds a block."""
    import numpy as np
    import torch
    from fairseq.data import (
        AppendTokenDataset,
        Dictionary,
        PrependTokenDataset,
        StripTokenDataset,
        TokenBlockDataset,
    )
    from fairseq.data.denoising_dataset import DenoisingDataset
    from fairseq.data.encoders import utils
    from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig
    from fairseq.data.indexed_dataset import MMapIndexedDataset

    torch.set_num_threads(1)
    vocabulary = Dictionary.load(str(folder / "dict.txt"))
    bpe = GPT2BPE(
        GPT2BPEConfig(
            gpt2_encoder_json=str(folder / "encoder.json"),
            gpt2_vocab_bpe=str(folder / "merges.txt"),
        )
    )
    utils.encoders.build_bpe = lambda _: bpe  # it would look for it on the network
    lines = StripTokenDataset(MMapIndexedDataset(str(folder / "train")), vocabulary.eos())
    sizes = np.array([len(lines[index]) for index in range(len(lines))])
    some = [index for index in range(len(lines)) if sizes[index]]  # it fails on empty ones
    whole = [lines[index] for index in some]
    blocks = TokenBlockDataset(
        whole, sizes[some], 510, pad=1, eos=2, break_mode="none", document_sep_len=0
    )
    rows = AppendTokenDataset(PrependTokenDataset(blocks, vocabulary.bos()), vocabulary.eos())
    made = DenoisingDataset(
        rows,
        rows.sizes,
        vocabulary,
        vocabulary.index("<mask>"),
        utils.get_whole_word_mask(None, vocabulary),
        shuffle=False,
        seed=1,
        bpe="gpt2",
        **AUTHORS,
    )
    order = [index % (len(rows) - 1) for index in range(BLOCKS)]
    first = [rows[index] for index in order[:8]]
    print(json.dumps({"blocks": [int(sum(map(sum, first))), sum(map(len, first))]}), flush=True)
    some_rows = order[:256]  # enough of what takes a millisecond each
    for _ in sys.stdin:
        began = time.perf_counter()
        for index in some_rows:
            made[index]
        print((time.perf_counter() - began) / len(some_rows), flush=True)


def encode(texts: Sequence[str], rounds: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    from bart_hk.data.documents import TextFile, find_files
    from bart_hk.data.preprocessing import Reader, Split, preprocess
    from bart_hk.text import TextEncoder, train_sentencepiece
    from bart_hk.text.gpt2_bpe import gpt2_merges, gpt2_symbols

    # Loading the tokenizer, a second or less, is part of `preprocess`: take enough text.
    files: list[TextFile] = find_files(texts)
    chunks = [lines for _, lines in Reader(files, (), Split()).chunks()]
    lines = [line for chunk in chunks for line in chunk if line]
    gpt2, pieces = TextEncoder.gpt2(), train_sentencepiece(lines[:20_000], 8192)
    vocabulary = {token: index for index, token in enumerate(gpt2_symbols())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(gpt2_merges())))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def of_gpt2(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]

    for name, encoder, library in (
        ("GPT-2", gpt2, of_gpt2),
        ("SentencePiece 8192", pieces, pieces.bpe.indices),
    ):
        tokens = 0

        def alone(library: Callable[[list[str]], Any] = library) -> None:
            for at in range(0, len(lines), 1000):
                library(lines[at : at + 1000])

        def whole(encoder: TextEncoder = encoder) -> None:
            with tempfile.TemporaryDirectory() as folder:
                counts = preprocess(files, folder, lambda: encoder, workers=1)
                nonlocal tokens
                tokens = counts["train"].tokens

        times = {"preprocess": repeated(whole, rounds), "the library": repeated(alone, rounds)}
        for what, found in times.items():
            rates = sorted(tokens / seconds / 1e6 for seconds in found)
            median = statistics.median(rates)
            print(
                f"{name}: {what} {median:.2f} million tokens/s ({rates[0]:.2f} to {rates[-1]:.2f}),"
                f" {tokens:,} tokens"
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=("noise", "fairseq", "encode"))
    parser.add_argument("store", nargs="?", help="of the job fairseq")
    parser.add_argument("--text", nargs="+", default=[], help="files and folders")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    if arguments.job == "fairseq":
        fairseq_peer(Path(arguments.store))
    elif arguments.job == "noise":
        noise(arguments.text, arguments.rounds)
    else:
        encode(arguments.text or [str(ROOT / "README.md")], arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
