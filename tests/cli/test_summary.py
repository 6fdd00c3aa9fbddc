import json
import statistics

import pytest

from bart_hk.cli import summary


@pytest.fixture
def runs(tmp_path):
    """Two rates, two seeds each; one run has not validated yet."""
    numbers = {0: (1e-3, 1, 70.0), 1: (1e-3, 2, 72.5), 2: (1e-2, 1, 60.0), 10: (1e-2, 2, None)}
    for number, (lr, seed, accuracy) in numbers.items():
        folder = tmp_path / str(number)
        (folder / "training").mkdir(parents=True)
        options = {"optimization.lr": lr, "common.seed": seed, "task.max_positions": 512}
        (folder / "training" / "run.json").write_text(json.dumps(options))
        if accuracy is not None:
            about = {"training": {"update": 9, "valid": {"loss": 0.5, "accuracy": accuracy}}}
            (folder / "bart_hk.json").write_text(json.dumps(about))
    (tmp_path / "notes").mkdir()
    return tmp_path


def test_the_table_has_what_sets_runs_apart_and_their_median(runs, capsys):
    assert summary.main([str(runs), "--tsv"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["run", "common.seed", "optimization.lr", "update", "loss", "accuracy"]
    assert [row[0] for row in rows[1:5]] == ["0", "1", "2", "10"]
    assert rows[1] == ["0", "1", "0.001", "9", "0.5", "70"]
    assert rows[4] == ["10", "2", "0.01", "0", "-", "-"]
    found = {row[0]: row[-1] for row in rows[5:]}
    values = [70.0, 72.5, 60.0]
    assert found == {
        "median of 3": "70",
        "mean of 3": f"{statistics.fmean(values):.4g}",
        "sd of 3": f"{statistics.stdev(values):.4g}",
    }


def test_by_a_key_and_for_people(runs, capsys):
    assert summary.main([str(runs), "--by", "optimization.lr"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "median of 2, optimization.lr=0.001" in lines[5] and lines[5].endswith("71.25")
    assert len(lines) == 8  # the other rate has one run with numbers
    assert len({line.index("loss") for line in lines[:1]}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["."], "has no run in a folder of its own"),
        (["RUNS", "--by", "task.lr"], "--by task.lr: the runs differ in common.seed, optimizat"),
    ],
)
def test_errors(runs, tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    arguments = [str(runs) if argument == "RUNS" else argument for argument in arguments]
    assert summary.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
