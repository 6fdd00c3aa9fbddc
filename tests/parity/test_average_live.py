"""The average of checkpoints, opened by the real fairseq: bit for bit what its own script gives."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from bart_hk.checkpoint.fairseq import from_fairseq
from bart_hk.checkpoint.fairseq_file import read_fairseq, write_fairseq
from bart_hk.config import BARTConfig
from tests.generation.conftest import INPUTS
from tests.parity.conftest import ROOT
from tests.parity.test_checkpoints_live import letters
from tests.parity.test_model_live import our_logits, random_ids


@pytest.mark.parametrize("name", ["post_norm", "pre_norm"])
def test_the_average_is_fairseqs(golden, oracle, tmp_path, name):
    case = golden("generation/cases.json")["models"][name]
    config = BARTConfig(**case["config"])
    ids = random_ids(config, [9, 4, 7], 8)
    shutil.copy(INPUTS / case["weights"], tmp_path)
    about = {"weights": case["weights"], "fields": case["config"]}
    about["ids"] = [rows.tolist() for rows in ids]
    (tmp_path / "case.json").write_text(json.dumps(about))
    oracle("oracle_average.py", tmp_path)
    params, _ = from_fairseq(load_file(INPUTS / case["weights"]), config)
    for kind in ("", "half"):
        place = tmp_path / kind / "averaged"
        write_fairseq(place, config, params, text=letters(config.vocab_size, 4))
        command = [sys.executable, "tools/average_checkpoints.py", "--output", place / "model.pt"]
        command += ["--inputs", *(tmp_path / kind / f"{number}.pt" for number in range(3))]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    oracle("oracle_average.py", tmp_path)
    theirs = load_file(tmp_path / "logits.safetensors")
    first = read_fairseq(tmp_path / "0.pt")
    for kind in ("", "half"):
        np.testing.assert_array_equal(theirs[f"averaged{kind}"], theirs[f"expected{kind}"])
        model = read_fairseq(tmp_path / kind / "averaged" / "model.pt")
        ours = our_logits(model.config, model.params, ids)
        np.testing.assert_allclose(ours, theirs[f"expected{kind}"], rtol=0, atol=1e-4)
        assert set(model.heads) == {"wide"}
    assert np.abs(our_logits(config, first.params, ids) - theirs["expected"]).max() > 0.01
