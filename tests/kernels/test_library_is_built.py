"""A broken C++ build must not pass unseen: without kernels the package installs, and their tests skip."""

from __future__ import annotations

import os
import shutil

import pytest

from ditpress.kernels import cpu

COMPILERS = ("c++", "g++", "clang++")


@pytest.mark.skipif(
    not os.environ.get("CXX") and not any(map(shutil.which, COMPILERS)), reason="no C++ compiler here"
)
def test_where_there_is_a_compiler_the_kernels_are_built() -> None:
    assert cpu.library_path() is not None
    assert cpu.load() is not None
