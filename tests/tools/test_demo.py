"""The demo with next to no training: everything but its accuracy."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/demo.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_it_trains_measures_loads_and_classifies(tmp_path):
    tiny = ["model.encoder_embed_dim=8", "model.encoder_ffn_embed_dim=8", "task.vocab_size=300"]
    tiny += ["model.decoder_ffn_embed_dim=8", "model.encoder_layers=1", "model.decoder_layers=1"]
    tiny += ["optimization.max_update=2", "checkpoint.restore_file=null"]
    run = demo("--out", str(tmp_path), "--seeds", "2", "--text", "a $5 film", *tiny)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == '>>> bart = bart_hk.load("bart.mini")'
    filled = [line for line in lines if re.match(r" {4}0\.\d\d  ", line)]
    assert len(filled) == 6 and "<mask>" not in "".join(filled)
    (command,) = [line for line in lines if "common.seed=1 " in line]
    assert command.startswith("$ bart-hk-train experiment=mini/polarity ")
    measured = re.findall(r"^seed (\d): (\d+\.\d\d) % of 1066 held-out reviews", run.stdout, re.M)
    assert [seed for seed, _ in measured] == ["1", "2"]
    assert all(40 < float(accuracy) < 60 for _, accuracy in measured)
    assert any(line.startswith("median of 2 seeds: ") for line in lines)
    assert re.fullmatch(r" *(positive|negative)  0\.\d\d  a \$5 film", lines[-1])


def test_a_mistake_ends_it(tmp_path):
    run = demo("--out", str(tmp_path), "model.layers=3")
    assert run.returncode == 2
    error = run.stderr.strip().splitlines()[-1]
    assert error.startswith("bart-hk-train: error: there is no model.layers")
