"""Run by the oracle's interpreter: the real `fairseq-interactive` and `fairseq-generate`.

The folder holds `model.pt`, `data` (their data folder) and `cases.json`: of each case the "command"
and its "arguments", and for interactive "lines" of symbols. What a case prints goes into
`NAME.out`.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import torch
from fairseq_cli import generate, interactive

COMMANDS = {"generate": generate.cli_main, "interactive": interactive.cli_main}


def main(folder: Path) -> None:
    load = torch.load
    torch.load = lambda *args, **kwargs: load(*args, **{"weights_only": False, **kwargs})
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        command, arguments = case["command"], case["arguments"]
        if "lines" in case:
            path = folder / f"{name}.in"
            path.write_text("".join(f"{line}\n" for line in case["lines"]), encoding="utf-8")
            arguments += ["--input", str(path)]
        sys.argv = [
            f"fairseq-{command}",
            str(folder / "data"),
            *("--path", str(folder / "model.pt"), "--task", "translation", "--cpu"),
            *("--source-lang", "source", "--target-lang", "target"),
            *arguments,
        ]
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            COMMANDS[command]()
        (folder / f"{name}.out").write_text(out.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
