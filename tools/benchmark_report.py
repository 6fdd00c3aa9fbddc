"""What `benchmark.py` found, as Markdown."""

import statistics
from typing import Any

ABOUT = ("sentences", "buckets")  # beside the numbers of compilations


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
    for job, shares in results["same"].items():
        for name, share in shares.items():
            lines += [f"{job}: {name} gives the same ids in {share:.0%} of the rows.", ""]
    if results.get("bandwidth"):
        lines += [f"The memory was read at {results['bandwidth'] / 1e9:.1f} GB/s.", ""]
    for job, found in results["floors"].items():
        lines += [
            f"{job}: beside {found['encoder']:.3f} s of the encoder bart_hk takes "
            f"{found['steps']:.3f} s; its steps read {found['bytes'] / 1e9:.1f} GB, "
            f"{found['floor']:.3f} s at least: {found['steps'] / found['floor']:.2f} times that.",
            "",
        ]
    for dtype, found in results.get("memory", {}).items():
        lines += [
            "bart.large, {rows} rows of {source} ids, {beam} beams, {steps} tokens, ".format(
                **found
            )
            + f"{dtype}: at most {found['peak'] / 1e9:.2f} GB in use, "
            f"{found['peak'] / found['needed']:.2f} times weights and caches "
            f"({found['needed'] / 1e9:.2f} GB); {found['seconds']:.1f} s.",
            "",
        ]
    for job, compilations in results["compilations"].items():
        counts = {name: count for name, count in compilations.items() if name not in ABOUT}
        names = ", ".join(f"{name} {count} times" for name, count in counts.items()) or "nothing"
        lines += [
            f"{job} compiled {names}, for {compilations['sentences']} sentences in "
            f"{compilations['buckets']} buckets of length, and nothing when they came again.",
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
        times = ", ".join(
            f"{found['seconds']:.1f} s with an {state} ({found['tracing']:.2f} s of them tracing, "
            f"{found['compiling']:.2f} s compiling)"
            for state, found in start.items()
        )
        lines.append(f"From starting Python to the first features and 64 greedy tokens: {times}.")
    return "\n".join(lines).replace("an filled", "a filled").rstrip()
