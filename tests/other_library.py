"""A pytest plugin (`-p other_library`): the tests use the native library in MULL_OTHER_LIBRARY."""

import os

from hypothesis import settings

from mull import kernels

settings.register_profile("slower kernels", max_examples=10, deadline=None)


def pytest_configure() -> None:
    settings.load_profile("slower kernels")
    kernels.__path__.insert(0, os.environ["MULL_OTHER_LIBRARY"])
