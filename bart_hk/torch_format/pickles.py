"""Pickles read as data: nothing that a file names is imported, called or even looked up.

A pickle is a program for a stack machine, whose REDUCE calls whatever function the file names.
Here the opcodes only record what the file asks for, as a graph of `Node`s; `resolve` then makes
plain values of it by rules that the caller has for the names it knows (`objects.py`). Both
run without recursion, hash nothing but short keys, and are bounded in every direction.

Opcodes: `pickletools` of the standard library, which decodes them without executing any.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from bart_hk.errors import CheckpointError, shown

MAX_BYTES = 64 << 20  # of one pickle; that of bart.large takes 100 kB
MAX_OPCODES = 500_000  # bart.large with its optimizer's state takes 60,000
MAX_DEPTH = 100  # containers within containers
MAX_VALUES = 4_000_000  # with everything that is referred to twice counted twice
MAX_LINE = 1 << 16  # bytes of an argument of protocol 0
MAX_INTEGER_BITS = 512
MAX_TUPLE_KEYS = 10_000  # their hashes, unlike those of strings, can be made to collide

_REMEDY = "open it with the program that wrote it, if you trust it, and save the bare tensors"


class Symbol(NamedTuple):
    """A name in a module that a file refers to. It stands for nothing that could run."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(eq=False, slots=True)
class Node:
    """An object as the file describes it: what to call with which arguments, and what to put in."""

    symbol: Symbol
    args: tuple[Any, ...] = ()
    items: list[Any] | None = None  # elements that are appended or added
    pairs: list[Any] | None = None  # key, value, key, value, ...
    state: Any = None  # what the object's __setstate__ would get


DICT = Symbol("builtins", "dict")
LIST = Symbol("builtins", "list")
SET = Symbol("builtins", "set")
PERSISTENT = Symbol("", "persistent id")  # args: (id,)


class Mapping(NamedTuple):
    """What a rule returns for a mapping, so that no key is hashed before it has been looked at."""

    values: list[Any]  # key, value, key, value, ...
    kind: Callable[[dict[Any, Any]], Any] = dict


class Elements(NamedTuple):
    """The same for a set."""

    values: list[Any]


Make = Callable[[list[Any]], Any]
Rule = Callable[
    [Node], tuple[Sequence[Any], Make]
]  # the parts to resolve, and what becomes of them


class Source(Protocol):
    """Bytes: `bytes` or an `mmap`."""

    def __getitem__(self, key: slice, /) -> bytes: ...
    def __len__(self) -> int: ...
    def find(self, sub: bytes, start: int = ..., end: int = ..., /) -> int: ...


class Program(NamedTuple):
    """What a pickle describes."""

    root: Any
    persistent: list[Node]  # every persistent id in it
    end: int  # where in the source the pickle ended


def read(
    source: Source, begin: int, end: int, known: Callable[[Symbol], bool], where: str
) -> Program:
    """Read the pickle that begins at `begin` of `source` and ends at or before `end`.

    Args:
        known: says which names may occur.
        where: what to call the pickle in messages.

    Raises:
        CheckpointError: it is no pickle, is damaged, exceeds a bound, or names what is not known.
    """
    file = _File(source, begin, min(end, begin + MAX_BYTES))
    machine = _Machine(known)
    count = 0
    try:
        for opcode, arg, _ in pickletools.genops(file):  # type: ignore[arg-type]
            count += 1
            if count > MAX_OPCODES:
                raise CheckpointError(f"has more than {MAX_OPCODES} opcodes")
            machine.execute(opcode.name, arg)
        root = machine.result()
    except CheckpointError as error:
        raise CheckpointError(f"{where}: the pickle {error}") from None
    except (ValueError, OverflowError) as error:  # from pickletools
        raise CheckpointError(f"{where}: the pickle is damaged: {shown(str(error))}") from None
    return Program(root, machine.persistent, file.position)


class _File:
    """A part of a source as the file object that pickletools reads from."""

    def __init__(self, source: Source, begin: int, end: int):
        self._source = source
        self._end = end
        self.position = begin

    def read(self, size: int) -> bytes:
        data = self._source[self.position : min(self.position + size, self._end)]
        self.position += len(data)
        return data

    def readline(self) -> bytes:
        limit = min(self.position + MAX_LINE, self._end)
        newline = self._source.find(b"\n", self.position, limit)
        return self.read((limit if newline < 0 else newline + 1) - self.position)

    def tell(self) -> int:
        return self.position


_PUSH = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_DICT": DICT, "EMPTY_LIST": LIST, "EMPTY_SET": SET}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # as Python 2 called them


