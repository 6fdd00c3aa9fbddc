"""Files that are damaged, lie, or want to run something: one exception, no effect, little memory.

All of them are read in one process of its own, whose address space may grow by no more than
`MEMORY`; each must be refused within `SECONDS` of processor time.
"""

import io
import json
import os
import pickle
import pickletools
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from bart_hk.errors import CheckpointError
from bart_hk.torch_format import pickles, read_torch
from tests.torch_format.torch_bytes import (
    integer,
    legacy_bytes,
    program,
    storage,
    tensor,
    text,
    zip_file,
)

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 300 << 20  # bytes
SECONDS = 10
DATA = {"0": np.arange(1, 5, dtype=np.float32).tobytes()}

READ_ALL = """
import json, resource, sys, time
from pathlib import Path
from bart_hk.checkpoint.files import CheckpointError, TensorFile
from bart_hk.checkpoint.msgpack_file import ArrayFile
from bart_hk.torch_format import read_torch

def open_tensors(path):
    file = (ArrayFile if path.suffix == ".msgpack" else TensorFile)(path)
    return {name: file.read(name) for name in file.names()}

pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sorted(Path(sys.argv[1]).iterdir()):
    begin = time.process_time()
    try:
        (read_torch if path.suffix == ".pt" else open_tensors)(path)
        found = ["nothing", "it was read"]
    except CheckpointError as error:
        found = ["CheckpointError", str(error)]
    except BaseException as error:
        found = [type(error).__name__, str(error)]
    print(json.dumps([path.name, *found, time.process_time() - begin]), flush=True)
"""


# --- Pickles --------------------------------------------------------------------------------------


class _Runs:
    """Pickled as a call of `function` with `args`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def _calls(name):
    """A pickle that creates the file ./ran when it is loaded."""
    payload = "open('ran', 'w')"
    value = {
        "system": _Runs(os.system, "touch ran"),
        "eval": _Runs(eval, payload),
        "exec": _Runs(exec, payload),
        "getattr": _Runs(getattr, "", "upper"),
        "open": _Runs(open, "ran", "w"),
        "popen": _Runs(subprocess.Popen, ["touch", "ran"]),
        "inside": {"model": OrderedDict(a=[_Runs(os.mkdir, "ran")])},
        "as a key": {(1, _Runs(os.mkdir, "ran")): 1},
    }[name]
    return value


def _raw(opcodes):
    return b"\x80\x02" + opcodes + b"."


def _nested(opener, closer, count=20_000):
    return _raw(opener * count + closer * count)


def _laughs(container):
    """Each value holds the one before it twice: 2 ** 60 of them, in a few bytes."""
    opcodes = b"]q\0"
    for i in range(60):
        get = b"h" + bytes([i])
        opcodes += b"0"
        if container == "list":
            opcodes += b"](" + get + get + b"eq" + bytes([i + 1])
        else:
            opcodes += get + get + b"\x86q" + bytes([i + 1])
    return _raw(opcodes)


def _colliding_keys():
    """20,000 keys with equal hashes: tuples' hashes have no secret in them."""
    values = (b"(" + integer(i) + integer((1 << 61) - 1 + i % 2) + b"tN" for i in range(20_000))
    return _raw(b"}(" + b"".join(values) + b"u")


