"""Without a GPU, the kernels run in Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .layers import KERNELS

pytest.importorskip("triton")


@pytest.mark.skipif(KERNELS, reason="the kernels run in this process")
@pytest.mark.parametrize("file", ["test_paths.py", "test_decode.py", "test_grouped.py", "test_mixed_bone.py"])
def test_kernels_in_the_interpreter(file):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-k", "triton", str(Path(__file__).with_name(file))],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
