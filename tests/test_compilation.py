"""The persistent compilation cache, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

RUN = """
import warnings
import jax, jax.numpy as jnp
from bart_hk.compilation import use_persistent_cache
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    use_persistent_cache()
    use_persistent_cache()
print(len(caught), *(str(w.message) for w in caught))
print(jax.config.jax_compilation_cache_dir)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3))).block_until_ready()
print(sum(event.endswith("cache_hits") for event in hits))
"""


def run(**variables: str) -> list[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        env={**kept, "JAX_PLATFORMS": "cpu", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_a_second_process_starts_from_the_cache(tmp_path: Path):
    first = run(XDG_CACHE_HOME=str(tmp_path))
    assert first == ["0", str(tmp_path / "bart_hk" / "jax"), "0"]
    second = run(XDG_CACHE_HOME=str(tmp_path))
    assert second[:2] == first[:2] and int(second[2]) > 0


def test_a_cache_that_the_user_has_set_is_left_alone(tmp_path: Path):
    mine = str(tmp_path / "mine")
    found = run(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=mine)
    assert found[:2] == ["0", mine]
    assert not (tmp_path / "bart_hk").exists()


def test_a_cache_that_cannot_be_written_warns_once(tmp_path: Path):
    (tmp_path / "file").write_text("")
    warned, folder, hits = run(XDG_CACHE_HOME=str(tmp_path / "file"))
    assert warned.startswith("1 compiled programs are not kept: ")
    assert "set JAX_COMPILATION_CACHE_DIR" in warned and folder == "None" and hits == "0"
