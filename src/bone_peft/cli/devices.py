"""``bone train`` on all GPUs of a machine: it starts itself anew, once for each, by Accelerate."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from typing import Any, NoReturn

from bone_peft.errors import BoneError

STRATEGIES = {
    "ddp": ["--multi_gpu"],
    "fsdp2": [
        *("--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
        *("--fsdp_reshard_after_forward", "true", "--fsdp_state_dict_type", "SHARDED_STATE_DICT"),
        *("--fsdp_cpu_ram_efficient_loading", "true"),
    ],
    "zero3": ["--use_deepspeed", "--zero_stage", "3", "--zero3_init_flag", "true"],
    "tp": ["--multi_gpu"],
}
"""By name, Accelerate's options. All but ``ddp`` give each GPU a part of every layer."""

_OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Each says that this process is one of several that somebody else has started."""

_FULL = 0.7
"""Share of a GPU's memory that the base may take where each has all of it."""


def processes(devices: str, before: int | None = None) -> int:
    """How many to start; 1 if this one is to train alone, or is one of several already.

    Args:
        devices: ``auto``, or a number.
        before: how many there were, if a run goes on; ``auto`` takes no more.

    Raises:
        BoneError: it is neither, or more than there are GPUs.
    """
    import torch

    if any(name in os.environ for name in _OF_LAUNCHERS):
        return 1
    there = torch.cuda.device_count()
    if devices == "auto":
        return max(there if before is None else min(there, before), 1)
    if not devices.isdecimal() or int(devices) < 1:
        raise BoneError(f"--devices is auto or a number of GPUs, not {devices!r}.")
    if there and int(devices) > there:
        raise BoneError(f"There are {there} GPUs here, and --devices asks for {devices}.")
    return int(devices)


def chosen(strategy: str, recipe: Any) -> str:
    """``strategy``, or for ``auto`` the one that the recipe or the base's size asks for.

    Raises:
        BoneError: there is none of this name, or what it needs is not installed.
    """
    if recipe.tensor_parallel:
        strategy = "tp"
    if strategy == "zero3" and find_spec("deepspeed") is None:
        raise BoneError("--strategy zero3 needs DeepSpeed: pip install deepspeed, or choose fsdp2.")
    if strategy in STRATEGIES:
        return strategy
    if strategy != "auto":
        raise BoneError(f"--strategy {strategy!r} is unknown: choose one of auto, {', '.join(STRATEGIES)}.")
    import torch

    from bone_peft.files.checkpoints import open_checkpoint

    if not torch.cuda.is_available() or recipe.quantize != "none":
        return "ddp"
    try:
        size = open_checkpoint(recipe.base).nbytes
    except BoneError:
        return "ddp"  # Whatever is wrong with it, the run says so.
    return "ddp" if size < _FULL * torch.cuda.get_device_properties(0).total_memory else "fsdp2"


def start(number: int, strategy: str) -> NoReturn:
    """Run this command in ``number`` processes, in the place of this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "accelerate.commands.launch", *STRATEGIES[strategy], "--num_processes", str(number)]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", str(port), "-m", "bone_peft"]
    command = [sys.executable, *launch, *sys.argv[1:]]
    sys.stdout.flush()
    if os.name == "posix":
        os.execv(command[0], command)
    sys.exit(subprocess.call(command))