GLOBAL = b"c__builtin__\nset\n"
PICKLES = {
    # Calls of what does not belong into a checkpoint, each in protocols 0 to 4.
    **{
        f"calls {name} {protocol}": (
            lambda name=name, protocol=protocol: pickle.dumps(_calls(name), protocol),
            r"names \S+, which no checkpoint needs; nothing was run",
        )
        for name in ("system", "eval", "exec", "getattr", "open", "popen", "inside", "as a key")
        for protocol in range(5)
    },
    "load from bytes": (
        lambda: _raw(b"ctorch.storage\n_load_from_bytes\nX\0\0\0\0\x85R"),
        r"names torch\.storage\._load_from_bytes",
    ),
    "a module's attribute": (lambda: _raw(b"ctorch\nos.system\n)R"), r"names torch\.os\.system"),
    "stack global": (
        lambda: (
            b"\x80\x04" + text("posix") + text("system") + b"\x93" + text("touch ran") + b"\x85R."
        ),
        r"names posix\.system",
    ),
    "instance": (lambda: b"(S'touch ran'\nios\nsystem\n.", r"names os\.system"),
    "object": (lambda: b"(cos\nsystem\nS'touch ran'\no.", r"names os\.system"),
    "extension": (lambda: _raw(b"\x82\x01"), "uses the opcode EXT1"),
    "persistent text": (lambda: b"Pos.system\n.", "uses the opcode PERSID"),
    "calls a type": (lambda: _raw(b"ctorch\nFloatStorage\n" + integer(2**40) + b"\x85R"), "calls"),
    "calls a tensor": (lambda: _raw(b"ctorch\nTensor\n" + integer(2**40) + b"\x85R"), "calls"),
    "a large list": (
        lambda: _raw(b"c__builtin__\nlist\n" + integer(2**40) + b"\x85R"),
        "makes a sequence of 1099511627776",
    ),
    "calls a value": (lambda: _raw(b"K\x01)R"), "calls what is no name"),
    "a module": (
        lambda: _raw(b"(" + text("module") + GLOBAL + text("a") + text("b") + b"tQ"),
        "refers to module outside of it",
    ),
    # Shapes that are too deep, too many, or never end.
    "deep lists": (lambda: _nested(b"]", b"a")[:-2] + b".", "nested too deeply"),
    "deep tuples": (lambda: _nested(b"K\x01", b"\x85"), "left over"),
    "deeper tuples": (lambda: _raw(b")" + b"\x85" * 20_000), "nested too deeply"),
    "deep marks": (lambda: _nested(b"(", b"t"), "nested too deeply"),
    "deep dictionaries": (
        lambda: _raw(b"}K\x01" * 20_000 + b"N" + b"s" * 20_000),
        "nested too deeply",
    ),
    "deep calls": (lambda: _nested(GLOBAL, b"\x85R"), "left over|calls"),
    "deep states": (
        lambda: _raw(b"cargparse\nNamespace\n)\x81" * 20_000 + b"b" * 19_999),
        "nested too deeply",
    ),
    "laughing lists": (lambda: _laughs("list"), "too many or nested"),
    "laughing tuples": (lambda: _laughs("tuple"), "too many or nested"),
    "list in itself": (lambda: _raw(b"]q\0h\0a"), "contains itself"),
    "namespace in itself": (
        lambda: _raw(b"cargparse\nNamespace\n)\x81q\0}X\x01\0\0\0ah\0sb"),
        "contains itself",
    ),
    "opcodes": (lambda: _raw(b"N0" * 300_000 + b"N"), "more than 500000 opcodes"),
    "many lists": (lambda: _raw(b"(" + b"]" * 499_990 + b"l"), None),
    "many memos": (lambda: b"\x80\x04(" + b"]\x94" * 249_990 + b"l.", None),
    "many pairs": (lambda: _raw(b"}(" + b"]K\x01" * 1000 + b"u"), "no plain value"),
    # Sizes that are not there.
    "text of 4 GB": (lambda: _raw(b"X\xff\xff\xff\xff"), "is damaged"),
    "text of 2^63": (lambda: b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.", "is damaged"),
    "bytes of 2^63": (lambda: b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "is damaged"),
    "bytearray of 2^40": (lambda: b"\x80\x05\x96\0\0\0\0\0\1\0\0.", "is damaged"),
    "negative text": (lambda: _raw(b"T\xff\xff\xff\xff"), "is damaged"),
    "long number": (lambda: _raw(b"\x8b" + struct.pack("<i", 10**6) + b"\x11" * 10**6), "bits"),
    "long digits": (lambda: b"L" + b"9" * 10**6 + b"L\n.", "is damaged"),
    "digits": (lambda: b"I" + b"9" * 4000 + b"\n.", "bits"),
    "long name": (lambda: _raw(b"c" + b"a" * 10**7 + b"\nb\n"), "is damaged"),
    "name without end": (lambda: b"\x80\x02c" + b"a" * 10**6, "is damaged"),
    "memo": (lambda: _raw(b"Nr\xff\xff\xff\xff0j\xff\xff\xff\x7f"), "has not defined"),
    "memo below zero": (lambda: b"Np-1\n.", "memo index"),
    "protocol": (lambda: b"\x80\x09N.", "protocol 9"),
    "empty": (lambda: b"", "is damaged"),
    "no end": (lambda: b"\x80\x02}", "is damaged"),
    "no value": (lambda: _raw(b""), "empty stack"),
    "below a mark": (lambda: _raw(b"K\x01(\x85"), "empty stack"),
    "no mark": (lambda: _raw(b"K\x01t"), "has not begun"),
    "unknown opcode": (lambda: _raw(b"\xff"), "is damaged"),
    "text that is none": (lambda: _raw(b"X\x01\0\0\0\xff"), "is damaged"),
    "not a number": (lambda: b"Fabc\n.", "is damaged"),
    # Keys.
    "list as a key": (lambda: _raw(b"}]Ns"), "no plain value"),
    "set of lists": (lambda: b"\x80\x04\x8f(]\x90.", "no plain value"),
    "nested key": (lambda: _raw(b"}K\x01\x85\x85Ns"), "no plain value"),
    "large key": (lambda: _raw(b"}" + integer(2**100) + b"Ns"), "no plain value"),
    "colliding keys": (_colliding_keys, "no plain value"),
    "key without value": (lambda: _raw(b"}(K\x01u"), "a key has no value"),
    "items of a number": (lambda: _raw(b"K\x01(K\x01e"), "fills what is no container"),
    "namespace of numbers": (lambda: _raw(b"cargparse\nNamespace\n)\x81K\x01b"), "without names"),
    # numpy and others.
    "array of objects": (
        lambda: pickle.dumps(np.asarray([1, "a"], object), 2),
        "unknown dtype O8",
    ),
    "array that is too short": (
        lambda: pickle.dumps(np.zeros(8), 2).replace(b"K\x08\x85", b"K\x09\x85"),
        "cannot be made",
    ),
    "array of nothing": (
        lambda: _raw(b"cnumpy.core.multiarray\n_reconstruct\n)R"),
        "cannot be made|not described",
    ),
    "scalar of nothing": (lambda: _raw(b"cnumpy.core.multiarray\nscalar\n)R"), "cannot be made"),
    "encoding": (
        lambda: _raw(b"c_codecs\nencode\n" + text("a") + text("zip") + b"\x86R"),
        "encodes as zip",
    ),
}


# --- Tensors --------------------------------------------------------------------------------------

FUNCTION = b"ctorch._utils\n_rebuild_tensor_v2\n"
TENSORS = {
    "size": (tensor(size=(5,)), "leaves its storage of 16 bytes"),
    "large size": (tensor(size=(1 << 61,)), "leaves its storage"),
    "size beyond 64 bits": (tensor(size=(1 << 64,)), "impossible size"),
    "product beyond 64 bits": (tensor((1 << 33, 1 << 33), (1 << 20, 1)), "leaves its storage"),
    "negative size": (tensor(size=(-4,)), "impossible size"),
    "negative stride": (tensor(stride=(-1,), offset=3), "impossible size"),
    "large stride": (tensor((2,), (1 << 40,)), "leaves its storage"),
    "offset": (tensor(offset=1), "leaves its storage"),
    "large offset": (tensor(offset=1 << 62), "leaves its storage"),
    "negative offset": (tensor(offset=-1), "not described as one"),
    "more strides": (tensor((4,), (1, 1)), "not described as one"),
    "dimensions": (tensor((1,) * 40, (1,) * 40), "not described as one"),
    "expansion": (tensor((1 << 40,), (0,)), "more than 16 times the file's size"),
    "expansions": (b"(" + tensor((1 << 20,), (0,)) * 20 + b"t", "more than 16 times"),
    "large and empty": (tensor((0, 1 << 61), (1, 1)), "impossible size"),
    "storage length": (tensor(where=storage(length=5)), "claims 20 bytes"),
    "large storage": (tensor(where=storage(length=1 << 59)), "claims"),
    "negative storage": (tensor(where=storage(length=-1)), "not described as one"),
    "absent storage": (tensor(where=storage("7")), "the storage 7, which the file lacks|claims"),
    "climbing storage": (tensor(where=storage("../data.pkl")), "storage ../data.pkl, which"),
    "storage of another": (tensor(where=storage(kind="os FloatStorage")), "names os.FloatStorage"),
    "unknown storage": (tensor(where=storage(kind="torch QInt8Storage")), "torch.QInt8Storage"),
    "no storage": (tensor(where=b"N"), "not described as one"),
    "no arguments": (FUNCTION + b")R", "cannot be made"),
    "a text as its size": (
        FUNCTION + b"(" + storage() + b"K\x00" + text("a") + text("b") + b"\x89}tR",
        "not described as one",
    ),
    "a short storage": (b"(" + text("storage") + b"tQ", "refers to storage outside of it"),
    "a number as a storage": (b"K\x01Q", "refers to 1 outside of it"),
    "an unnamed storage": (
        b"(" + text("storage") + b"K\x01" + text("0") + text("cpu") + b"K\x04tQ",
        "not described as one",
    ),
    "a parameter of nothing": (b"ctorch._utils\n_rebuild_parameter\nN\x85R", "holds no tensor"),
    "a subclass that calls": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(c__builtin__\nset\nctorch\nTensor\n)NtR",
        "calls builtins.set",
    ),
    "an unknown dtype": (
        b"ctorch._utils\n_rebuild_tensor_v3\n("
        + storage(length=16, kind="torch.storage UntypedStorage")
        + b"K\x00K\x04\x85K\x01\x85\x89}ctorch\nFloatStorage\ntR",
        "unknown dtype torch.FloatStorage",
    ),
}


