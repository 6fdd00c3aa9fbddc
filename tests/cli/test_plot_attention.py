"""`bart-hk-plot attention`: panels, labels, and what is refused."""

import pytest

from bart_hk.cli import plot
from bart_hk.cli.plot_attention import draw
from tests.hub.conftest import shared, text, tiny_params  # noqa: F401

SOURCE, TARGET = "It costs $5 or $6\n\u732b", "So what"


@pytest.fixture(scope="module")
def model(shared, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("plot") / "model"
    shared.save(folder)
    return str(folder)


def labels(ticks):
    return [tick.get_text() for tick in ticks]


def test_panels_and_labels(shared):  # noqa: F811
    weights = shared.attention(SOURCE, TARGET)
    source, target = map(shared.token_labels, (weights.src_tokens, weights.prev_output_tokens))
    figure = draw(weights, source, target, "a model")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        *("encoder, layer 0", "decoder, layer 0", "decoder, layer 1"),
        *("decoder to encoder, layer 0", "decoder to encoder, layer 1"),
    ]
    last = figure.axes[-1]
    assert labels(last.get_yticklabels()) == ["</s>", "<s>", "So", " what"]
    across = labels(last.get_xticklabels())
    assert across[:2] == ["<s>", "It"] and r" \$" in across and "\n" not in "".join(across)
    drawn = last.images[0].get_array()
    assert abs(drawn - weights.cross[1].mean(axis=0)).max() == 0
    by_head = draw(weights, source, target, "a model", layer=1)
    titles = [axes.get_title() for axes in by_head.axes]
    assert titles[0] == "decoder, layer 1, head 0" and len(titles) == 4  # the encoder has one layer
    with pytest.raises(ValueError, match="there is no layer 2: layers are 0 to 1"):
        draw(weights, source, target, "a model", layer=2)
    with pytest.raises(ValueError, match="90 tokens are more than can be labelled: 80 at most"):
        draw(weights, ["x"] * 90, target, "a model")


def test_the_command(model, tmp_path, capsys):
    output = tmp_path / "a.png"
    plot.main(["attention", model, SOURCE, TARGET, "-o", str(output)])
    assert output.read_bytes().startswith(b"\x89PNG") and output.stat().st_size > 10_000
    assert capsys.readouterr().out == f"{output}\n"
    first = output.read_bytes()
    plot.main(["attention", model, SOURCE, "-o", str(output), TARGET])  # in any order
    assert output.read_bytes() == first
    plot.main(["attention", model, SOURCE, "-o", str(output), "--layer", "0"])
    assert output.read_bytes() != first
    for arguments, message in (
        (["nowhere/at/all", "a"], "nowhere/at/all"),
        ([model, "a", "-o", str(tmp_path / "no" / "a.png")], "No such file or directory"),
        ([model, "a", "--layer", "7"], "there is no layer 7"),
    ):
        with pytest.raises(SystemExit) as exit:
            plot.main(["attention", *arguments])
        assert exit.value.code in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("bart-hk-plot: error: ") and message in line
