"""Two processes that each hold half of a model (FSDP2) train, save and merge as one that holds it all."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from peft import get_peft_model

from bone_peft import BoneError

from ...models import config_for, llama
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


def test_what_is_elsewhere_is_not_saved(tmp_path):
    model = get_peft_model(llama(), config_for("bone"))
    name, parameter = next((n, p) for n, p in model.named_parameters() if p.requires_grad)
    parameter.data = parameter.data.new_empty(0)  # as ZeRO-3 has it
    with pytest.raises(BoneError, match=rf"{name.removesuffix('.default.values')}.* nothing of it is here"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_model.safetensors").exists()
