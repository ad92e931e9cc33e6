"""The model that every engine of these tests serves, written once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL_WRITER = Path(__file__).parents[1] / "support" / "real_model.py"


@pytest.fixture(scope="session")
def written_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tests/support/real_model.py` writes: `model` and `distributions`. Only to be read."""
    folder = tmp_path_factory.mktemp("written-model")
    command = [os.environ["HEADWAY_VLLM_PYTHON"], str(MODEL_WRITER), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    return folder


@pytest.fixture(scope="module")
def place(written_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the engines of one file, with the model and the distributions' names."""
    folder = tmp_path_factory.mktemp("engines")
    shutil.copytree(written_model, folder, dirs_exist_ok=True)
    return folder
