"""Measures bart_hk against named peers, in one run on one machine: `python tools/benchmark.py`.

    encode   the encoder's forward pass, 8 rows of 128 ids
    generate every search below, each of which can also be asked for alone:
             greedy           greedy search to 64 tokens from those rows
             beam             the same with 4 beams
             beam_of_one      4 beams, one row
             greedy_of_many   greedy search, 32 rows
             large            greedy search of bart.large, 8 rows
    stream   extract_features, then predict, over 500 real sentences of mixed length
    start    the time to a first answer, with an empty and with a filled compilation cache
    load     bart.large from model.pt and from model.safetensors: seconds and memory
    train    an update of bart.mini's shapes; its options: `tools/benchmark.py train --help`
    finetune epochs of fine-tuning; its options: `tools/benchmark.py finetune --help`
    memory   peak memory of a search of bart.large, 8 rows of 1024 ids, 4 beams

bart.base's shapes unless said otherwise, random weights, float32 (but peers that are named after
another dtype), CPU. bart_hk-xla and bart_hk-bfloat16-xla, measured only where --only names them, do
without bart_hk's own functions in C++. Each peer has a process of its own with the same number of
threads (`benchmark_peers.py`). Before anything is timed, all of them must have computed the same;
of those in another dtype it is said in how many rows they do. Warm-up apart, the peers take turns,
round after round, so that a change of the machine's mood meets all of them. After a search of
bart_hk, the bytes that its steps must read are set against the memory's bandwidth, measured in the
same run. Run it on a machine that does nothing else.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import benchmark_finetune
import benchmark_train
import numpy as np
from benchmark_floor import bandwidth, read_in_search
from benchmark_report import report

from bart_hk.checkpoint.fairseq_file import write_fairseq
from bart_hk.checkpoint.huggingface import write_model
from bart_hk.checkpoint.tree import parameter_shapes
from bart_hk.config import architecture
from bart_hk.data.batching import bucket
from bart_hk.data.readers import read_examples
from bart_hk.hub.features import BUCKETS
from bart_hk.text import TextEncoder

ROOT = Path(__file__).resolve().parent.parent
EXACT = ("bart_hk", "ctranslate2", "flax", "torch", "fairseq", "bart_hk-xla")
PEERS = ("bart_hk", "bart_hk-bfloat16", "ctranslate2", "ctranslate2-int8", *EXACT[2:-1])
ON_XLA = ("bart_hk-xla", "bart_hk-bfloat16-xla")  # without `bart_hk.kernels`; only where named
# Rows, beams and architecture of each search.
SEARCHES = {
    "greedy": (8, 1, "bart_base"),
    "beam": (8, 4, "bart_base"),
    "beam_of_one": (1, 4, "bart_base"),
    "greedy_of_many": (32, 1, "bart_base"),
    "large": (8, 1, "bart_large"),
}
JOBS = {
    "encode": ("encode",),
    "generate": tuple(SEARCHES),
    "stream": ("extract_features", "predict"),
}
# What a peer cannot do; and torch does the stream once, as its two jobs take the same time.
SKIPS = {
    *(
        (peer, job)
        for peer in ("ctranslate2", "ctranslate2-int8", "fairseq")
        for job in JOBS["encode"]
    ),
    *((peer, job) for peer in PEERS[1:] for job in JOBS["stream"] if peer not in ("torch", "flax")),
    *((peer, job) for peer in ON_XLA for group in ("encode", "stream") for job in JOBS[group]),
    ("torch", "predict"),
    ("flax", "large"),  # takes half an hour of compiling and converting
    ("bart_hk-bfloat16", "encode"),
}
ROWS, LENGTH, SENTENCES, DECODED = 32, 128, 500, 64
TOLERANCE = 1e-4  # of features and log-probabilities; ids are equal
PAUSE = 0.3  # seconds for a peer's spinning threads to fall asleep before the next one's turn


class Process:
    """A peer in its own process, asked one thing at a time."""

    def __init__(
        self, name: str, python: str, folder: Path, threads: int, cache: str | None = None
    ) -> None:
        script = str(ROOT / "tools" / "benchmark_peers.py")
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        if cache is None:  # what is measured was compiled here and now
            environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        else:
            environment["JAX_COMPILATION_CACHE_DIR"] = cache
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        self.name = name
        self.log = (folder / f"{name}.log").open("w+")
        self.process = subprocess.Popen(
            [python, script, name, str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        answer = self._answer()
        self.versions: dict[str, str] = answer["versions"]
        self.compiled: dict[str, int] = answer["compiled"]  # function -> how often, up to now
        self.tracing = self.compiling = 0.0  # seconds, up to now

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise SystemExit(f"{self.name} ended:\n{self.log.read()[-3000:]}")
        return json.loads(line)

    def run(self, job: str, keep: str | None = None) -> float:
        """Does a job once, and gives its seconds. The result goes to the file `keep`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"job": job, "keep": keep}) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.compiled = answer["compiled"]
        self.tracing, self.compiling = answer["tracing"], answer["compiling"]
        return answer["seconds"]

    def close(self) -> None:
        self.process.communicate()  # the end of its input ends it
        self.log.close()