# --- Containers -----------------------------------------------------------------------------------

GOOD = program(tensor())


def _zip(entries=None, **changes):
    """A zip file with a good tensor; `changes` replace members, `entries` is called on each."""
    out = io.BytesIO()
    members = {"data.pkl": GOOD, "byteorder": b"little", "data/0": DATA["0"], "version": b"3\n"}
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in {**members, **changes}.items():
            info = zipfile.ZipInfo(f"archive/{name}")
            if entries:
                entries(info)
            archive.writestr(info, data)
    return out.getvalue()


def _renamed(name):
    """A zip file in whose directory and headers `data/0` has another name of the same length."""
    stored = _zip().replace(b"archive/data/0", name.ljust(14, b"x"))
    assert stored.count(name.ljust(14, b"x")) == 2
    return stored


def _patched(position, data, **changes):
    """A zip file with other bytes at a position counted from the signature of its end."""
    whole = bytearray(_zip(**changes))
    begin = whole.rindex(b"PK\5\6") + position
    whole[begin : begin + len(data)] = data
    return bytes(whole)


def _entry_patched(offset, data):
    """A zip file with other bytes in the directory's entry of data/0, counted from its begin."""
    whole = bytearray(_zip())
    begin = whole.rindex(b"archive/data/0") - 46 + offset
    whole[begin : begin + len(data)] = data
    return bytes(whole)


