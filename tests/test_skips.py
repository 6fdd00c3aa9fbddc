"""The rule of conftest.py on skipped tests, tried on small test suites of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parent.parent / "conftest.py"

ALLOWED = """
import pytest

def test_passes():
    pass

@pytest.mark.gpu
def test_on_an_accelerator():
    pytest.skip("no accelerator")

@pytest.mark.published
@pytest.mark.skipif(True, reason="no network")
def test_with_the_real_weights():
    pass
"""
REFUSED = {
    "while_running": "import pytest\n\ndef test_it():\n    pytest.skip('the reason')\n",
    "by_a_marker": (
        "import pytest\n\n@pytest.mark.skipif(True, reason='the reason')\n"
        "def test_it():\n    pass\n"
    ),
    "by_a_fixture": (
        "import pytest\n\n@pytest.fixture\ndef fix():\n    pytest.skip('the reason')\n\n"
        "def test_it(fix):\n    pass\n"
    ),
    "a_whole_module": "import pytest\n\npytest.skip('the reason', allow_module_level=True)\n",
    "expected_to_fail": (
        "import pytest\n\n@pytest.mark.xfail(reason='the reason')\ndef test_it():\n    assert 0\n"
    ),
}


def run(folder: Path, workers: int) -> subprocess.CompletedProcess[str]:
    shutil.copy(CONFTEST, folder)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: x\n    published: x\n")
    (folder / "test_allowed.py").write_text(ALLOWED)
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(workers), str(folder)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_allowed_skips_pass(tmp_path: Path, workers: int) -> None:
    result = run(tmp_path, workers)
    assert result.returncode == 0, result.stdout
    assert "1 passed, 2 skipped" in result.stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_other_skips_fail_the_run(tmp_path: Path, workers: int) -> None:
    for name, source in REFUSED.items():
        (tmp_path / f"test_{name}.py").write_text(source)
    result = run(tmp_path, workers)
    assert result.returncode == 1, result.stdout
    _, _, listed = result.stdout.partition("skips that are not allowed")
    for name in REFUSED:
        assert any(f"test_{name}.py" in x and "the reason" in x for x in listed.splitlines()), name
    assert "test_allowed.py" not in listed
