"""The package: an installed wheel works from any folder, and declares what the code imports."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.test_layers import MODULES, ROOT, imports

# Distribution -> module, where the names differ.
IMPORTED_AS = {
    "dm-haiku": "haiku",
    "hydra-core": "hydra",
    "ml-dtypes": "ml_dtypes",
    "orbax-checkpoint": "orbax",
}


def requirements(block: str) -> set[str]:
    """The modules behind a block of requirements in setup.cfg."""
    names = {re.split(r"[<>=!\[; ]", line)[0] for line in block.split("\n") if line.strip()}
    return {IMPORTED_AS.get(name, name) for name in names}


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of this checkout, so that nothing is left behind in it, and offline."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("bart_hk", "conf"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("*.pyc"))
    for file in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / file, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source))
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel was installed into; its dependencies come from this environment."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", str(target), str(wheel))
    return target


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", arguments[0], "--quiet", "--no-index", *arguments[1:]]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def run_installed(installed: Path, folder: Path, *command: str) -> str:
    """What a command prints that sees the installed package first, run in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_every_package_is_listed(setup: configparser.ConfigParser) -> None:
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "bart_hk").rglob("*.py")}
    listed = setup["options"]["packages"].split()
    assert set(listed) == {".".join(folder.parts) for folder in folders} | {"bart_hk.conf"}


def test_the_wheel_holds_everything(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {"bart_hk/conf/__init__.py"}
    for folder, place in ((ROOT / "bart_hk", "bart_hk"), (ROOT / "conf", "bart_hk/conf")):
        for path in folder.rglob("*"):
            inside = path.relative_to(folder).as_posix()
            if path.is_file() and "__pycache__" not in inside:
                expected.add(f"{place}/{inside}")
    assert names == expected
    assert {"bart_hk/conf/config.yaml", "bart_hk/py.typed"} < names


def test_an_installed_wheel_works_from_any_folder(installed: Path, tmp_path: Path) -> None:
    program = (
        "import bart_hk, bart_hk.hub, bart_hk.training.loop\n"
        "from bart_hk.text import TextEncoder\n"
        "print(bart_hk.__file__, TextEncoder.gpt2('bart.large').encode('Hello world'))"
    )
    path, ids = run_installed(installed, tmp_path, sys.executable, "-c", program).split(" ", 1)
    assert Path(path) == installed / "bart_hk" / "__init__.py"
    assert ids.strip() == "[31414, 232]"


def test_an_installed_wheel_has_its_command(installed: Path, tmp_path: Path) -> None:
    script = installed / "bin" / "bart-hk-train"
    printed = run_installed(
        installed, tmp_path, sys.executable, str(script), "--cfg", "job", "model=bart_base"
    )
    assert "sentence_prediction" in printed
    assert "encoder_embed_dim: 768" in printed
    assert not list(tmp_path.iterdir())


def test_scripts_exist(setup: configparser.ConfigParser) -> None:
    for line in setup["options.entry_points"]["console_scripts"].split("\n"):
        if line:
            module, function = line.partition("=")[2].strip().split(":")
            assert f"def {function}(" in MODULES[module].read_text(encoding="utf-8")


def test_dependencies_are_what_is_imported(setup: configparser.ConfigParser) -> None:
    used = {
        name.partition(".")[0]
        for module in MODULES
        if module.partition(".")[0] in {"bart_hk", "hubconf"}
        for _, name in imports(module)
    }
    third_party = used - set(sys.stdlib_module_names) - {"bart_hk"}
    extras = setup["options.extras_require"]
    core = requirements(setup["options"]["install_requires"])
    optional = requirements(extras["train"]) | requirements(extras["torch"])
    optional -= {"bart_hk"}  # an extra that holds another
    assert third_party == core | optional
    assert not core & optional


def test_versions_agree(setup: configparser.ConfigParser) -> None:
    text = (ROOT / "bart_hk" / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{setup["metadata"]["version"]}"' in text


def test_upper_bounds_live_in_the_constraints(setup: configparser.ConfigParser) -> None:
    blocks = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    for block in blocks:
        assert not re.search(r"==|<|~=", block), block
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert list(build) == ["build-system"]
    for path in (ROOT / "constraints").glob("*.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+", line), (path, line)
        assert "\ntorch==2.13.0\n" in path.read_text(encoding="utf-8")
