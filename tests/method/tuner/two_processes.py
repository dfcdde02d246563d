"""Runs a function in two processes that PyTorch's gloo joins."""

import faulthandler
import multiprocessing
import signal
import traceback
import warnings
from multiprocessing.connection import wait
from time import monotonic

import torch
import torch.distributed as dist

LIMIT = 120
"""Seconds. One of two processes that wait for each other in vain waits for long."""

_CONTEXT = multiprocessing.get_context("forkserver")
# One process imports them, and all others come from it.
_CONTEXT.set_forkserver_preload(
    ["pytest", "bone_peft.files.conversion.live", "transformers.models.llama", "transformers.models.qwen3_moe"]
)


def in_two_processes(folder, function, cases=((),)) -> None:
    """Call ``function(*case)`` in both, and raise ``AssertionError`` if it fails in one, or takes too long.

    Args:
        folder: an empty one, where they meet.
        function: of a module, so that it can be sent.
        cases: arguments of each call.
    """
    try:
        _once(folder / "meeting", function, cases)
    except _SegmentationError as end:
        # PyTorch's own: once in some thousand runs, and neither valgrind nor malloc's checks find a wrong access.
        warnings.warn(str(end), stacklevel=2)
        _once(folder / "second-meeting", function, cases)


class _SegmentationError(AssertionError):
    """A process was ended by SIGSEGV."""


def _once(meeting, function, cases) -> None:
    here, there = zip(*(_CONTEXT.Pipe(duplex=False) for _ in range(2)), strict=True)
    processes = [
        _CONTEXT.Process(target=_run, args=(rank, meeting, end, function, cases), daemon=True)
        for rank, end in enumerate(there)
    ]
    try:
        for process in processes:
            process.start()
        for end in there:
            end.close()
        _collect(dict(zip(here, processes, strict=True)))
    finally:
        for process in processes:
            process.kill()
            process.join()


def _collect(processes) -> None:
    deadline = monotonic() + LIMIT
    while processes:
        ready = wait(list(processes), max(0, deadline - monotonic()))
        assert ready, f"no answer from {len(processes)} of 2 processes in {LIMIT} seconds"
        for end in ready:
            process = processes.pop(end)
            try:
                error = end.recv()
            except EOFError:
                process.join(LIMIT)
                error = f"a process ended with {process.exitcode} and without a word"
                if process.exitcode == -signal.SIGSEGV:
                    raise _SegmentationError(error) from None
            assert error is None, error


def _run(rank, meeting, end, function, cases) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    case = ()
    try:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
        for case in cases:
            torch.manual_seed(0)
            function(*case)
            dist.barrier()
    except BaseException:
        end.send(f"in process {rank}, {function.__name__}{case}:\n{traceback.format_exc()}")
    else:
        end.send(None)
        dist.destroy_process_group()
