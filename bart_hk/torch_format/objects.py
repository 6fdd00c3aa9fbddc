"""What the names in torch's and fairseq's pickles stand for: the allow-list.

`rule` makes plain values of them: tensors become arrays, mappings dicts, omegaconf's nodes their
values. Objects of fairseq that hold no weights (meters, tasks) become their bare name.
"""

import math
import operator
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from bart_hk.errors import CheckpointError, shown
from bart_hk.torch_format.pickles import Elements, Mapping, Node, Rule, Symbol

MAX_DIMENSIONS = 32

STORAGE_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "ComplexDoubleStorage": np.dtype(np.complex128),
    "ComplexFloatStorage": np.dtype(np.complex64),
    "UntypedStorage": np.dtype(np.uint8),
}
_TORCH_DTYPES = {
    **{str(dtype): dtype for dtype in STORAGE_DTYPES.values()},
    **{name: np.dtype(name) for name in ("uint16", "uint32", "uint64")},
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "half": np.dtype(np.float16),
    "long": np.dtype(np.int64),
    "int": np.dtype(np.int32),
}


class Namespace(dict):
    """An `argparse.Namespace`, as which fairseq stored its arguments; `write_torch` writes one."""


class Storage(NamedTuple):
    """A run of numbers in the file."""

    buffer: Any  # the mapped file
    begin: int  # of the storage in it, in bytes
    size: int  # in bytes
    dtype: np.dtype


class Container(Protocol):
    """The file around the pickle."""

    def storage(self, dtype: np.dtype, key: str, size: int) -> Storage:
        """The storage that a tensor of the pickle refers to, `size` in bytes."""

    def take(self, array_bytes: int) -> None:
        """Count what an array will hold; CheckpointError where that is absurd."""


# Whatever these modules define is read as its bare name, or dropped: nothing of it is needed.
_INERT = ("fairseq.", "fairseq_cli.", "omegaconf.", "typing.", "hydra.")
_BUILTIN_TYPES = {
    *"bool bytes dict float int list object str tuple type".split(),
    "long",
    "unicode",
}


def known(symbol: Symbol) -> bool:
    """Whether a checkpoint may name `symbol`."""
    module, name = symbol
    return (
        symbol in _RULES
        or symbol in _NAMES
        or (module + ".").startswith(_INERT)
        or (module == "builtins" and name in _BUILTIN_TYPES)
        or (module in ("torch", "torch.storage") and name in STORAGE_DTYPES)
        or (module == "torch" and name in _TORCH_DTYPES)
    )


def rules(container: Container) -> Callable[[Symbol], Rule]:
    """The rule of every symbol that is `known`, for `pickles.resolve`."""
    tensors = _Tensors(container)
    own: dict[Symbol, Rule] = {
        Symbol("", "persistent id"): tensors.storage,
        **{Symbol("torch._utils", name): tensors.tensor for name in _REBUILD_TENSOR},
        Symbol("torch._utils", "_rebuild_tensor_v3"): tensors.typed_tensor,
    }

    def rule(symbol: Symbol) -> Rule:
        found = own.get(symbol) or _RULES.get(symbol)
        if found:
            return found
        if symbol.module == "omegaconf.nodes":
            return _omegaconf_value
        if (symbol.module + ".").startswith(_INERT):
            return _inert
        raise CheckpointError(f"calls {shown(str(symbol))}, which no checkpoint needs")

    return rule


# --- Tensors --------------------------------------------------------------------------------------

_REBUILD_TENSOR = ("_rebuild_tensor", "_rebuild_tensor_v2")