def _zip64(begin, size, count):
    """A zip file whose zip64 directory says something else."""
    whole = _zip()
    end = whole.rindex(b"PK\5\6")
    record = b"PK\6\6" + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, count, count, size, begin)
    locator = b"PK\6\7" + struct.pack("<IQI", 0, end, 1)
    return whole[:end] + record + locator + whole[end:]


def _bomb():
    """A member that would take a gigabyte if it were unpacked."""

    def compress(info):
        info.compress_type = zipfile.ZIP_DEFLATED

    return _zip(compress, **{"data/0": bytes(1 << 24)})


def _overlapping():
    """Two members that share their bytes."""
    whole = bytearray(_zip(**{"data/1": DATA["0"]}))
    entry = whole.rindex(b"archive/data/1") - 46
    other = whole.rindex(b"archive/data/0") - 46
    whole[entry + 42 : entry + 46] = whole[other + 42 : other + 46]
    return bytes(whole)


def _twice():
    whole = _zip(**{"data/1": DATA["0"]})
    return whole.replace(b"archive/data/1", b"archive/data/0")


LEGACY = legacy_bytes(GOOD, DATA)
CONTAINERS = {
    "nothing.pt": (b"", "is empty"),
    "text.pt": (b"Not Found\n", "is no file of torch.save; it begins with b'Not Found"),
    "pointer.pt": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "gzip.pt": (b"\x1f\x8b\x08" + bytes(100), "is no file of torch.save"),
    "zip of others.pt": (_zip().replace(b"data.pkl", b"data.txt"), "without data.pkl"),
    "script.pt": (_zip(**{"constants.pkl": b"."}), "is a TorchScript program"),
    "big-endian.pt": (_zip(byteorder=b"big"), "was written on a big-endian machine"),
    "no storage.pt": (_renamed(b"archive/data/9"), "the storage 0, which the file lacks"),
    "parent.pt": (_renamed(b"archive/../../"), r"archive/\.\./\.\./', which climbs out"),
    "absolute.pt": (_renamed(b"/etc/passwd/"), "/etc/passwd/xx', which climbs out"),
    "drive.pt": (_renamed(b"C:/a"), "which climbs out"),
    "backslash.pt": (_renamed(b"archive\\data\\"), "which climbs out"),
    "zero byte.pt": (_renamed(b"archive/data\0"), "which climbs out"),
    "not UTF-8.pt": (_renamed(b"archive/\xff"), "which climbs out"),
    "compressed.pt": (_bomb(), "is compressed or encrypted"),
    "encrypted.pt": (_entry_patched(8, b"\1"), "is compressed or encrypted"),
    "overlapping.pt": (_overlapping(), "is not where the zip directory says|leaves its place"),
    "twice.pt": (_twice(), "archive/data/0 is there twice"),
    "member too large.pt": (_entry_patched(20, struct.pack("<2I", 999, 999)), "leaves its place"),
    "member of 4 GB.pt": (_entry_patched(20, b"\xfe\xff\xff\xff" * 2), "leaves its place"),
    "member elsewhere.pt": (
        _entry_patched(42, b"\xff\xff\xff\x7f"),
        "where the zip directory says",
    ),
    "wrong checksum.pt": (_entry_patched(16, bytes(4)), r"archive/data/0 is damaged \(CRC"),
    "many members.pt": (_patched(8, b"\xff\xff\xff\xff"), "claims 65535 members"),
    "fewer members.pt": (_patched(8, b"\2\0\2\0"), "its zip directory is damaged"),
    "directory elsewhere.pt": (_patched(16, b"\xff\xff\xff\x0f"), "its zip directory is damaged"),
    "zip64 elsewhere.pt": (_zip64(2**63, 2**63, 2**63), "its zip directory is damaged"),
    "zip64 many.pt": (_zip64(0, 100, 2**63), "claims 9223372036854775808 members"),
    "comment.pt": (_zip() + b"more", "its zip directory is damaged"),
    "legacy end.pt": (LEGACY[:-1], "is truncated: storage 0 has 16 bytes, 15 are left"),
    "legacy length.pt": (
        LEGACY[:-24] + b"\xff" * 8 + LEGACY[-16:],
        "is truncated: storage 0 has 7",
    ),
    "legacy magic.pt": (legacy_bytes(GOOD, DATA, magic=2**70 + 0x19 * 2**72), "is no file of"),
    "legacy order.pt": (legacy_bytes(GOOD, DATA, system={"little_endian": False}), "big-endian"),
    "legacy system.pt": (legacy_bytes(GOOD, DATA, system=[1]), "big-endian"),
    "legacy keys.pt": (legacy_bytes(GOOD, DATA, keys=["0", "0"]), "list of storages is damaged"),
    "legacy no keys.pt": (legacy_bytes(GOOD, DATA, keys=[]), "the storage 0, which the file lacks"),
    "legacy other keys.pt": (legacy_bytes(GOOD, DATA, keys=[1]), "list of storages is damaged"),
    "legacy number.pt": (legacy_bytes(GOOD, DATA, keys=1), "list of storages is damaged"),
    "legacy tensors.pt": (legacy_bytes(GOOD, DATA, keys={}), "list of storages is damaged"),
}


