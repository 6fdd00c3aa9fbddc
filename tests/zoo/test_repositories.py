"""Repositories of Hugging Face's hub: the real huggingface_hub against a server on this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bart_hk import zoo
from bart_hk.errors import CheckpointError
from tests.zoo import hub_server, server
from tests.zoo.conftest import as_nobody, contents, small_disk
from tests.zoo.hub_server import Hub

READ = {
    "config.json": b'{"model_type": "bart"}',
    "generation_config.json": b'{"num_beams": 4}',
    "vocab.json": b'{"<s>": 0}',
    "merges.txt": b"#version: 0.2\n",
    "tokenizer_config.json": b'{"model_max_length": 1024}',
    "model.safetensors": b"s" * 100_000,
}
NOT_READ = {
    "README.md": b"# a model",
    "pytorch_model.bin": b"p" * 1000,
    "tf_model.h5": b"t" * 1000,
    "flax_model.msgpack": b"f" * 1000,
    "rust_model.ot": b"r" * 1000,
    "onnx/model.onnx": b"o" * 1000,
    "model.fp16.safetensors": b"h" * 1000,
    ".gitattributes": b"",
}
NAME = "facebook/bart-tiny"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    about = Hub(repositories={NAME: {"main": {**READ, **NOT_READ}}})
    http = hub_server.start(about)
    from huggingface_hub import constants, file_download

    # What it makes of HF_ENDPOINT, HF_HOME and HF_HUB_DISABLE_PROGRESS_BARS when it is imported.
    monkeypatch.setattr(constants, "ENDPOINT", about.address)
    template = about.address + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # the second until version 1
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield about
    http.shutdown()
    http.server_close()


def refused(kind: type[Exception], match: str, name: str = NAME, **options) -> str:
    with pytest.raises(kind, match=match) as caught:
        zoo.locate(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_we_read_is_downloaded_and_no_more(hub):
    assert contents(zoo.locate(NAME)) == READ
    assert hub.downloaded() == set(READ)


def test_a_second_time_nothing_is_downloaded(hub):
    first = zoo.locate(NAME)
    hub.asked.clear()
    assert zoo.locate(NAME) == first
    assert not hub.downloaded()


def test_torchs_weights_where_there_are_no_others(hub):
    files = {"config.json": b"{}", "pytorch_model.bin": b"p" * 1000, "tf_model.h5": b"t"}
    hub.repositories[NAME]["main"] = files
    expected = {"config.json": b"{}", "pytorch_model.bin": b"p" * 1000}
    assert contents(zoo.locate(NAME)) == expected
    assert contents(zoo.locate(NAME, local_files_only=True)) == expected
    hub.asked.clear()
    assert contents(zoo.locate(NAME, force_reload=True)) == expected
    assert hub.downloaded() == set(expected)


@pytest.mark.parametrize("stem", ["model-{}-of-00002.safetensors", "pytorch_model-{}-of-00002.bin"])
def test_shards(hub, stem):
    index = "model.safetensors" if "safetensors" in stem else "pytorch_model.bin"
    files = {"config.json": b"{}", f"{index}.index.json": b"{}"}
    files |= {stem.format(number): number.encode() for number in ("00001", "00002")}
    hub.repositories[NAME]["main"] = files
    assert contents(zoo.locate(NAME)) == files


@pytest.mark.parametrize("count", [1, 2])
def test_flaxs_weights_where_there_are_no_others(hub, count):
    files = {"config.json": b"{}", "flax_model.msgpack": b"f" * 1000}
    if count > 1:
        files = {"config.json": b"{}", "flax_model.msgpack.index.json": b"{}"}
        files |= {f"flax_model-{i:05}-of-{count:05}.msgpack": b"f" for i in range(1, count + 1)}
    hub.repositories[NAME]["main"] = {**files, "tf_model.h5": b"t"}
    assert contents(zoo.locate(NAME)) == files


def test_fairseqs_files_in_a_repository(hub):
    files = {"model.pt": b"x", "dict.txt": b"a 1\n", "sentence.bpe.model": b"y"}
    hub.repositories[NAME]["main"] = files
    assert contents(zoo.locate(NAME)) == files


def test_no_weights_that_are_read(hub):
    hub.repositories[NAME]["main"] = {"config.json": b"{}", "tf_model.h5": b"f"}
    message = refused(FileNotFoundError, "facebook/bart-tiny has no weights that can be read")
    assert (
        "looked for model.safetensors, pytorch_model.bin, flax_model.msgpack, model.pt" in message
    )
    assert message.endswith("which holds config.json")


def test_revisions(hub):
    hub.repositories[NAME]["v1"] = {"config.json": b"old", "model.safetensors": b"older"}
    assert contents(zoo.locate(NAME, revision="v1"))["model.safetensors"] == b"older"
    assert contents(zoo.locate(NAME)) == READ
    commit = hub_server.commit(hub.repositories[NAME]["v1"])
    assert contents(zoo.locate(NAME, revision=commit))["config.json"] == b"old"
    message = refused(FileNotFoundError, "has no revision 'v2'", revision="v2")
    assert hub.address in message


def test_an_update_is_noticed(hub):
    zoo.locate(NAME)
    hub.repositories[NAME]["main"] = {**READ, "config.json": b"new"}
    hub.asked.clear()
    assert contents(zoo.locate(NAME))["config.json"] == b"new"
    assert hub.downloaded() == {"config.json"}


def test_cache_dir(hub, tmp_path):
    folder = zoo.locate(NAME, cache_dir=tmp_path / "elsewhere")
    assert folder.is_relative_to(tmp_path / "elsewhere" / "models--facebook--bart-tiny")
    assert not (tmp_path / "hub").exists()


def test_force_reload(hub):
    zoo.locate(NAME)
    hub.asked.clear()
    zoo.locate(NAME, force_reload=True)
    assert hub.downloaded() == set(READ)


# --- Without network ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["argument", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_local_files_only(hub, monkeypatch, how):
    options = {"local_files_only": True} if how == "argument" else {}
    if not options:
        monkeypatch.setenv(how, "1")
    message = refused(FileNotFoundError, "it is not whole in the cache", **options)
    assert "the network is not to be used (local_files_only, or HF_HUB_OFFLINE is set)" in message
    assert "hf download facebook/bart-tiny --local-dir FOLDER" in message
    assert hub.asked == []
    monkeypatch.delenv(how, raising=False)
    folder = zoo.locate(NAME)
    if not options:
        monkeypatch.setenv(how, "1")
    hub.asked.clear()
    assert zoo.locate(NAME, **options) == folder
    assert hub.asked == []


def test_a_server_that_is_away(hub, monkeypatch):
    from huggingface_hub import constants

    folder = zoo.locate(NAME)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert zoo.locate(NAME) == folder  # from the cache
    message = refused(ConnectionError, "http://127.0.0.1:9 cannot be reached", "other/model")
    assert f"there is no directory {Path('other/model').absolute()}" in message
    assert "hf download other/model --local-dir FOLDER" in message


def test_a_server_in_trouble(hub, monkeypatch):
    hub.faults = [server.status(500)] * 50
    refused(ConnectionError, "cannot be reached .*500")


def test_dropped_connections_are_resumed(hub):
    real = hub_server.HubHandler.answer
    dropped = []

    def drop_once(self, status, body, headers=None):
        if self.command == "GET" and len(body) > 50_000 and not dropped:
            dropped.append(self.path)
            self.begin(status, len(body), headers)
            self.wfile.write(body[:50_000])
        else:
            real(self, status, body, headers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_server.HubHandler, "answer", drop_once)
        assert contents(zoo.locate(NAME)) == READ
    assert len(dropped) == 1


def test_damaged_on_the_way(hub):
    """What the hub names by its SHA-256 is compared with it."""
    hub.corrupt = {"model.safetensors"}
    message = refused(CheckpointError, "model.safetensors: what was downloaded has the SHA-256")
    assert "it was removed, try again" in message
    hub.corrupt = set()
    assert contents(zoo.locate(NAME)) == READ


# --- No space, no permission ----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Not enough free disk space")
def test_no_space(hub, tmp_path):
    with small_disk(40_000):
        message = refused(OSError, "no space in the cache", cache_dir=tmp_path / "c")
    assert message.startswith(f"no space in the cache {tmp_path / 'c'} for {NAME}; make room, or ")
    assert "cache_dir= or $HF_HUB_CACHE" in message
    assert contents(zoo.locate(NAME, cache_dir=tmp_path / "c")) == READ


def test_a_read_only_cache(hub, read_only):
    with as_nobody(read_only):
        message = refused(OSError, "cannot be written", cache_dir=read_only / "c")
    assert message.startswith(f"the cache {read_only / 'c'} cannot be written (Permission denied)")
    assert "cache_dir= or $HF_HUB_CACHE" in message


def test_a_read_only_cache_is_read(hub, read_only):
    folder = zoo.locate(NAME, cache_dir=read_only)
    with as_nobody(read_only):
        assert zoo.locate(NAME, cache_dir=read_only) == folder
        assert zoo.locate(NAME, cache_dir=read_only, local_files_only=True) == folder
        hub.repositories[NAME]["main"] = {**READ, "config.json": b"new"}
        assert contents(zoo.locate(NAME, cache_dir=read_only)) == READ  # it cannot be updated


# --- Refusals -------------------------------------------------------------------------------------


def test_an_unknown_repository_names_the_nearest(hub):
    message = refused(FileNotFoundError, "has no such repository", "facebook/bart-large-cn")
    assert message.startswith("no model 'facebook/bart-large-cn': there is no directory ")
    assert "did you mean facebook/bart-large-cnn" in message


def test_a_gated_repository(hub):
    hub.gated = {NAME}
    message = refused(PermissionError, "is gated")
    assert f"{hub.address}/{NAME}" in message and "HF_TOKEN" in message


@pytest.mark.parametrize("name", ["a--b/c", "owner/name..", "owner/" + "n" * 100])
def test_a_name_that_no_repository_has(hub, name):
    refused(ValueError, "cannot be a repository", name)


def test_revision_is_for_repositories(tmp_path):
    for name in (tmp_path, "bart.base", "https://example.org/bart.tar.gz"):
        with pytest.raises(ValueError, match="revision='v1' is for repositories"):
            zoo.locate(name, revision="v1")


def test_the_environment(hub, tmp_path):
    """In a process of its own, since huggingface_hub reads it when it is imported."""
    program = "import sys; from bart_hk import zoo; print(zoo.locate(sys.argv[1]))"
    command = [sys.executable, "-c", program, NAME]
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf")}
    environment.pop("HF_HUB_CACHE", None)
    root = Path(__file__).parents[2]

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=root, env={**environment, **more}, capture_output=True, text=True
        )

    done = run()
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder.is_relative_to(tmp_path / "hf" / "hub")
    assert contents(folder) == READ
    assert "100%" in done.stderr  # progress is shown
    hub.asked.clear()
    assert run(HF_HUB_OFFLINE="1").stdout == done.stdout
    assert hub.asked == []
    missing = run(HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path / "empty"))
    assert "FileNotFoundError: no model 'facebook/bart-tiny'" in missing.stderr
    assert f"in the cache {tmp_path}/empty" in missing.stderr
