"""A pytest plugin (`-p other_library`): the tests use the native library in MULL_OTHER_LIBRARY."""

import os

from mull import kernels


def pytest_configure() -> None:
    kernels.__path__.insert(0, os.environ["MULL_OTHER_LIBRARY"])
