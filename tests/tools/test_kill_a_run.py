"""Two kills; `python tools/kill_a_run.py FOLDER ...` makes as many as one likes."""

import json

import pytest

from tests.tasks.test_denoising import write
from tests.training.conftest import MODEL
from tools import kill_a_run


@pytest.fixture
def overrides(tmp_path):
    return [
        "task=denoising",
        f"task.data={write(tmp_path / 'data')}",
        "task.tokens_per_sample=38",
        *(f"model.{key}={value}" for key, value in MODEL.items() if key != "_name"),
        "dataset.batch_size=16",
        "dataset.length_buckets=[40]",
        "dataset.num_workers=1",
        "optimization.max_epoch=3",
        "optimization.lr=0.01",
        "common.log_interval=2",
        "checkpoint.save_interval_updates=2",
        "ema.store_ema=true",
        "ema.ema_decay=0.9",
    ]


def test_a_run_survives_kills(tmp_path, overrides, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs = tmp_path / "runs"
    assert kill_a_run.main([str(runs), "--kills", "2", *overrides]) == 0
    assert "2 SIGKILLs" in capsys.readouterr().out
    # And it would see a difference.
    assert kill_a_run.differences(runs / "whole", runs / "killed_0") == []
    lines = (runs / "whole" / "log.jsonl").read_text().splitlines()
    changed = json.loads(lines[0]) | {"loss": 0.1}
    (runs / "whole" / "log.jsonl").write_text("\n".join([json.dumps(changed), *lines[1:]]) + "\n")
    model = runs / "killed_0" / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    found = kill_a_run.differences(runs / "whole", runs / "killed_0")
    assert found[0] == "model.safetensors differs" and found[1].startswith("log.jsonl, line 1:")