class _Machine:
    """The stack machine, which records instead of calling."""

    def __init__(self, known: Callable[[Symbol], bool]):
        self.persistent: list[Node] = []
        self._known = known
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        root = self._pop()
        if self._stack or self._marks:
            raise CheckpointError("is damaged: values are left over")
        return root

    def execute(self, name: str, arg: Any) -> None:
        stack = self._stack
        if name in _PUSH:
            if type(arg) is int and arg.bit_length() > MAX_INTEGER_BITS:
                raise CheckpointError(f"holds a number of {arg.bit_length()} bits")
            stack.append(bytes(arg) if name == "BYTEARRAY8" else arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            index = len(self._memo) if name == "MEMOIZE" else arg
            if not 0 <= index < 1 << 32:
                raise CheckpointError("is damaged: a memo index is out of range")
            self._memo[index] = self._top()
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            if arg not in self._memo:
                raise CheckpointError("is damaged: it refers to what it has not defined")
            stack.append(self._memo[arg])
        elif name in _TUPLES:
            values = [self._pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(values)))
        elif name in _EMPTY:
            stack.append(Node(_EMPTY[name]))
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in _METHODS:
            _METHODS[name](self)
        elif name in ("GLOBAL", "INST"):
            module, _, attribute = arg.partition(" ")
            symbol = self._symbol(module, attribute)
            stack.append(Node(symbol, tuple(self._pop_mark())) if name == "INST" else symbol)
        elif name == "PROTO":
            if arg > 5:
                raise CheckpointError(f"has protocol {arg}; 0 to 5 exist")
        elif name not in ("FRAME", "STOP"):
            raise CheckpointError(f"uses the opcode {name}, which no checkpoint needs")

    def _top(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise CheckpointError("is damaged: it takes from an empty stack")
        return self._stack[-1]

    def _pop(self) -> Any:
        value = self._top()
        del self._stack[-1]
        return value

    def _pop_mark(self) -> list[Any]:
        if not self._marks:
            raise CheckpointError("is damaged: it ends what it has not begun")
        begin = self._marks.pop()
        values = self._stack[begin:]
        del self._stack[begin:]
        return values

    def _symbol(self, module: Any, name: Any) -> Symbol:
        if not isinstance(module, str) or not isinstance(name, str):
            raise CheckpointError("is damaged: a name is no text")
        symbol = Symbol(_MODULES.get(module, module), name)
        if not self._known(symbol):
            raise CheckpointError(
                f"names {shown(str(symbol))}, which no checkpoint needs; nothing was run: {_REMEDY}"
            )
        return symbol

    def _call(self) -> None:
        args, symbol = self._pop(), self._pop()
        if not isinstance(symbol, Symbol) or not isinstance(args, tuple):
            raise CheckpointError("is damaged: it calls what is no name")
        if symbol == ("copyreg", "_reconstructor") and args and isinstance(args[0], Symbol):
            symbol, args = args[0], ()  # how protocols 0 and 1 make an object
        self._stack.append(Node(symbol, args))

    def _call_with_keywords(self) -> None:
        self._pop()
        self._call()

    def _object(self) -> None:
        symbol, *args = self._pop_mark() or [None]
        self._stack += [symbol, tuple(args)]
        self._call()

    def _node(self) -> Node:
        node = self._top()
        if not isinstance(node, Node):
            raise CheckpointError("is damaged: it fills what is no container")
        return node

    def _build(self) -> None:
        state = self._pop()
        self._node().state = state

    def _extend(self, values: list[Any]) -> None:
        node = self._node()
        if node.items is None:
            node.items = values
        else:
            node.items += values

    def _update(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise CheckpointError("is damaged: a key has no value")
        node = self._node()
        if node.pairs is None:
            node.pairs = values
        else:
            node.pairs += values

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._update([key, value])

    def _persistent(self) -> None:
        node = Node(PERSISTENT, (self._pop(),))
        self.persistent.append(node)
        self._stack.append(node)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._stack.append(self._symbol(module, name))

    def _frozenset(self) -> None:
        node = Node(SET)
        node.items = self._pop_mark()
        self._stack.append(node)

    def _dictionary(self) -> None:
        values = self._pop_mark()
        self._stack.append(Node(DICT))
        self._update(values)

    def _list(self) -> None:
        node = Node(LIST)
        node.items = self._pop_mark()
        self._stack.append(node)


_METHODS: dict[str, Callable[[_Machine], Any]] = {
    "TUPLE": lambda m: m._stack.append(tuple(m._pop_mark())),
    "LIST": _Machine._list,
    "DICT": _Machine._dictionary,
    "FROZENSET": _Machine._frozenset,
    "APPEND": lambda m: m._extend([m._pop()]),
    "APPENDS": lambda m: m._extend(m._pop_mark()),
    "ADDITEMS": lambda m: m._extend(m._pop_mark()),
    "SETITEM": _Machine._set_item,
    "SETITEMS": lambda m: m._update(m._pop_mark()),
    "REDUCE": _Machine._call,
    "NEWOBJ": _Machine._call,
    "NEWOBJ_EX": _Machine._call_with_keywords,
    "OBJ": _Machine._object,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
    "STACK_GLOBAL": _Machine._stack_global,
    "POP": _Machine._pop,
    "POP_MARK": _Machine._pop_mark,
    "DUP": lambda m: m._stack.append(m._top()),
}


def resolve(root: Any, rules: Callable[[Symbol], Rule], where: str) -> Any:
    """The value that `root` describes, each `Node` made by the rule of its symbol.

    What the file refers to several times is made once and shared.

    Raises:
        CheckpointError: a value contains itself, is nested too deeply or becomes too large, a key
            is no short plain value, or a rule refuses a node.
    """
    resolver = _Resolver(rules)
    try:
        return resolver.run(root)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: the pickle {error}") from None
    except (TypeError, ValueError, LookupError, OverflowError, AttributeError) as error:
        # A rule met other arguments than it expects.
        what = f"{resolver.current} that cannot be made: {shown(str(error))}"
        raise CheckpointError(f"{where}: the pickle describes a {what}") from None


@dataclasses.dataclass(eq=False, slots=True)
class _Open:
    """A value that is being made."""

    raw: Any
    parts: Sequence[Any]
    make: Make
    values: list[Any] = dataclasses.field(default_factory=list)
    size: int = 1
    depth: int = 0

    def add(self, value: Any, size: int, depth: int) -> None:
        self.values.append(value)
        self.size += size
        self.depth = max(self.depth, depth)


class _Resolver:
    def __init__(self, rules: Callable[[Symbol], Rule]):
        self._rules = rules
        self._done: dict[int, tuple[Any, int, int]] = {}  # by id: value, size, depth
        self._tuple_keys = 0
        self.current: Symbol | None = None

    def run(self, root: Any) -> Any:
        whole = _Open(None, (root,), lambda values: values[0])
        stack = [whole]
        active: set[int] = set()
        while True:
            current = stack[-1]
            self.current = getattr(current.raw, "symbol", None)
            if len(current.values) < len(current.parts):
                raw = current.parts[len(current.values)]
                if isinstance(raw, Symbol) or not isinstance(raw, Node | tuple):
                    current.add(raw, 1, 0)
                elif id(raw) in self._done:
                    current.add(*self._done[id(raw)])
                elif id(raw) in active:
                    raise CheckpointError("holds a value that contains itself")
                else:
                    active.add(id(raw))
                    stack.append(_Open(raw, *self._parts(raw)))
                if current.size > MAX_VALUES or len(stack) + current.depth > MAX_DEPTH:
                    raise CheckpointError("describes values that are too many or nested too deeply")
                continue
            stack.pop()
            value = current.make(current.values)
            if current is whole:
                return value
            active.discard(id(current.raw))
            self._done[id(current.raw)] = value, current.size, current.depth + 1
            stack[-1].add(*self._done[id(current.raw)])

    def _parts(self, raw: Any) -> tuple[Sequence[Any], Make]:
        if isinstance(raw, tuple):
            return raw, tuple
        if raw.symbol == DICT and not raw.args:
            return raw.pairs or (), lambda values: self._dictionary(Mapping(values))
        if raw.symbol == LIST and not raw.args:
            return raw.items or (), list
        if raw.symbol == SET and not raw.args:
            return raw.items or (), lambda values: self._set(Elements(values))
        self.current = raw.symbol
        parts, make = self._rules(raw.symbol)(raw)
        return parts, lambda values: self._hashed(make(values))

    def _hashed(self, made: Any) -> Any:
        if isinstance(made, Mapping):
            return self._dictionary(made)
        return self._set(made) if isinstance(made, Elements) else made

    def _dictionary(self, made: Mapping) -> Any:
        keys, values = made.values[::2], made.values[1::2]
        for key in keys:
            self._check_key(key)
        return made.kind(dict(zip(keys, values, strict=True)))

    def _set(self, made: Elements) -> set[Any]:
        for value in made.values:
            self._check_key(value)
        return set(made.values)

    def _check_key(self, key: Any) -> None:
        """Refuse what is not hashable and what hashes badly on purpose."""
        if type(key) is tuple:
            self._tuple_keys += 1
            plain = len(key) <= 8 and self._tuple_keys <= MAX_TUPLE_KEYS
            plain = plain and all(_is_plain_key(part) for part in key)
        else:
            plain = _is_plain_key(key)
        if not plain:
            raise CheckpointError(f"has a key that is no plain value: {shown(key)}")


def _is_plain_key(key: Any) -> bool:
    if type(key) is int:
        return key.bit_length() <= 64
    return key is None or isinstance(key, str | bytes | bool | float | Symbol)
