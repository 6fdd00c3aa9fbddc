"""Damage valid files at random and read them: `python tools/fuzz.py [--mutations N] [--kind K]`.

Whatever is done to a file, reading it ends in success or in a CheckpointError of one line: another
exception, a crash, a hang (`SECONDS`) or much memory (`MEMORY`) is a failure, whose file is kept in
`--keep`. A mutation depends on (seed, kind, number) alone: `--first` repeats one that failed.
"""

import argparse
import copy
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.checkpoint.fairseq_file import read_fairseq
from bart_hk.checkpoint.files import CheckpointError, TensorFile
from bart_hk.checkpoint.flax import FLAX_WEIGHTS
from bart_hk.checkpoint.huggingface import read_model, write_model
from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.checkpoint.msgpack_file import ArrayFile
from bart_hk.checkpoint.per_head import PER_HEAD_WEIGHTS
from bart_hk.checkpoint.tree import parameter_shapes
from bart_hk.config import BARTConfig
from bart_hk.torch_format import read_torch
from bart_hk.zoo.archives import is_archive, unpack

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = ROOT / "tests" / "goldens"
SECONDS = 20  # for one file
MEMORY = 1 << 30  # bytes of address space beyond what the process has before it reads
BATCH = 500  # files that one process reads, so that a crash is found and attributed

NUMBERS: tuple[int, ...] = (
    *(0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF),
    *(1 << 32, 1 << 40, (1 << 63) - 1, (1 << 64) - 1),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 64, 2**31, 2**63, 10**30, 0.5, -1.5, float("nan")),
    *("", "x", "relu", "bart", [], [1], {}, {"0": 1}, [[1]]),
)


# --- Mutations ------------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random) -> bytes:
    """`data` with a few bits, numbers or pieces changed, removed, repeated or moved."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not out:
            break
        place = rng.randrange(len(out))
        # Damage at the ends, where containers keep their directories, is more interesting.
        if rng.random() < 0.3:
            place = min(place, rng.randrange(64), len(out) - 1)
        elif rng.random() < 0.3:
            place = max(place, len(out) - 1 - rng.randrange(400))
        length = rng.choice((1, 2, 4, 8, 30, 200))
        match rng.randrange(7):
            case 0:
                out[place] ^= 1 << rng.randrange(8)
            case 1:
                out[place] = rng.randrange(256)
            case 2:
                size = rng.choice((1, 2, 4, 8))
                number = rng.choice(NUMBERS) & ((1 << 8 * size) - 1)
                out[place : place + size] = number.to_bytes(size, rng.choice(("little", "big")))
            case 3:
                del out[place : place + length]
            case 4:
                out[place:place] = out[place : place + length]
            case 5:
                other = rng.randrange(len(out))
                out[place : place + length] = out[other : other + length]
            case 6:
                del out[place + rng.randrange(len(out) - place + 1) :]
    return bytes(out)


def damaged_zip(data: bytes, rng: random.Random) -> bytes:
    """A zip file that is damaged itself, or one whose members are, with right checksums."""
    if rng.random() < 0.4:
        return damaged(data, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        infos = old.infolist()
        pickles = [info.filename for info in infos if info.filename.endswith("data.pkl")]
        victim = rng.choice(pickles * 8 + [info.filename for info in infos])
        for info in infos:
            content = old.read(info)
            if info.filename == victim:
                content = damaged(content, rng)
            new.writestr(info, content)
    return out.getvalue()


def damaged_tar(data: bytes, rng: random.Random) -> bytes:
    """A compressed archive that is damaged before or after its compression, or not compressed."""
    match rng.randrange(4):
        case 0:
            return damaged(data, rng)
        case 1:
            return damaged(gzip.decompress(data), rng)
        case _:
            return gzip.compress(damaged(gzip.decompress(data), rng), 1)


def damaged_json(data: bytes, rng: random.Random) -> bytes:
    """JSON that is damaged as text, or has values in it that nobody expects."""
    if rng.random() < 0.2:
        return damaged(data, rng)
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        holder = content
        while True:
            keys = list(holder if isinstance(holder, dict) else range(len(holder)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(holder[key], dict | list) and rng.random() < 0.7:
                holder = holder[key]
                continue
            if rng.random() < 0.2:
                del holder[key]
            else:
                holder[key] = copy.deepcopy(rng.choice(VALUES))
            break
    return json.dumps(content).encode()


# --- Kinds of files -------------------------------------------------------------------------------


def _read_checkpoint(path: Path) -> None:
    read_torch(path)
    read_fairseq(path)


def _read_tensors(path: Path) -> None:
    file = TensorFile(path)
    for name in file.names():
        assert file.read(name).shape == file.shape(name)


def _read_archive(path: Path) -> None:
    room = path.parent / "room"
    room.mkdir()
    try:
        if is_archive(path):
            unpack(path, room / "model")
    finally:
        links = [p for p in room.rglob("*") if not (p.is_file() or p.is_dir()) or p.is_symlink()]
        shutil.rmtree(room)
        left = sorted(p.name for p in path.parent.iterdir() if p != path)
        assert not (left or links), f"made {left} outside of its folder, {links} inside"


def _read_arrays(path: Path) -> None:
    """By itself, and as the weights of the model beside whose config it is."""
    file = ArrayFile(path)
    for name in file.names():
        assert file.read(name).shape == file.shape(name)
    read_model(path)


def _small_model(folder: Path, **options: Any) -> Path:
    """A model's directory as we write it."""
    config = BARTConfig(
        vocab_size=20,
        encoder_embed_dim=8,
        encoder_ffn_embed_dim=8,
        encoder_layers=1,
        encoder_attention_heads=2,
        decoder_ffn_embed_dim=8,
        decoder_layers=1,
        decoder_attention_heads=2,
        max_source_positions=6,
        max_target_positions=6,
    )
    params = {
        path: {name: np.zeros(shape, np.float32) for name, shape in leaves.items()}
        for path, leaves in parameter_shapes(config).items()
    }
    ones = np.ones((8, 8), np.float32), np.ones(8, np.float32)
    head = HeadFiles({name: {"w": ones[0], "b": ones[1]} for name in ("dense", "out_proj")})
    heads, extras = {"mood": head}, {"generation": {"beam": 4}}
    write_model(folder / "model", config, params, heads, extras, **options)
    return folder / "model"


