"""How the tests run: what is collected, which skips are allowed, where compiled code is kept."""

import os
from importlib.metadata import version
from pathlib import Path

import pytest

# Live comparisons run where the oracle's interpreter is named (`make parity` makes one).
collect_ignore = [] if "BART_HK_ORACLE" in os.environ else ["tests/parity"]

# A test may be skipped for these reasons and no others: everything else that a test needs is there.
ALLOWED_SKIPS = {"published", "gpu"}

# A second run compiles nothing again. jax writes its entries without a lock, so every worker of
# pytest-xdist has a folder of its own.
_CACHE = Path(__file__).parent / ".cache" / "jax" / os.environ.get("PYTEST_XDIST_WORKER", "main")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilation is most of the time: without LLVM's optimisations it takes a third less, with XLA's
# own preset for it a third less again, and with the older generator of loops a quarter of all that.
# Programs are not cut into parts for more threads, since every core has a worker: a seventh less.
# XLA knows the last flags in the versions named here, and dies of flags that it does not know. The
# live comparisons run what users run.
if "BART_HK_ORACLE" not in os.environ:
    _flags = "--xla_backend_optimization_level=0"
    _flags += " --xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
    if version("jaxlib").startswith("0.10."):
        _flags += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", _flags)

_refused: dict[str, str] = {}  # test or module -> why it was skipped


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    if isinstance(report.longrepr, tuple):  # (file, line, "Skipped: reason")
        reason = report.longrepr[2]
    else:
        reason = f"expected to fail: {getattr(report, 'wasxfail', '')}"
    _refused[report.nodeid] = reason


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and ALLOWED_SKIPS.isdisjoint(report.keywords):
        _refuse(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:  # a whole module: its markers are not known
        _refuse(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _refused and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _refused:
        allowed = ", ".join(sorted(ALLOWED_SKIPS))
        terminalreporter.section(f"skips that are not allowed (allowed markers: {allowed})")
        for nodeid, reason in sorted(_refused.items()):
            terminalreporter.write_line(f"{nodeid}: {reason}", red=True)