class _Tensors:
    def __init__(self, container: Container):
        self._container = container

    def storage(self, node: Node) -> tuple[tuple[()], Callable[[list[Any]], Any]]:
        """("storage", type, key, device, length[, view]) -> Storage."""
        dtype, key, length, view = storage_id(node)
        storage = self._container.storage(dtype, key, length * dtype.itemsize)
        if view is not None:
            _, offset, count = view
            if not 0 <= offset <= offset + count <= length:
                raise CheckpointError(f"has a view that leaves its storage {shown(key)}")
            begin = storage.begin + offset * dtype.itemsize
            storage = storage._replace(begin=begin, size=count * dtype.itemsize)
        return (), lambda _: storage

    def tensor(self, node: Node) -> tuple[tuple[Any, ...], Callable[[list[Any]], Any]]:
        """(storage, offset, size, stride, ...) -> array."""
        return node.args[:4], lambda values: self._array(*values)

    def typed_tensor(self, node: Node) -> tuple[tuple[Any, ...], Callable[[list[Any]], Any]]:
        """(storage, offset, size, stride, requires_grad, hooks, dtype, ...) -> array."""

        def make(values: list[Any]) -> np.ndarray:
            storage, offset, size, stride, dtype = values
            if not isinstance(dtype, Symbol) or dtype.name not in _TORCH_DTYPES:
                raise CheckpointError(f"has a tensor of the unknown dtype {shown(str(dtype))}")
            return self._array(storage, offset, size, stride, _TORCH_DTYPES[dtype.name])

        return (*node.args[:4], *node.args[6:7]), make

    def _array(
        self, storage: Any, offset: Any, size: Any, stride: Any, dtype: np.dtype | None = None
    ) -> np.ndarray:
        """A read-only array over the mapped file, once it is known to stay within its storage."""
        whole = isinstance(storage, Storage) and type(offset) is int and offset >= 0
        whole = whole and type(size) is tuple and type(stride) is tuple
        if not whole or len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
            raise CheckpointError("has a tensor that is not described as one")
        if not all(type(n) is int and 0 <= n < 1 << 62 for n in (*size, *stride)):
            raise CheckpointError("has a tensor with an impossible size or stride")
        dtype = dtype or storage.dtype
        count = math.prod(size)
        last = offset + sum(map(operator.mul, (n - 1 for n in size), stride))
        if count and (last + 1) * dtype.itemsize > storage.size:
            raise CheckpointError(
                f"has a tensor of size {_short(size)}, stride {_short(stride)} and offset {offset} "
                f"that leaves its storage of {storage.size} bytes"
            )
        self._container.take(count * dtype.itemsize)
        if not count:
            if math.prod(n or 1 for n in size) >= 1 << 40:
                raise CheckpointError("has a tensor with an impossible size or stride")
            array = np.empty(size, dtype)
            array.flags.writeable = False
            return array
        array = np.ndarray(
            size,
            dtype,
            storage.buffer,
            storage.begin + offset * dtype.itemsize,
            tuple(n * dtype.itemsize for n in stride),
        )
        array.flags.writeable = False
        return array


def storage_id(node: Node) -> tuple[np.dtype, str, int, tuple[Any, int, int] | None]:
    """(dtype, key, length, view) of a persistent id; the length in elements."""
    (name,) = node.args
    if not isinstance(name, tuple) or len(name) not in (5, 6) or name[0] != "storage":
        what = name[0] if isinstance(name, tuple) and name else name
        raise CheckpointError(f"refers to {shown(what)} outside of it: only tensors are read")
    _, kind, key, _, length, *more = name
    view = more[0] if more else None
    good = isinstance(kind, Symbol) and kind.module in ("torch", "torch.storage")
    good = good and kind.name in STORAGE_DTYPES and isinstance(key, str)
    good = good and type(length) is int and 0 <= length < 1 << 60
    if view is not None:
        good = good and isinstance(view, tuple) and len(view) == 3
        good = good and all(type(n) is int and 0 <= n < 1 << 60 for n in view[1:])
    if not good:
        raise CheckpointError("has a storage that is not described as one")
    return STORAGE_DTYPES[kind.name], key, length, view


def _short(numbers: tuple[int, ...]) -> str:
    return shown(str(tuple(numbers)))


def _parameter(node: Node) -> Any:
    """(tensor, requires_grad, hooks[, state]) -> array."""
    return node.args[:1], lambda values: _only_array(values[0])


