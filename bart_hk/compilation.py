"""jax's persistent compilation cache, on by default: a second process compiles nothing again."""

import functools
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax


@functools.cache  # once per process, the warning included
def use_persistent_cache() -> None:
    """Keeps compiled programs in `$XDG_CACHE_HOME/bart_hk/jax` (`~/.cache` by default).

    A cache that the user has set (`jax_compilation_cache_dir`, or the variable
    JAX_COMPILATION_CACHE_DIR) is left as it is, and so are all its limits. A folder that cannot be
    written is reported once, as a warning.
    """
    options: Any = jax.config  # its attributes are made at run time
    if options.jax_compilation_cache_dir or not options.jax_enable_compilation_cache:
        return
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "bart_hk" / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        warnings.warn(
            f"compiled programs are not kept: {folder} cannot be written ({error.strerror}); set "
            "JAX_COMPILATION_CACHE_DIR to a folder of yours",
            stacklevel=3,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # jax's default of one second keeps nothing of a small model.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
