"""Compiles `decoding.cc` for the processor at hand, once, and tells XLA of its functions.

The library is kept beside jax's compiled programs (`bart_hk.compilation`), under a name that its
source, the compiler, jaxlib and the processor decide. Where there is no compiler or it fails,
`available` is False and everything runs on XLA's own operations.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("decoding.cc")
FUNCTIONS = ("bart_hk_linear", "bart_hk_attend", "bart_hk_remember", "bart_hk_add_norm")
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno"),
    *("-fno-trapping-math", "-shared", "-fPIC"),
)
_SECONDS = 120  # that a compiler may take


def folder() -> Path:
    """Where compiled libraries are kept: `$XDG_CACHE_HOME/bart_hk/kernels` (`~/.cache`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bart_hk" / "kernels"


@functools.cache  # once per process
def available() -> bool:
    """Can the functions be called on a CPU? The first call may compile them.

    `BART_HK_KERNELS=0` in the environment says no. A failure is logged once, with the compiler's
    first error.
    """
    if os.environ.get("BART_HK_KERNELS", "1") == "0":
        return False
    try:
        library = ctypes.CDLL(str(_library()))
        for name in FUNCTIONS:
            handler = jax.ffi.pycapsule(getattr(library, name))
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except (OSError, AttributeError, RuntimeError, subprocess.SubprocessError) as error:
        logger.info("decoding runs on XLA's own operations: %s", error)
        return False
    return True


def _library() -> Path:
    """The compiled library; compiles it where it is not there yet, or damaged."""
    compiler = next(filter(None, map(shutil.which, _compilers())), None)
    if compiler is None:
        raise RuntimeError(f"no C++ compiler is there ({', '.join(_compilers())})")
    described = [
        SOURCE.read_text(),
        compiler,
        str(os.stat(compiler).st_mtime_ns),
        importlib.metadata.version("jaxlib"),
        _processor(),
        *_FLAGS,
    ]
    name = hashlib.sha256("\0".join(described).encode()).hexdigest()[:32]
    path = folder() / f"{name}.so"
    if not _is_whole(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _compile(compiler, path)
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_whole(path: Path) -> bool:
    """Is it what `_compile` wrote? A library that is cut short would end the process."""
    try:
        return path.with_suffix(".sha256").read_text() == _digest(path)
    except OSError:
        return False


def _compilers() -> tuple[str, ...]:
    return (os.environ["CXX"],) if os.environ.get("CXX") else ("g++", "clang++", "c++")


def _processor() -> str:
    """What `-march=native` looks at: the machine's name for its processor and its abilities."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _compile(compiler: str, path: Path) -> None:
    """Compiles into `path`, which appears when it is whole."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        output = Path(scratch) / path.name
        command = [compiler, *_FLAGS, "-isystem", jax.ffi.include_dir(), str(SOURCE)]
        run = subprocess.run(
            [*command, "-o", str(output)], capture_output=True, text=True, timeout=_SECONDS
        )
        if run.returncode:
            errors = [line for line in run.stderr.splitlines() if "error" in line]
            first = (errors or run.stderr.splitlines() or ["no message"])[0]
            raise RuntimeError(f"{compiler} ended with {run.returncode}: {first}")
        digest = Path(scratch) / "digest"
        digest.write_text(_digest(output))
        output.replace(path)
        digest.replace(path.with_suffix(".sha256"))
