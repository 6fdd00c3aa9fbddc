"""How the commands begin and end that ask a model something."""

import argparse
import re
import sys
from collections.abc import Iterable

from bart_hk.hub import BARTHubInterface


def parser(program: str, documentation: str | None) -> argparse.ArgumentParser:
    """Takes a model, its head and its dtype; the help is made of the command's docstring: what it
    does, more about it, examples."""
    parts = (documentation or "").split("\n\n")
    made = argparse.ArgumentParser(
        program,
        description=f"{parts[0].partition(': ')[2]}\n\n{parts[1]}",
        epilog=f"examples:\n\n{parts[2]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("model", help="what bart_hk.load takes: a folder, file, name, address")
    made.add_argument("--dtype", default="float32", help="of the computation")
    return made


def refuse_flags(arguments: argparse.Namespace, names: Iterable[str], what: str) -> None:
    """Raises ValueError for the first of these flags that is given, which does nothing for `what`;
    those that are not given are None, False or not there."""
    for name in names:
        value = getattr(arguments, name, None)
        if value is not None and value is not False:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} does nothing for {what}: leave it out")


def report_cut_rows(bart: BARTHubInterface) -> None:
    """Says on standard error how many rows the model could not read to their ends."""
    if bart.rows_cut:
        longest = min(bart.max_positions)
        print(f"rows cut to the {longest} tokens that are read: {bart.rows_cut}", file=sys.stderr)


def complain(program: str, error: Exception) -> int:
    """One line on standard error about what the user can mend; gives the exit code, 2."""
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    # What reads files speaks of the trainer's options, which are flags here.
    text = re.sub(r"\btask\.(\w+)=?", _as_flag, text)
    print(f"{program}: error: {' '.join(text.split())}", file=sys.stderr)
    return 2


def _as_flag(option: re.Match[str]) -> str:
    space = " " if option[0].endswith("=") else ""
    return f"--{option[1].replace('_', '-')}{space}"