def _safetensors(header, data=bytes(64), length=None):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def _tensor_entry(shape=(16,), begin=0, end=64, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


SAFETENSORS = {
    "nothing": (b"", "is damaged or no safetensors"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "length": (_safetensors({}, length=2**63), "claims a header of 9223372036854775808 bytes"),
    "100 MB": (_safetensors(b" " * (1 << 25)), "a header at most 16777216"),
    "outside": (_safetensors({"a": _tensor_entry((32,), 0, 128)}), "is damaged or no"),
    "overlap": (_safetensors({"a": _tensor_entry(), "b": _tensor_entry()}), "is damaged or no"),
    "hole": (_safetensors({"a": _tensor_entry((4,), 48, 64)}), "is damaged or no"),
    "backwards": (_safetensors({"a": _tensor_entry((16,), 64, 0)}), "is damaged or no"),
    "shape": (_safetensors({"a": _tensor_entry((17,))}), "is damaged or no"),
    "overflow": (_safetensors({"a": _tensor_entry((2**33, 2**33))}), "is damaged or no"),
    "negative": (_safetensors({"a": _tensor_entry((-16,))}), "is damaged or no"),
    "dtype": (_safetensors({"a": _tensor_entry(dtype="X32")}), "is damaged or no"),
    "float8": (_safetensors({"a": _tensor_entry((64,), dtype="F8_E4M3")}), "cannot read a"),
    "large and empty": (
        _safetensors({"a": _tensor_entry((0, 2**62), 0, 0), "b": _tensor_entry()}),
        "cannot read a",
    ),
    "deep": (_safetensors(b'{"a":' + b"[" * 10**6), "is damaged or no"),
    "list": (_safetensors(b"[]"), "is damaged or no"),
    "not UTF-8": (_safetensors(b"\xff\xfe"), "is damaged or no"),
}


# --- Flax's msgpack -------------------------------------------------------------------------------


def _flax_array(
    shape=b"\x91\x02", dtype=b"\xa7float32", data=bytes(8), claimed=None, count=b"\x93"
):
    """A map with the array "a", whose bytes claim to be so many."""
    claimed = len(data) if claimed is None else claimed
    content = count + shape + dtype + b"\xc6" + struct.pack(">I", claimed) + data
    return b"\x81\xa1a\xc9" + struct.pack(">Ib", len(content), 1) + content


_WHOLE = _flax_array()


def _chunked(shape, chunks=b"\x81\xa10" + _WHOLE[3:]):
    return (
        b"\x81\xa1a\x83\xb9__msgpack_chunked_array__\xc3\xa5shape" + shape + b"\xa6chunks" + chunks
    )


MSGPACK = {
    "good": (_WHOLE, None),
    "good chunks": (_chunked(b"\x81\xa10\x02"), None),
    "nothing": (b"", "claims 1 bytes more; it has 0"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "no map": (b"\x93\x01\x02", "claims 1 bytes more"),
    "a number": (b"\x07", "it begins with no map of names"),
    "no beginning": (b"\xc1", "is 0xc1, which begins nothing"),
    "more": (_WHOLE + b"\xc0", "goes on for 1 bytes after its end"),
    "4 billion entries": (b"\xdf\xff\xff\xff\xff\xa1a\xc0", "claims 1 bytes more"),
    "many small entries": (b"\xdd\x10\x00\x00\x00" + b"\xc0" * 200_000, "more than 100000 entries"),
    "many small arrays": (b"\xdd\x10\x00\x00\x00" + b"\x90" * 200_000, "more than 100000 entries"),
    "deep maps": (b"\x81\xa1a" * 10**6, "more than 32 maps are in each other"),
    "deep arrays": (b"\x91" * 10**6, "more than 32 maps are in each other"),
    "wide and deep": (b"\xdd\xff\xff\xff\xff" * 10**6, "more than 32 maps are in each other"),
    "a long name": (b"\x81\xdb\x7f\xff\xff\xff" + b"a" * 2000, "there should be a name"),
    "no name": (b"\x81\x01\x02", "there should be a name"),
    "name not UTF-8": (b"\x81\xa1\xff\x02", "is not in UTF-8"),
    "a name twice": (b"\x82\xa1a\xc0\xa1a\xc0", "the name a comes twice"),
    "4 GB of text": (b"\x81\xa1a\xdb\xff\xff\xff\xff", "claims 4294967295 bytes more"),
    "4 GB of extension": (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "claims 4294967295 bytes more"),
    "4 GB of array": (_flax_array(claimed=2**32 - 1), "does not end where it should"),
    "too few bytes": (_flax_array(claimed=4), "does not end where it should"),
    "cut": (_WHOLE[:-1], "bytes more; it has"),
    "another extension": (b"\x81\xa1a\xd4\x05\x00", "an extension 5, which Flax has not"),
    "a huge shape": (
        _flax_array(b"\x92" + (b"\xcf" + b"\xff" * 8) * 2),
        r"claims the shape \(18446744073709551615, 18446744073709551615\)",
    ),
    "a shape too large": (
        _flax_array(b"\x91\x03"),
        r"claims the shape \(3,\) of float32; it has 8",
    ),
    "a shape too small": (_flax_array(b"\x91\x01"), "claims the shape"),
    "a negative shape": (_flax_array(b"\x92\xff\xfe"), "has no numbers for a shape"),
    "a shape of words": (_flax_array(b"\x91\xa1a"), "has no numbers for a shape"),
    "a shape of truth": (_flax_array(b"\x91\xc3"), "has no numbers for a shape"),
    "no shape": (_flax_array(b"\xc0"), "there is no array's shape"),
    "many dimensions": (_flax_array(b"\xdd\xff\xff\xff\xff"), "there is no array's shape"),
    "large and empty": (_flax_array(b"\x92\x00\xcf" + b"\xff" * 8, data=b""), "cannot read a"),
    "two parts": (_flax_array(count=b"\x92"), "there is no array's shape"),
    "object": (_flax_array(dtype=b"\xa6object"), "its dtype is object"),
    "an unknown dtype": (_flax_array(dtype=b"\xa5a\nbcd"), "its dtype is"),
    "chunks of more": (_chunked(b"\x81\xa10\x03"), "which its chunks do not give"),
    "chunks without a shape": (_chunked(b"\xc0"), "which its chunks do not give"),
    "no chunks": (_chunked(b"\x81\xa10\x02", b"\x80"), "an array in chunks has no shape, or no ch"),
    "chunks that are none": (
        _chunked(b"\x81\xa10\x02", b"\x81\xa10\xc0"),
        "an array in chunks has",
    ),
    "half a chunk": (_chunked(b"\x81\xa10\x02")[:40], "it has"),
}


# --- The tests ------------------------------------------------------------------------------------


def _make_all(folder: Path) -> dict[str, str | None]:
    """Write all files; gives the message that each must lead to, None where it may be read."""
    expected = {}
    programs = {name: (make(), message) for name, (make, message) in PICKLES.items()}
    programs |= {f"tensor {n}": (program(opcodes), m) for n, (opcodes, m) in TENSORS.items()}
    for name, (opcodes, message) in programs.items():
        zip_file(folder / f"{name}, zip.pt", opcodes, DATA)
        storages = DATA if name.startswith("tensor ") else {}
        (folder / f"{name}, legacy.pt").write_bytes(legacy_bytes(opcodes, storages))
        expected[f"{name}, zip.pt"] = message
        # A legacy file also says how large its storages are, in the same pickle.
        also = "|list of storages is damaged|claims 16 bytes" if storages else ""
        expected[f"{name}, legacy.pt"] = message and message + also
    for name, (content, message) in CONTAINERS.items():
        (folder / name).write_bytes(content)
        expected[name] = message
    for name, (content, message) in SAFETENSORS.items():
        (folder / f"{name}.safetensors").write_bytes(content)
        expected[f"{name}.safetensors"] = message
    for name, (content, message) in MSGPACK.items():
        (folder / f"{name}.msgpack").write_bytes(content)
        expected[f"{name}.msgpack"] = message
    return expected


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """{file: (its folder, the expected message, the exception, its message, seconds)}"""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "files").mkdir()
    (folder / "place").mkdir()
    expected = _make_all(folder / "files")
    command = [sys.executable, "-c", READ_ALL, str(folder / "files"), str(MEMORY)]
    # Each thread's arena of malloc takes 64 MiB of addresses.
    limits = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **limits}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder / "place", env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == expected.keys()
    return {name: (folder, message, *found[name]) for name, message in expected.items()}


FILES = [
    *(f"{name}, {kind}.pt" for name in PICKLES for kind in ("zip", "legacy")),
    *(f"tensor {name}, {kind}.pt" for name in TENSORS for kind in ("zip", "legacy")),
    *CONTAINERS,
    *(f"{name}.safetensors" for name in SAFETENSORS),
    *(f"{name}.msgpack" for name in MSGPACK),
]


@pytest.mark.parametrize("name", FILES)
def test_hostile_file(outcomes, name):
    folder, expected, kind, message, seconds = outcomes[name]
    if expected is None:
        assert (kind, message) == ("nothing", "it was read")
    else:
        assert kind == "CheckpointError", message
        assert re.search(expected, message), message
        assert str(folder / "files" / name) in message and "\n" not in message
        assert len(message) < 500 + len(str(folder)), message
    assert seconds < SECONDS


def test_nothing_was_run(outcomes):
    """The payloads work: the library that everybody uses runs them. Ours has left no trace."""
    folder = next(iter(outcomes.values()))[0]
    assert list((folder / "place").iterdir()) == []
    program = pickle.dumps(_Runs(os.mkdir, "ran"), 2)
    command = [sys.executable, "-c", f"import pickle; pickle.loads({program!r})"]
    subprocess.run(command, cwd=folder / "place", check=True)
    assert [p.name for p in (folder / "place").iterdir()] == ["ran"]


@pytest.mark.parametrize("whole", [_zip(), LEGACY], ids=["zip", "legacy"])
def test_truncated_at_every_byte(tmp_path, whole):
    path = tmp_path / "x.pt"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as caught:
            read_torch(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    assert list(read_torch(path)) == ["0"]


def test_every_opcode_is_known_or_refused():
    """None is left to fall through: pickletools and the machine agree on what there is."""
    refused = set()
    for opcode in pickletools.opcodes:
        argument = b"" if opcode.arg is None else b"1\n1\n" + bytes(8)
        source = b"(NNN" + opcode.code.encode("latin-1") + argument
        try:
            pickles.read(source, 0, len(source), lambda symbol: True, "x")
        except CheckpointError as error:
            if "uses the opcode" in str(error):
                refused.add(opcode.name)
    assert refused == {"EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER"}
