import json

import pytest

from bart_hk.cli import plot

LINES = [
    {
        "event": "train",
        "update": 10,
        "loss": 5.0,
        "ppl": 148.4,
        "gnorm": 2.0,
        "lr": 1e-4,
        "mfu": 0.3,
    },
    {
        "event": "train",
        "update": 20,
        "loss": 4.0,
        "ppl": 54.6,
        "gnorm": 1.0,
        "lr": 9e-5,
        "mfu": 0.3,
    },
    {"event": "valid", "update": 10, "loss": 4.5, "mcc": 12.0, "best": True},
    {"event": "valid", "update": 20, "loss": 4.7, "mcc": 11.0, "best": False},
]


def write(folder, lines=LINES):
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_panel_for_each_quantity_with_its_numbers(tmp_path):
    figure = plot.plot(plot.read_log(write(tmp_path / "run")), "run")
    panels = {axes.get_title().split(" ")[0]: axes for axes in figure.axes}
    assert list(panels) == ["loss", "ppl", "gnorm", "lr", "mfu", "mcc"]
    trained, validated, best = panels["loss"].lines
    assert trained.get_xydata().tolist() == [[10, 5.0], [20, 4.0]]
    assert validated.get_xydata().tolist() == [[10, 4.5], [20, 4.7]]
    assert best.get_xydata().tolist() == [[10, 4.5]]
    assert panels["ppl"].get_yscale() == "log"


def test_the_command_writes_a_png(tmp_path, capsys):
    run = write(tmp_path / "run")
    plot.main([str(run)])
    assert (run / "log.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.strip() == str(run / "log.png")
    plot.main([str(run / "log.jsonl"), "--output", str(tmp_path / "other.png")])
    assert (tmp_path / "other.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "log.jsonl does not exist; give the checkpoint.save_dir of a run"),
        ("", "log.jsonl is empty: the run has logged nothing yet"),
        ('{"event": "train", "update": 1, "loss": 1.0}\n{"event": ', "log.jsonl, line 2 is not"),
        ('{"loss": 1.0}\n', "log.jsonl, line 1 is not a line of a training run's log"),
        ("[1]\n", "log.jsonl, line 1 is not"),
        ('{"event": "train", "update": 1, "loss": NaN}\n', "the log has no number to draw"),
    ],
)
def test_bad_logs(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(SystemExit) as ended:
        plot.main([str(tmp_path)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("bart-hk-plot: error: ") and said.count("\n") == 1 and message in said


def test_an_output_that_cannot_be_written(tmp_path, capsys):
    run = write(tmp_path / "run")
    with pytest.raises(SystemExit) as ended:
        plot.main([str(run), "-o", str(tmp_path / "no" / "such" / "folder.png")])
    assert ended.value.code == 1
    assert "folder.png: No such file or directory" in capsys.readouterr().err
