"""A golden that an oracle would no longer give is found."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bart_hk.torch_format import Namespace, write_torch

ROOT = Path(__file__).resolve().parents[2]

RECORDER = """
import json, sys
from pathlib import Path
out = Path(sys.argv[1])
made_by = {"command": "x", "versions": {"oracle": VERSION}, "input_sha256": "0"}
(out / "ids.json").write_text(json.dumps({"made_by": made_by, "ids": IDS, "score": SCORE}))
"""


@pytest.fixture
def make_goldens(tmp_path, monkeypatch):
    """The tool, on a repository of its own."""
    path = ROOT / "tools" / "make_goldens.py"
    spec = importlib.util.spec_from_file_location("make_goldens", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, folder in {"ROOT": "", "RECORDERS": "recorders", "GOLDENS": "goldens"}.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.setattr(module, name, tmp_path / folder)
    return module


def record(make_goldens, ids, score=1.5, version="1"):
    text = RECORDER.replace("IDS", repr(ids)).replace("SCORE", repr(score))
    text = text.replace("VERSION", repr(version))
    (make_goldens.RECORDERS / "text.py").write_text(text)


def run(make_goldens, *arguments):
    return make_goldens.main(["--oracle", sys.executable, *arguments])


def test_recording_replaces_the_folder(make_goldens):
    record(make_goldens, [1, 2])
    stale = make_goldens.GOLDENS / "text" / "stale.json"
    stale.parent.mkdir()
    stale.write_text("{}")
    assert run(make_goldens) == 0
    assert [p.name for p in stale.parent.iterdir()] == ["ids.json"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, None),
        ({"score": 1.500001}, None),  # another machine
        ({"version": "2"}, None),
        ({"score": 1.51}, "text/ids.json: /score is 1.51, not 1.5"),
        ({"ids": [1, 3]}, "text/ids.json: /ids/1 is 3, not 2"),
        ({"ids": [1]}, "text/ids.json: /ids has 1 entries, not 2"),
        ({"ids": [1, 2.0]}, "text/ids.json: /ids/1 is 2.0, not 2"),
        ({"ids": {"a": 1}}, "text/ids.json: /ids is {'a': 1}, not [1, 2]"),
    ],
)
def test_check_finds_a_difference_and_changes_nothing(make_goldens, capsys, change, complaint):
    record(make_goldens, [1, 2])
    run(make_goldens)
    committed = (make_goldens.GOLDENS / "text" / "ids.json").read_bytes()
    record(make_goldens, **{"ids": [1, 2], **change})
    capsys.readouterr()
    assert run(make_goldens, "--check") == (complaint is not None)
    said = capsys.readouterr().err.splitlines()
    assert said == ([complaint] if complaint else [])
    assert (make_goldens.GOLDENS / "text" / "ids.json").read_bytes() == committed


def test_files_that_are_missing_or_new_are_differences(make_goldens, capsys):
    record(make_goldens, [1])
    run(make_goldens)
    folder = make_goldens.GOLDENS / "text"
    shutil.move(folder / "ids.json", folder / "other.json")
    assert run(make_goldens, "--check", "text") == 1
    assert capsys.readouterr().err.splitlines() == [
        "text/other.json: committed, but no longer recorded",
        "text/ids.json: recorded, but not committed",
    ]


def test_arrays(make_goldens, tmp_path):
    def write(name, **arrays):
        made_by = {"command": "x", "versions": {}, "input_sha256": "0"}
        save_file(arrays, tmp_path / name, {"made_by": json.dumps(made_by)})
        return tmp_path / name

    ids, x = np.arange(3), np.linspace(0, 1, 4)
    old = write("old.safetensors", ids=ids, x=x, gone=x)

    def differences(**arrays):
        return list(make_goldens.differences(old, write("new.safetensors", **arrays)))

    assert differences(ids=ids, x=x + 1e-6, gone=x) == []
    assert differences(ids=ids + 1, x=x, gone=x) == ["ids differs"]
    assert differences(ids=ids, x=x + 1e-3, gone=x) == ["x differs by up to 0.001"]
    assert differences(ids=ids, x=x, new=x) == [
        "gone is only in the old one",
        "new is only in the new one",
    ]
    assert differences(ids=ids, x=x[:3], gone=x) == ["x is float64(3,), not float64(4,)"]


def test_checkpoints(make_goldens, tmp_path):
    def write(name, x, **rest):
        write_torch(tmp_path / name, {"model": {"x": x}, "args": Namespace(lr=[0.5], **rest)})
        return tmp_path / name

    x = np.linspace(0, 1, 4)
    old = write("old.pt", x, arch="bart_base")

    def differences(*args, **rest):
        return list(make_goldens.differences(old, write("new.pt", *args, **rest)))

    assert differences(x + 1e-6, arch="bart_base") == []
    assert differences(x + 1e-3, arch="bart_base") == ["/'model'/'x' differs by up to 0.001"]
    assert differences(x, arch="bart_large") == [
        "/object/'args'/'arch' is 'bart_large', not 'bart_base'"
    ]


def test_an_unknown_recorder_is_named(make_goldens, capsys):
    record(make_goldens, [1])
    with pytest.raises(SystemExit):
        run(make_goldens, "txt")
    assert "no recorder 'txt'; there are: text" in capsys.readouterr().err


def test_a_recorder_that_fails_is_not_overlooked(make_goldens):
    (make_goldens.RECORDERS / "text.py").write_text("raise SystemExit(3)")
    with pytest.raises(Exception, match="exit status 3"):
        run(make_goldens, "--check")
