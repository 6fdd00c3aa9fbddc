"""fairseq's token stores, byte for byte, and its blocks: `stores.json`.

Run by `make_goldens.py`. Stores of both formats and all types of tokens, with empty items; blocks
of random sizes; and the blocks of the denoising task over a store with `</s>` after every sentence,
where fairseq counts what it has removed (defect B5 shows here, unpatched).
"""

import random
import sys
import tempfile
from pathlib import Path

from _recording import input_hash, write_json
from _store_oracle import EOS, block_cases, denoising_blocks, random_sizes, read, write


def main(out: Path) -> None:
    rng = random.Random(1)
    stores = []
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder, "store")
        for impl, vocab_size in (
            ("mmap", 1000),
            ("mmap", 65499),
            ("mmap", 65500),
            ("mmap", 5_000_000_000),
            ("cached", 1000),
        ):
            items = [
                [rng.randrange(min(vocab_size, 2**31)) for _ in range(size)]
                for size in random_sizes(rng, 8)
            ]
            write(prefix, items, impl, vocab_size)
            assert read(prefix, impl) == items
            files = {end: Path(f"{prefix}.{end}").read_bytes().hex() for end in ("bin", "idx")}
            stores.append({"impl": impl, "vocab_size": vocab_size, "items": items, **files})
        lines = [[5, 6, 7], [8, 9], [], [10, 11, 12, 13], [14], [], [15], [], [16, 17]]
        write(prefix, [[*line, EOS] for line in lines], "mmap", 1000)
        defect = {
            mode: denoising_blocks(prefix, 4, mode) for mode in ("none", "complete", "complete_doc")
        }
        # What it does where sentences do not end with </s>; with empty ones among them, its blocks
        # of the mode "none" lose tokens as well.
        write(prefix, lines, "mmap", 1000)
        meant = {
            mode: denoising_blocks(prefix, 4, mode) for mode in ("none", "complete", "complete_doc")
        }
        write(prefix, [line for line in lines if line], "mmap", 1000)
        plain = {mode: denoising_blocks(prefix, 4, mode) for mode in ("none", "complete", "eos")}
    content = {
        "stores": stores,
        "blocks": block_cases(seed=1, count=60),
        "lines": lines,
        "denoising": defect,
        "denoising without eos": meant,
        "denoising without eos and empty lines": plain,
    }
    write_json(out / "stores.json", content, input_hash(lines, [s["items"] for s in stores]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
