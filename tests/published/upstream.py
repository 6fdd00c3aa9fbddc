"""The articles and summaries of the facts' sources, out of the files that hold them.

They are long and not ours, so they are read from where they were published, at fixed commits.
"""

import ast
import re
from typing import Any

_RAW = "https://raw.githubusercontent.com"
HF = (
    f"{_RAW}/huggingface/transformers/0481e9271bc23d364a8db91f746b924009f9ffe8"
    "/tests/models/bart/test_modeling_bart.py"
)
RUST = f"{_RAW}/guillaume-be/rust-bert/6db859ef097edfdda338004b4d60deebf6a3ab66/tests/bart.rs"
REPRO = (
    f"{_RAW}/danieldeutsch/repro/fa7be030ab3aeb67600c2185110764707b5cabb2"
    "/models/lewis2020/tests/fixtures/expected-output.json"
)


def constants(source: str, function: str) -> dict[str, Any]:
    """Name -> value of the literals that a function of a Python file assigns; nothing is run."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            break
    else:
        raise LookupError(f"there is no function {function} in the file")
    found = {}
    for statement in ast.walk(node):
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            try:
                found[statement.targets[0].id] = ast.literal_eval(statement.value)
            except ValueError:
                continue  # computed
    return found


def rust_strings(source: str, function: str) -> list[str]:
    """The article and the pieces of the summary: the long string literals of a Rust function."""
    _, _, rest = source.partition(f"fn {function}(")
    if not rest:
        raise LookupError(f"there is no function {function} in the file")
    body = re.sub(r"^\s*//.*$", "", rest.partition("#[test]")[0], flags=re.MULTILINE)
    literals = re.findall(r'"((?:[^"\\]|\\.)*)"', body, flags=re.DOTALL)
    texts = [re.sub(r"\\\n\s*", "", text).replace('\\"', '"') for text in literals]
    return [text for text in texts if len(text) > 60]


def without_specials(text: str) -> str:
    return re.sub("</s>|<s>|<pad>", "", text)