def make(size: str, folder: Path, python: str) -> None:
    """Random weights in every peer's format."""
    print(f"Making random models of bart.{size}'s shapes", file=sys.stderr)
    script = str(ROOT / "tools" / "benchmark_models.py")
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
    subprocess.run([python, script, size, folder], check=True, env=quiet)


def prepare(folder: Path, python: str, large: bool) -> dict[str, Any]:
    """Models and inputs in `folder`, unless an earlier run left them there; gives the inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    text = TextEncoder.gpt2("bart.large")
    if large and not (folder / "large-made").exists():
        make("large", folder, python)
        text.save(folder / "large-generation")
        (folder / "large-made").touch()
    if not (folder / "made").exists():
        make("base", folder, python)
        for model in ("generation", "classification"):
            text.save(folder / model)
        (folder / "made").touch()
    random_ids = np.random.default_rng(0).integers(4, 50264, (ROWS, LENGTH))
    random_ids[:, 0], random_ids[:, -1] = 0, 2
    reviews = read_examples(ROOT / "bart_hk" / "data" / "sentence_polarity" / "test.tsv.gz")
    sentences = [sentence for (sentence,) in reviews.texts[:SENTENCES]]
    stream = [[0, *ids, 2] for ids in text.encode_batch(sentences)]
    inputs = {"source": random_ids.tolist(), "stream": stream}
    (folder / "inputs.json").write_text(json.dumps(inputs))
    return inputs


def check_same(job: str, results: dict[str, np.ndarray]) -> dict[str, float]:
    """Ends the run where two peers of float32 did not compute the same.

    Returns:
        The share of rows in which those of another dtype give the same ids.
    """
    first, *others = results
    expected, shares = comparable(results[first]), {}
    for name in others:
        found = comparable(results[name])
        if name not in EXACT or first not in EXACT:
            shares[name] = float(np.mean((found == expected).all(axis=(1, 2))))
            continue
        if found.shape != expected.shape:
            raise SystemExit(f"{job}: {name} gives {found.shape}, {first} {expected.shape}")
        if np.issubdtype(expected.dtype, np.integer):
            different = int((found != expected).any(axis=(1, 2)).sum())
            if different:
                raise SystemExit(f"{job}: {name} and {first} differ in {different} rows of ids")
        elif not np.allclose(found, expected, rtol=0, atol=TOLERANCE):
            worst = np.abs(found - expected).max()
            raise SystemExit(f"{job}: {name} and {first} differ by up to {worst:.1e}")
    return shares


def comparable(result: np.ndarray) -> np.ndarray:
    """Ids [B, W, T] with each row's hypotheses in one order, since peers rank them each in its own
    way (fairseq counts the forced `</s>`, the others do not); anything else as it is."""
    if not np.issubdtype(result.dtype, np.integer):
        return result
    return np.stack([np.asarray(sorted(map(tuple, row))) for row in result])


def measure(job: str, processes: list[Process], folder: Path, rounds: int) -> dict[str, Any]:
    """The peers' turns at one job.

    Returns:
        "seconds": by peer, one for each round; "compiled": by peer, how often each function was
        compiled for the first call (counted for bart_hk alone), none may be compiled later; "same":
        by peer of another dtype, the share of rows with the same ids.
    """
    able = [process for process in processes if (process.name, job) not in SKIPS]
    seconds: dict[str, list[float]] = {process.name: [] for process in able}
    compiled, results = {}, {}
    for process in able:
        print(f"{job}: {process.name} warms up", file=sys.stderr)
        before = process.compiled
        process.run(job, f"{process.name}-{job}.npy")
        compiled[process.name] = {
            name: count - before.get(name, 0)
            for name, count in process.compiled.items()
            if count > before.get(name, 0)
        }
        results[process.name] = np.load(folder / f"{process.name}-{job}.npy")
    shares = check_same(job, results)
    warm = {process.name: process.compiled for process in able}
    for number in range(rounds):
        print(f"{job}: round {number + 1} of {rounds}", file=sys.stderr)
        turn = number % len(able)  # nobody always comes after the same neighbour
        for process in able[turn:] + able[:turn]:
            time.sleep(PAUSE)
            seconds[process.name].append(process.run(job))
    for process in able:
        if process.compiled != warm[process.name]:
            raise SystemExit(f"{job}: {process.name} compiled again for what it had seen")
    return {"seconds": seconds, "compiled": compiled, "same": shares}


def check_compilations(job: str, compiled: dict[str, int], stream: list[list[int]]) -> int:
    """The stream's buckets of length; ends the run if a function was compiled more often."""
    buckets = len({bucket(len(row), BUCKETS) for row in stream})
    if max(compiled.values(), default=0) > buckets:
        raise SystemExit(f"{job}: {compiled} compilations, for {buckets} buckets of length")
    return buckets


