"""Two processes that each hold half of a model (FSDP2) train, save and merge as one that holds it all."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from ...versions import needs

pytestmark = needs("torch", "2.7")

ROOT = Path(__file__).parents[3]


def test_as_in_one_process():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.method.tuner.sharded"],
            env={**shared, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, text in zip(running, said, strict=True):
        assert process.returncode == 0, text[-3000:]