class Kind:
    """Valid files of one kind, how they are damaged and how they are read."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seeds: list[tuple[str, bytes]] = []  # (name, content)
        self.damage: Callable[[bytes, random.Random], bytes] = damaged
        self.read: Callable[[Path], Any] = _read_checkpoint

    def path(self, name: str) -> Path:
        """Where the damaged file goes."""
        return self.folder / name

    def what(self, name: str) -> Path:
        """What is then read: the file."""
        return self.path(name)


class Zip(Kind):
    container = "PK"

    def __init__(self, folder: Path):
        super().__init__(folder)
        files = [*GOLDENS.glob("torch_files/*.pt"), *GOLDENS.glob("checkpoints/**/*.pt")]
        contents = [(path.name, path.read_bytes()) for path in sorted(files)]
        is_zip = self.container == "PK"
        self.seeds = [(n, c) for n, c in contents if c.startswith(b"PK") == is_zip]
        self.damage = damaged_zip if is_zip else damaged


class Legacy(Zip):
    container = "stream"


class Safetensors(Kind):
    def __init__(self, folder: Path):
        super().__init__(folder)
        content = (_small_model(folder) / "model.safetensors").read_bytes()
        length = 8 + int.from_bytes(content[:8], "little")
        # Damage hits the header most of the time.
        self.seeds = [("x.safetensors", content), ("x.safetensors", content[:length])]
        self.damage = lambda data, rng: damaged(data, rng).ljust(len(content), b"\0")
        self.read = _read_tensors


class Msgpack(Kind):
    """Flax's weights, and those of bart-base-jax, whose shapes also say what the config is."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.seeds = []
        for layout in (FLAX_WEIGHTS, PER_HEAD_WEIGHTS):
            model = _small_model(folder, layout=layout)
            content = (model / layout).read_bytes()
            self.seeds += [(layout, content), (layout, content[: len(content) // 4])]
            if layout == FLAX_WEIGHTS:
                (folder / "config.json").write_bytes((model / "config.json").read_bytes())
            shutil.rmtree(model)
        self.read = self._read

    def _read(self, path: Path) -> None:
        config = path.parent / "config.json"
        aside = config.with_name("aside.json")
        if path.name == PER_HEAD_WEIGHTS:
            config.rename(aside)
        try:
            _read_arrays(path)
        finally:
            if aside.exists():
                aside.rename(config)


class Config(Kind):
    def __init__(self, folder: Path):
        super().__init__(folder)
        self.model = _small_model(folder)
        names = ("config.json", "config.json", "generation_config.json", "bart_hk.json")
        self.whole = {name: (self.model / name).read_bytes() for name in names}
        self.seeds = [(name, self.whole[name]) for name in names]
        self.damage = damaged_json
        self.read = self._read

    def path(self, name: str) -> Path:
        return self.model / name

    def what(self, name: str) -> Path:
        return self.model

    def _read(self, directory: Path) -> None:
        try:
            read_model(directory)
        finally:
            for name, content in self.whole.items():
                (directory / name).write_bytes(content)


class Tar(Kind):
    def __init__(self, folder: Path):
        super().__init__(folder)
        self.seeds = [("x.tar.gz", self._archive(_small_model(folder)))]
        shutil.rmtree(folder / "model")
        self.damage = damaged_tar
        self.read = _read_archive

    def _archive(self, model: Path) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
            archive.add(model, "bart")
        return out.getvalue()


class ZipArchive(Tar):
    def __init__(self, folder: Path):
        super().__init__(folder)
        self.seeds = [("x.zip", content) for _, content in self.seeds]
        self.damage = damaged_zip

    def _archive(self, model: Path) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(model.iterdir()):
                archive.write(path, f"bart/{path.name}")
        return out.getvalue()


KINDS: dict[str, type[Kind]] = {
    "zip": Zip,
    "legacy": Legacy,
    "safetensors": Safetensors,
    "msgpack": Msgpack,
    "config": Config,
    "tar": Tar,
    "zip-archive": ZipArchive,
}


# --- Running --------------------------------------------------------------------------------------


def outcome(kind: Kind, name: str, content: bytes) -> str:
    """What reading the damaged file ended in: "read", "refused", or what went wrong."""
    path = kind.path(name)
    path.write_bytes(content)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read(kind.what(name))
        return "read"
    except CheckpointError as error:
        return "refused" if "\n" not in str(error) else "a message of several lines"
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
        return f"{type(error).__name__}: {error} ({where})"
    finally:
        signal.alarm(0)


def _too_slow(*_: Any) -> None:
    raise TimeoutError(f"took more than {SECONDS} s")


def run_batch(kind_name: str, numbers: range, seed: int, keep: Path) -> Counter[str]:
    """Read the mutations of `numbers`, in a process of their own; what they ended in."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        found: Counter[str] = Counter()
        try:
            with tempfile.TemporaryDirectory() as temporary, os.fdopen(send, "w") as report:
                kind = KINDS[kind_name](Path(temporary))
                signal.signal(signal.SIGALRM, _too_slow)
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                limit = pages * resource.getpagesize() + MEMORY
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
                for number in numbers:
                    rng = random.Random(f"{seed} {kind_name} {number}")
                    name, content = rng.choice(kind.seeds)
                    content = kind.damage(content, rng)
                    (keep / f"{kind_name}-{os.getpid()}").write_bytes(content)
                    ended = outcome(kind, name, content)
                    found[ended] += 1
                    if ended not in ("read", "refused"):
                        (keep / f"{kind_name}-{seed}-{number}-{name}").write_bytes(content)
                        print(f"{kind_name} {number} ({name}): {ended}", flush=True)
                report.write(json.dumps(found))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as report:
        written = report.read()
    _, status = os.waitpid(child, 0)
    last = keep / f"{kind_name}-{child}"
    if status or not written:
        last.rename(keep / f"{kind_name}-{seed}-crash-{child}")
        print(f"{kind_name} {numbers}: the process ended with status {status}", flush=True)
        return Counter({f"a crash, status {status}": 1})
    last.unlink(missing_ok=True)
    return Counter(json.loads(written))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mutations", type=int, default=10_000, help="of each kind")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="default: all of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--keep", type=Path, help="folder for files that fail")
    args = parser.parse_args(argv)
    keep = args.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    keep.mkdir(parents=True, exist_ok=True)
    failed = False
    for kind in args.kind or KINDS:
        found: Counter[str] = Counter()
        end = args.first + args.mutations
        for begin in range(args.first, end, BATCH):
            found += run_batch(kind, range(begin, min(begin + BATCH, end)), args.seed, keep)
        others = {what: n for what, n in found.items() if what not in ("read", "refused")}
        failed |= bool(others)
        print(
            f"{kind}: {found.total()} files: {found['read']} read, {found['refused']} refused, "
            f"{sum(others.values())} failed",
            flush=True,
        )
    if failed:
        print(f"files that fail: {keep}")
    elif not args.keep:
        shutil.rmtree(keep)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
