"""Compile cudart.c with the machine's C compiler."""

import os
import shutil
import subprocess

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))


def compile_cudart(folder):
    """Path of libcudart.so in `folder`; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler here (cc, gcc, clang): the CUDA calls are not tested")
    path = os.path.join(str(folder), "libcudart.so")
    subprocess.check_call([compiler, "-shared", "-fPIC", "-o", path, os.path.join(HERE, "cudart.c")])
    return path
