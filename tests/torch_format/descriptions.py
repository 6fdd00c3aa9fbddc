"""What `read_torch` found, in the words of `describe` in `tools/goldens/_torch_contents.py`."""

from typing import Any

import numpy as np

from bart_hk.torch_format import Namespace
from bart_hk.torch_format.pickles import Symbol


def describe(value: Any, expected: Any, storages: dict[int, int] | None = None) -> Any:
    """`value` as JSON. `expected` tells tensors from other arrays, and how far into its storage
    each tensor begins, so that storages can be compared."""
    storages = {} if storages is None else storages
    if isinstance(value, np.ndarray):
        data = value.tobytes().hex()
        if not isinstance(expected, dict) or "tensor" not in expected:
            return {"array": value.dtype.name, "shape": list(value.shape), "data": data}
        assert not value.flags.writeable
        address = value.__array_interface__["data"][0]
        memory = address - expected["offset"] * value.itemsize
        return {
            "tensor": value.dtype.name,
            "shape": list(value.shape),
            "strides": [n // value.itemsize for n in value.strides]
            if value.size
            else expected["strides"],
            "offset": expected["offset"],
            "storage": storages.setdefault(memory, len(storages)) if value.size else None,
            "data": data,
        }
    if isinstance(value, Symbol):
        return {"symbol": str(value)}
    if isinstance(value, dict):
        kind = "namespace" if isinstance(value, Namespace) else "dict"
        known = _parts(expected, kind, len(value))
        pairs = [pair or [None, None] for pair in known]
        return {
            kind: [
                [describe(k, a, storages), describe(v, b, storages)]
                for (k, v), (a, b) in zip(value.items(), pairs, strict=True)
            ]
        }
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        parts = zip(value, _parts(expected, kind, len(value)), strict=True)
        found = [describe(v, e, storages) for v, e in parts]
        return {"tuple": found} if kind == "tuple" else found
    if isinstance(value, set):
        return {"set": sorted(value)}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    assert value is None or type(value) in (bool, int, float, str), value
    return value


def _parts(expected: Any, kind: str, length: int) -> list[Any]:
    """What is expected of the parts of a container; nothing where it is another container."""
    parts = expected.get(kind) if isinstance(expected, dict) else expected
    return parts if isinstance(parts, list) and len(parts) == length else [None] * length
