"""Measures bart_hk against named peers, in one run on one machine: `python tools/benchmark.py`.

    encode   the encoder's forward pass, 8 rows of 128 ids
    greedy   greedy search to 64 tokens from those rows
    beam     the same with 4 beams
    stream   extract_features, then predict, over 500 real sentences of mixed length
    start    the time to a first answer, with an empty and with a filled compilation cache
    load     bart.large from model.pt and from model.safetensors: seconds and memory

bart.base's shapes, random weights, float32, CPU. Each peer has a process of its own with the same
number of threads (`benchmark_peers.py`). Before anything is timed, all of them must have computed
the same. Warm-up apart, the peers take turns, round after round, so that a change of the machine's
mood meets all of them. Run it on a machine that does nothing else.
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

import numpy as np

from bart_hk.checkpoint.fairseq_file import write_fairseq
from bart_hk.checkpoint.huggingface import write_model
from bart_hk.checkpoint.tree import parameter_shapes
from bart_hk.config import architecture
from bart_hk.data.batching import bucket
from bart_hk.data.readers import read_examples
from bart_hk.hub.features import BUCKETS
from bart_hk.text import TextEncoder

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("bart_hk", "torch", "flax", "ctranslate2")
JOBS = {
    "encode": ("encode",),
    "greedy": ("greedy",),
    "beam": ("beam",),
    "stream": ("extract_features", "predict"),
}
# What a peer cannot do; and torch does the stream once, as its two jobs take the same time.
SKIPS = {("ctranslate2", job) for job in ("encode", *JOBS["stream"])} | {("torch", "predict")}
ROWS, LENGTH, SENTENCES = 8, 128, 500
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
        return answer["seconds"]

    def close(self) -> None:
        self.process.communicate()  # the end of its input ends it
        self.log.close()


def prepare(folder: Path, python: str, threads: int) -> dict[str, Any]:
    """Models and inputs in `folder`, unless an earlier run left them there; gives the inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    text = TextEncoder.gpt2("bart.large")
    if not (folder / "made").exists():
        print("Making random models of bart.base's shapes", file=sys.stderr)
        script = str(ROOT / "tools" / "benchmark_peers.py")
        quiet = {**os.environ, "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
        subprocess.run([python, script, "make", folder, str(threads)], check=True, env=quiet)
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


def check_same(job: str, results: dict[str, np.ndarray]) -> None:
    """Ends the run where two peers did not compute the same."""
    first, *others = results
    expected = comparable(results[first])
    for name in others:
        found = comparable(results[name])
        if found.shape != expected.shape:
            raise SystemExit(f"{job}: {name} gives {found.shape}, {first} {expected.shape}")
        if np.issubdtype(expected.dtype, np.integer):
            different = int((found != expected).any(axis=(1, 2)).sum())
            if different:
                raise SystemExit(f"{job}: {name} and {first} differ in {different} rows of ids")
        elif not np.allclose(found, expected, rtol=0, atol=TOLERANCE):
            worst = np.abs(found - expected).max()
            raise SystemExit(f"{job}: {name} and {first} differ by up to {worst:.1e}")


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
        compiled for the first call (counted for bart_hk alone). None may be compiled later.
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
    check_same(job, results)
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
    return {"seconds": seconds, "compiled": compiled}


def check_compilations(job: str, compiled: dict[str, int], stream: list[list[int]]) -> int:
    """The stream's buckets of length; ends the run if a function was compiled more often."""
    buckets = len({bucket(len(row), BUCKETS) for row in stream})
    if max(compiled.values(), default=0) > buckets:
        raise SystemExit(f"{job}: {compiled} compilations, for {buckets} buckets of length")
    return buckets


def time_start(folder: Path, threads: int) -> dict[str, float]:
    """Seconds from nothing to a new process's first answers: without and with compiled programs."""
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for state in ("empty cache", "filled cache"):
            print(f"start: {state}", file=sys.stderr)
            start = time.perf_counter()
            process = Process("bart_hk", sys.executable, folder, threads, cache)
            process.run("first")
            found[state] = time.perf_counter() - start
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


def machine(threads: int) -> str:
    """The processor, and how many threads each peer had."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    except (OSError, StopIteration):
        pass
    return f"{model}, {threads} threads, Python {platform.python_version()}"


def table(seconds: dict[str, dict[str, list[float]]]) -> list[str]:
    """Markdown: medians, the range of all rounds, and how many times as long as bart_hk."""
    lines = [
        "| job | peer | median | fastest to slowest | times bart_hk |",
        "|---|---|--:|--:|--:|",
    ]
    for job, peers in seconds.items():
        medians = {name: statistics.median(values) for name, values in peers.items()}
        for name, values in peers.items():
            ratio = f"{medians[name] / medians['bart_hk']:.2f}" if "bart_hk" in medians else ""
            spread = f"{min(values):.3f} to {max(values):.3f} s"
            lines.append(f"| {job} | {name} | {medians[name]:.3f} s | {spread} | {ratio} |")
    return lines


def report(results: dict[str, Any]) -> str:
    """What the run found, as Markdown."""
    versions = sorted(
        {f"{n} {v}" for peer in results["versions"].values() for n, v in peer.items()}
    )
    lines = [f"{results['machine']}; {', '.join(versions)}; {results['rounds']} rounds.", ""]
    if results["seconds"]:
        lines += [*table(results["seconds"]), ""]
    for job, compilations in results["compilations"].items():
        counts = {name: count for name, count in compilations.items() if name != "buckets"}
        names = ", ".join(f"{name} {count} times" for name, count in counts.items()) or "nothing"
        lines += [
            f"{job} compiled {names}, for {SENTENCES} sentences in {compilations['buckets']} "
            "buckets of length, and nothing when they came again.",
            "",
        ]
    for file, peers in results.get("load", {}).items():
        ours, theirs = (statistics.median(peers[n]["seconds"]) for n in ("bart_hk", "torch"))
        spreads = {
            n: f"{min(p['seconds']):.2f} to {max(p['seconds']):.2f} s" for n, p in peers.items()
        }
        lines += [
            f"bart.large from {file}: bart_hk {ours:.2f} s ({spreads['bart_hk']}), torch "
            f"{theirs:.2f} s ({spreads['torch']}), {theirs / ours:.2f} times as long; "
            f"bart_hk takes at most {max(peers['bart_hk']['peak']):.2f} times the weights' size, "
            f"torch {max(peers['torch']['peak']):.2f} times beside its model.",
            "",
        ]
    if start := results.get("start"):
        times = ", ".join(f"{value:.1f} s with an {state}" for state, value in start.items())
        lines.append(f"From starting Python to the first features and 64 greedy tokens: {times}.")
    return "\n".join(lines).replace("an filled", "a filled").rstrip()


def main(argv: list[str] | None = None) -> int:
    summary = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        description=summary[0], epilog=summary[1], formatter_class=argparse.RawTextHelpFormatter
    )
    known = [*JOBS, "start", "load"]
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"of {', '.join(known)}; or all")
    parser.add_argument("--only", metavar="PEER,...", help=f"of {', '.join(PEERS)}; or all")
    parser.add_argument("--rounds", type=int, help="default: 5, of the stream 3")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "benchmark")
    parser.add_argument("--json", type=Path, help="default: FOLDER/results.json")
    parser.add_argument("--peers-python", default=str(ROOT / ".venv-peers" / "bin" / "python"))
    args = parser.parse_args(argv)
    wanted = args.jobs or known
    names = args.only.split(",") if args.only else list(PEERS)
    for kind, given, allowed in (("job", wanted, known), ("peer", names, PEERS)):
        for name in given:
            if name not in allowed:
                parser.error(f"no {kind} {name!r}; there are: {', '.join(allowed)}")
    if not Path(args.peers_python).exists():
        parser.error(f"{args.peers_python} is missing: `make benchmark` makes it")

    inputs = prepare(args.folder, args.peers_python, args.threads)
    results: dict[str, Any] = {
        "machine": machine(args.threads),
        "threads": args.threads,
        "rounds": args.rounds or "5 (of the stream 3)",
        "versions": {},
        "seconds": {},
        "compilations": {},
    }

    def start(name: str) -> Process:
        print(f"{name} starts", file=sys.stderr)
        python = sys.executable if name == "bart_hk" else args.peers_python
        process = Process(name, python, args.folder, args.threads)
        results["versions"][name] = process.versions
        return process

    if "start" in wanted and "bart_hk" in names:
        results["start"] = time_start(args.folder, args.threads)
    if "load" in wanted:
        rounds = args.rounds or 5
        results["load"] = time_loading(args.folder, args.peers_python, args.threads, rounds)
    if set(wanted) & set(JOBS):
        processes = [start(name) for name in names]
        for group in (name for name in JOBS if name in wanted):
            for job in JOBS[group]:
                rounds = args.rounds or (3 if group == "stream" else 5)
                found = measure(job, processes, args.folder, rounds)
                results["seconds"][job] = found["seconds"]
                if group == "stream" and "bart_hk" in names:
                    compiled = found["compiled"]["bart_hk"]
                    buckets = check_compilations(job, compiled, inputs["stream"])
                    results["compilations"][job] = {"buckets": buckets, **compiled}
        for process in processes:
            process.close()
    (args.json or args.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