def _only_array(value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise CheckpointError("has a parameter that holds no tensor")
    return value


def _subclass(node: Node) -> Any:
    """(function, type, arguments, state) of a tensor with attributes -> array."""
    function, args = node.args[0], node.args[2]
    if not isinstance(function, Symbol) or function.module != "torch._utils":
        raise CheckpointError(f"calls {shown(str(function))}, which no checkpoint needs")
    if not isinstance(args, tuple):
        raise CheckpointError("has a tensor that is not described as one")
    # One more node, which must outlive this call: the graph is known by identity.
    node.state = Node(function, args)
    return (node.state,), lambda values: _only_array(values[0])


def _device(node: Node) -> Any:
    """("cuda", 0) -> "cuda:0"."""
    return node.args, lambda values: ":".join(str(v) for v in values)


# --- Python's own ---------------------------------------------------------------------------------


def _mapping(node: Node) -> Any:
    """An OrderedDict, a Counter: with items set after it was made, or with a list of pairs."""
    if node.pairs is None and len(node.args) == 1:

        def make(values: list[Any]) -> Mapping:
            (content,) = values
            pairs = content.items() if isinstance(content, dict) else _listed(content)
            return Mapping([part for key, value in pairs for part in (key, value)])

        return node.args, make
    return node.pairs or (), Mapping


def _set(node: Node) -> Any:
    return node.args, lambda values: Elements(list(_listed(values[0])) if values else [])


def _default_mapping(node: Node) -> Any:
    return node.pairs or (), Mapping


def _sequence(kind: Callable[[Any], Any]) -> Rule:
    return lambda node: (node.args, lambda values: kind(*map(_listed, values)))


def _listed(value: Any) -> Any:
    if not isinstance(value, list | tuple | set):  # a list of 64 MB of bytes is large
        raise CheckpointError(f"makes a sequence of {shown(value)}")
    return value


def _number(kind: Callable[[Any], Any]) -> Rule:
    return lambda node: (node.args, lambda values: kind(*values))


def _path(node: Node) -> Any:
    return node.args, lambda values: str(PurePosixPath(*values))


def _encoded(node: Node) -> Any:
    """(text, "latin1") -> bytes, which protocol 2 cannot hold."""

    def make(values: list[Any]) -> bytes:
        text, encoding = values
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise CheckpointError(f"encodes as {shown(encoding)}")
        return text.encode("latin-1")

    return node.args, make


def _namespace(node: Node) -> Any:
    parts = () if node.state is None else (node.state,)

    def make(values: list[Any]) -> Mapping:
        state = values[0] if values else {}
        if not isinstance(state, dict):
            raise CheckpointError("has a Namespace without names")
        return Mapping([part for pair in state.items() for part in pair], Namespace)

    return parts, make


def _inert(node: Node) -> Any:
    """An object of fairseq or omegaconf: an enum's member is its value, others are their name."""
    if len(node.args) == 1 and isinstance(node.args[0], str | int | float):
        return node.args, lambda values: values[0]
    return (), lambda _: node.symbol


# --- omegaconf ------------------------------------------------------------------------------------


def _state_item(node: Node, *names: str) -> Any:
    """What the state of an object holds under the first of `names` that is there."""
    pairs = node.state.pairs if isinstance(node.state, Node) and node.state.pairs else []
    for name in names:
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if key == name:
                return value
    return None


def _omegaconf_container(node: Node) -> Any:
    """Its content without parents and types; "???" and "${...}" in its place stay text."""
    return (_state_item(node, "_content", "content"),), lambda values: values[0]


def _omegaconf_value(node: Node) -> Any:
    return (_state_item(node, "_val"),), lambda values: values[0]


# --- numpy ----------------------------------------------------------------------------------------


def _numpy_dtype(node: Node) -> Any:
    """("f8", False, True) and a state that begins (3, "<", ...) -> dtype."""
    state = node.state if isinstance(node.state, tuple) else (3, "<")
    order = state[1] if len(state) > 1 else None
    name = node.args[0] if node.args else None
    if not isinstance(name, str) or name[:1] not in "fiubc" or order not in ("<", "|", "="):
        raise CheckpointError(f"has an array of the unknown dtype {shown(name)}")
    return (), lambda _: np.dtype(name)


def _numpy_scalar(node: Node) -> Any:
    return node.args, lambda values: np.frombuffer(values[1], values[0], 1)[0].item()


def _numpy_array(node: Node) -> Any:
    """_reconstruct(...) with the state (version, shape, dtype, in Fortran's order, bytes)."""

    def make(values: list[Any]) -> np.ndarray:
        ((_, shape, dtype, fortran, data),) = values
        if not isinstance(dtype, np.dtype) or not isinstance(data, bytes):
            raise CheckpointError("has an array that is not described as one")
        array = np.frombuffer(data, dtype)
        return array.reshape(shape, order="F" if fortran is True else "C")

    return (node.state,), make


# --- The list -------------------------------------------------------------------------------------


def _symbols(rule: Any, module: str, *names: str) -> dict[Symbol, Rule]:
    return {Symbol(module, name): rule for name in names}


_RULES: dict[Symbol, Rule] = {
    **_symbols(_parameter, "torch._utils", "_rebuild_parameter", "_rebuild_parameter_with_state"),
    **_symbols(_subclass, "torch._tensor", "_rebuild_from_type_v2"),
    **_symbols(_sequence(tuple), "torch", "Size"),
    **_symbols(_device, "torch", "device"),
    **_symbols(_mapping, "collections", "OrderedDict", "Counter"),
    **_symbols(_default_mapping, "collections", "defaultdict"),
    **_symbols(_mapping, "builtins", "dict"),
    **_symbols(_set, "builtins", "set", "frozenset"),
    **_symbols(_sequence(list), "builtins", "list"),
    **_symbols(_sequence(tuple), "builtins", "tuple"),
    **_symbols(_number(complex), "builtins", "complex"),
    **_symbols(_path, "pathlib", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"),
    **_symbols(_encoded, "_codecs", "encode"),
    **_symbols(_namespace, "argparse", "Namespace"),
    **_symbols(_omegaconf_container, "omegaconf.dictconfig", "DictConfig"),
    **_symbols(_omegaconf_container, "omegaconf.listconfig", "ListConfig"),
    **_symbols(_numpy_dtype, "numpy", "dtype"),
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _RULES |= _symbols(_numpy_scalar, _module, "scalar")
    _RULES |= _symbols(_numpy_array, _module, "_reconstruct")

# What is only ever an argument, never called by a rule of its own.
_NAMES = {
    *(Symbol("torch._utils", name) for name in (*_REBUILD_TENSOR, "_rebuild_tensor_v3")),
    Symbol("torch", "Tensor"),
    Symbol("torch._tensor", "Tensor"),
    Symbol("torch.nn.parameter", "Parameter"),
    Symbol("numpy", "ndarray"),
    Symbol("copyreg", "_reconstructor"),
}
