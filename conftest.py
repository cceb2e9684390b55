"""Tests and committed notebooks see the published records only, and leave the working store alone."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent


def pytest_configure(config):
    config.store = os.environ["KDUTILS_RUNS"] = tempfile.mkdtemp(prefix="runs-")
    config.option.nbval_sanitize_with = config.option.nbval_sanitize_with or str(ROOT / "tests" / "sanitize.cfg")


def pytest_unconfigure(config):
    shutil.rmtree(config.store, ignore_errors=True)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Folder of the published book's HTML, built with warnings as errors."""
    out = tmp_path_factory.mktemp("site")
    program = Path(sys.executable).with_name("jupyter-book")
    command = [program, "build", "-W", "-n", "--keep-going", "--path-output", out, ROOT]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return out / "_build" / "html"
