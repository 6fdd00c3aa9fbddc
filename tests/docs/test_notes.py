"""Every snippet of docs/notes.md runs, and every note has one; so does the README's loop."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTES = (ROOT / "docs" / "notes.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def notes() -> dict[str, str]:
    return {part.partition("\n")[0]: part for part in NOTES.split("\n## ")[1:]}


def snippets(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("title", notes())
def test_a_note(title):
    (code,) = snippets(notes()[title])
    assert "assert" in code
    exec(compile(code, f"docs/notes.md: {title}", "exec"), {"__name__": "note"})


def test_what_the_notes_are_about():
    for subject in (
        *("have biases", "row 2", "One table", "dropout after the activation", "`</s><s>`"),
        *("first token", "through erf", "computed in less", "divides by n", "50265 or 51201"),
    ):
        assert any(subject in title for title in notes()), subject


SMALL = """architecture(
    "bart_base", encoder_embed_dim=64, encoder_ffn_embed_dim=128, decoder_ffn_embed_dim=128,
    encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    vocab_size=30, max_source_positions=30, max_target_positions=30,
)"""
BATCHES = """
import numpy as np

text = np.r_[0, 5:25, 2, 1, 1].astype(np.int32)[None]  # <s> ... </s> <pad> <pad>
shifted = np.concatenate([text[:, -3:-2], text[:, :-1]], 1)
first = None
batches = 60 * [{"src_tokens": text, "prev_output_tokens": shifted, "target": text}]
"""


def test_the_readmes_loop(tmp_path):
    """Fifteen lines of plain optax, as they stand but for sizes and data; in a process without
    anything else."""
    section = README.split("## A training loop by hand")[1].split("\n## ")[0]
    (code,) = snippets(section)
    lines = [line for line in code.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("import ", "from "))]
    assert len(lines) <= 15 and "hydra" not in code
    program = code.replace('architecture("bart_base")', SMALL).replace("1e-4", "3e-3")
    assert SMALL in program and "for batch in batches:" in program
    program = program.replace("for batch in batches:", f"{BATCHES}\nfor batch in batches:")
    program += "    first = float(loss) if first is None else first\n"
    program += "assert state[2] == 60 and loss < 0.2 < 2.5 < first, (first, loss)\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