def time_start(folder: Path, threads: int) -> dict[str, dict[str, float]]:
    """From nothing to a new process's first answers, without and with compiled programs.

    Returns:
        By state of the cache: "seconds" in all, and of them those that went into "tracing" (and
        lowering), and into "compiling", or reading from the cache.
    """
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for state in ("empty cache", "filled cache"):
            print(f"start: {state}", file=sys.stderr)
            start = time.perf_counter()
            process = Process("bart_hk", sys.executable, folder, threads, cache)
            process.run("first")
            seconds = time.perf_counter() - start
            spent = {"tracing": process.tracing, "compiling": process.compiling}
            found[state] = {"seconds": seconds, **spent}
            process.close()
    return found


def time_loading(folder: Path, python: str, threads: int, rounds: int) -> dict[str, Any]:
    """bart.large read by us and by torch, each time in a new process.

    Returns:
        By file, by peer: "seconds" and "peak" of every round, the latter as a multiple of the
        weights' size.
    """
    large = folder / "large"
    places = {"model.pt": large / "fairseq", "model.safetensors": large / "native"}
    if not (large / "made").exists():
        print("load: making a random bart.large", file=sys.stderr)
        config, rng = architecture("bart_large"), np.random.default_rng(0)
        params = {
            path: {name: rng.standard_normal(shape, np.float32) for name, shape in leaves.items()}
            for path, leaves in parameter_shapes(config).items()
        }
        text = TextEncoder.gpt2()
        write_fairseq(places["model.pt"], config, params, text=text)
        write_model(places["model.safetensors"], config, params, also=text.save)
        (large / "made").touch()
    size = sum(
        4 * math.prod(shape)
        for leaves in parameter_shapes(architecture("bart_large")).values()
        for shape in leaves.values()
    )
    found: dict[str, Any] = {}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(threads)}
    for file, place in places.items():
        found[file] = {name: {"seconds": [], "peak": []} for name in ("bart_hk", "torch")}
        for number in range(rounds + 1):
            print(f"load: {file}, round {number} of {rounds}", file=sys.stderr)
            for name, interpreter in (("bart_hk", sys.executable), ("torch", python)):
                script = str(ROOT / "tools" / "benchmark_load.py")
                run = subprocess.run(
                    [interpreter, script, name, place],
                    env=environment,
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                if number:  # before the first round the file may not be in the system's memory
                    answer = json.loads(run.stdout)
                    found[file][name]["seconds"].append(answer["seconds"])
                    found[file][name]["peak"].append(answer["peak"] / size)
    return found


def floor_of(job: str, process: Process, seconds: list[float], rate: float) -> dict[str, float]:
    """How the steps of a search compare with reading what they must.

    Args:
        process: bart_hk's.
        seconds: that the search took.
        rate: bytes per second of the memory.

    Returns:
        "encoder": seconds of the encoder, whose products are not bound by the memory; "steps":
        what the search takes beside it; "bytes", that its steps read; "floor": seconds to read
        them.
    """
    rows, beam, name = SEARCHES[job]
    read = read_in_search(architecture(name), rows, beam, LENGTH, DECODED)
    process.run(f"encode_{job}")
    encoder = statistics.median(process.run(f"encode_{job}") for _ in range(5))
    steps = statistics.median(seconds) - encoder
    return {"encoder": encoder, "steps": steps, "bytes": read, "floor": read / rate}


def measure_memory(folder: Path, threads: int) -> dict[str, Any]:
    """Peak memory of a search of bart.large in a new process."""
    script = str(ROOT / "tools" / "benchmark_memory.py")
    sizes = {"rows": 8, "source": 1024, "beam": 4, "steps": 63}
    found: dict[str, Any] = {}
    for dtype in ("float32", "bfloat16"):
        print(f"memory: {dtype}", file=sys.stderr)
        run = subprocess.run(
            [sys.executable, script, folder / "large-generation", *map(str, sizes.values()), dtype],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(threads)},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        found[dtype] = {**sizes, **json.loads(run.stdout)}
    return found


def machine(threads: int) -> str:
    """The processor, and how many threads each peer had."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    except (OSError, StopIteration):
        pass
    return f"{model}, {threads} threads, Python {platform.python_version()}"


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:  # these have peers and options of their own
        return benchmark_train.main(argv[1:])
    if argv[:1] == ["finetune"]:
        return benchmark_finetune.main(argv[1:])
    summary = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        description=summary[0], epilog=summary[1], formatter_class=argparse.RawTextHelpFormatter
    )
    known = [*JOBS, *SEARCHES, "start", "load", "memory"]
    everything = [*JOBS, "start", "load", "memory"]
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"of {', '.join(known)}; or all")
    parser.add_argument(
        "--only", metavar="PEER,...", help=f"of {', '.join((*PEERS, *ON_XLA))}; or all"
    )
    parser.add_argument("--rounds", type=int, help="default: 5, of the stream 3")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "benchmark")
    parser.add_argument("--json", type=Path, help="default: FOLDER/results.json")
    parser.add_argument("--peers-python", default=str(ROOT / ".venv-peers" / "bin" / "python"))
    parser.add_argument(
        "--oracle-python",
        default=str(ROOT / ".venv-oracle" / "bin" / "python"),
        help="fairseq's; without it fairseq is left out",
    )
    args = parser.parse_args(argv)
    wanted = args.jobs or everything
    names = args.only.split(",") if args.only else list(PEERS)
    for kind, given, allowed in (("job", wanted, known), ("peer", names, (*PEERS, *ON_XLA))):
        for name in given:
            if name not in allowed:
                parser.error(f"no {kind} {name!r}; there are: {', '.join(allowed)}")
    if not Path(args.peers_python).exists():
        parser.error(f"{args.peers_python} is missing: `make benchmark` makes it")

    if "fairseq" in names and not Path(args.oracle_python).exists():
        print(f"fairseq is left out: {args.oracle_python} is missing", file=sys.stderr)
        names.remove("fairseq")
    jobs = [job for group, of in JOBS.items() for job in of if {group, job} & set(wanted)]
    needs_large = bool({"large", "memory"} & {*jobs, *wanted})
    inputs = prepare(args.folder, args.peers_python, needs_large)
    results: dict[str, Any] = {
        "machine": machine(args.threads),
        "threads": args.threads,
        "rounds": args.rounds or "5 (of stream and large 3)",
        "versions": {},
        "seconds": {},
        "compilations": {},
        "same": {},
        "floors": {},
    }

    def start(name: str) -> Process:
        print(f"{name} starts", file=sys.stderr)
        python = sys.executable if name.startswith("bart_hk") else args.peers_python
        python = args.oracle_python if name == "fairseq" else python
        process = Process(name, python, args.folder, args.threads)
        results["versions"][name] = process.versions
        return process

    def write() -> None:
        place = args.json or args.folder / "results.json"
        place.write_text(json.dumps(results, indent=1) + "\n")

    if "start" in wanted and "bart_hk" in names:
        results["start"] = time_start(args.folder, args.threads)
    if "load" in wanted:
        rounds = args.rounds or 5
        results["load"] = time_loading(args.folder, args.peers_python, args.threads, rounds)
    if "memory" in wanted:
        results["memory"] = measure_memory(args.folder, args.threads)
    if jobs:
        if set(jobs) & set(SEARCHES):
            results["bandwidth"] = bandwidth(args.threads)
        processes = [start(name) for name in names]
        for job in jobs:
            usual = 3 if job in (*JOBS["stream"], "large") else 5
            found = measure(job, processes, args.folder, args.rounds or usual)
            results["seconds"][job] = found["seconds"]
            results["same"][job] = found["same"]
            if job in JOBS["stream"] and "bart_hk" in names:
                compiled = found["compiled"]["bart_hk"]
                buckets = check_compilations(job, compiled, inputs["stream"])
                results["compilations"][job] = {
                    "sentences": SENTENCES,
                    "buckets": buckets,
                    **compiled,
                }
            if job in SEARCHES and "bart_hk" in names:
                ours = processes[names.index("bart_hk")]
                seconds = found["seconds"]["bart_hk"]
                results["floors"][job] = floor_of(job, ours, seconds, results["bandwidth"])
            write()  # what is interrupted later is not lost
        for process in processes:
            process.close()
    write()
    print(report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
