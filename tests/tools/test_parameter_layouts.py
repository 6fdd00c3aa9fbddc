"""docs/parameters.md is what the tool makes of today's writers, and it lacks nothing."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bart_hk.checkpoint.tree import parameter_shapes
from bart_hk.config import architecture

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def layouts() -> ModuleType:
    return tool("parameter_layouts")


@pytest.fixture(scope="module")
def page(layouts) -> str:
    return layouts.page()


def rows(page: str, title: str) -> list[list[str]]:
    section = page.split(f"## {title}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_the_page_is_up_to_date(layouts, page, monkeypatch, tmp_path, capsys):
    assert layouts.PAGE.read_text(encoding="utf-8") == page, "run python tools/parameter_layouts.py"
    monkeypatch.setattr(layouts, "PAGE", tmp_path / "docs" / "parameters.md")
    monkeypatch.setattr(layouts, "page", lambda: page)
    assert layouts.main(["--check"]) == 1
    assert "is not up to date: run python tools" in capsys.readouterr().err
    assert layouts.main([]) == 0 and layouts.main(["--check"]) == 0


def test_no_parameter_is_lacking(page):
    shapes = parameter_shapes(architecture("bart_base"))
    expected = {
        f"{re.sub('layers_0', 'layers_N', path)} {name}"
        for path, leaves in shapes.items()
        for name in leaves
        if not re.search("layers_[1-9]", path)
    }
    table = rows(page, "A tied BART")
    assert {re.findall("`(.+?)`", row[0])[0] for row in table} == expected
    assert all(len(row) == 5 and all(row) for row in table)


def test_some_places_that_everybody_knows(page):
    by_name = {re.findall("`(.+?)`", row[0])[0]: row for row in rows(page, "A tied BART")}
    query = by_name["decoder/layers_N/encoder_attn/q_proj w"]
    assert query[0].endswith("768x768")
    assert query[1] == "`decoder.layers.N.encoder_attn.q_proj.weight` 768x768"
    assert query[2] == "`model.decoder.layers.N.encoder_attn.q_proj.weight` 768x768"
    assert query[3] == "`model/decoder/layers/N/encoder_attn/q_proj/kernel` 768x768"
    assert query[4] == "`decoder_layers/N/cross_attn/q_proj/kernel` 768x12x64"
    first = by_name["encoder/layers_N/fc1 w"]
    assert [cell.rsplit(" ", 1)[1] for cell in first] == [
        *("768x3072", "3072x768", "3072x768", "768x3072", "768x3072"),
    ]
    table = by_name["embed_tokens embeddings"]
    for name in ("encoder.embed_tokens.weight", "decoder.output_projection.weight"):
        assert f"`{name}`" in table[1]
    head = rows(page, "A classification head")
    assert len(head) == 4 and not any(row[4] for row in head if len(row) > 4)


def test_a_writer_that_turns_something_around_would_be_seen(layouts, monkeypatch):
    """Nothing on the page is known to the tool."""
    config = architecture("bart_base", encoder_layers=1, decoder_layers=1, vocab_size=20)
    before = layouts.table(config)

    def wrong(config, params, heads):
        state = layouts._fairseq(config, params, heads)
        one, other = (f"encoder.layers.0.fc{i}.weight" for i in (1, 2))
        state[one], state[other] = state[other], np.asarray(state[one])
        return state

    changed = [layouts.Layout("x", wrong) if x.title == "fairseq" else x for x in layouts.LAYOUTS]
    monkeypatch.setattr(layouts, "LAYOUTS", changed)
    after = layouts.table(config)
    assert sum(a != b for a, b in zip(before[2:], after[2:], strict=True)) == 2


# --- tools/parameter_table.py ---------------------------------------------------------------------


def test_published_counts(capsys):
    """transformers counts 139,420,416 for bart-base and 406,291,456 for bart-large."""
    table = tool("parameter_table")
    for name, count, size in (
        ("bart_base", "139,420,416", "557.7 MB"),
        ("bart_large", "406,291,456", "1,625.2 MB"),
    ):
        assert table.main([name]) == 0
        out = capsys.readouterr().out
        assert f"{count} parameters in" in out and size in out
    assert "decoder/layers_11/encoder_attn/q_proj" in out and "w: f32[1024,1024]" in out
    assert re.search(r"encoder/layernorm_embedding.*f32\[1,16,1024\]", out)


def test_fields_are_changed(capsys, tmp_path):
    table = tool("parameter_table")
    small = ["vocab_size=100", "encoder_embed_dim=8", "encoder_layers=1", "decoder_layers=2"]
    small += ["encoder_attention_heads=2", "decoder_attention_heads=2", "activation_fn=relu"]
    small += ["layernorm_embedding=false", "--length", "5", "--batch", "3"]
    assert table.main(["bart_base", *small]) == 0
    out = capsys.readouterr().out
    assert "f32[3,5,8]" in out and "layernorm_embedding" not in out and "layers_1/fc1" in out
    for arguments, message in (
        (["bart_bass"], "no architecture 'bart_bass'"),
        (["bart_base", "encoder_layer=3"], "did you mean 'encoder_layers'?"),
        (["bart_base", "encoder_layers=many"], "encoder_layers='many' is no int"),
        (["bart_base", "encoder_layers"], "is not FIELD=VALUE"),
        (["bart_base", "encoder_attention_heads=7"], "must be divisible"),
        ([str(tmp_path)], "config.json"),
    ):
        assert table.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
