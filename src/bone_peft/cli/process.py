"""Settings of the process that the commands run in."""

import ctypes
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from bone_peft.io.hangup import let_go_of_the_terminal
from bone_peft.io.whole import is_full_disk

_LIBRARIES = ("transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "torch")


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: the command ends as it does at Ctrl-C, and cleans up on its way.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"Stopped by {signal.Signals(number).name}.")
        self.number = number


@contextmanager
def cleaning_up_when_terminated() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise :class:`Terminated`. What is ignored, as ``nohup`` does, stays ignored."""

    def stop(number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            let_go_of_the_terminal()
        raise Terminated(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    ours = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def quiet() -> None:
    """Hush the libraries: their progress bars and advice would bury ours."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    # Its level is set anew when it is imported.
    logging.getLogger("DeepSpeed").addFilter(_is_error)
    if "transformers" in sys.modules:  # too late for its environment variables
        from transformers import modeling_gguf_pytorch_utils as gguf
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        # The reader of GGUF files has a bar that asks nobody.
        gguf.tqdm = partial(gguf.tqdm, disable=True)
    if "datasets" in sys.modules:
        from datasets import disable_progress_bars

        disable_progress_bars()


def leave_full_disks_to_the_main_thread() -> None:
    """TensorBoard's writer thread would print a traceback beside the sentence that the main thread has for it."""
    default = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not is_full_disk(failure.exc_value):
            default(failure)

    threading.excepthook = hook


def keep_freed_memory() -> None:
    """Let the C library reuse freed memory instead of handing it back to the kernel.

    A training step on a CPU frees and asks for the same large buffers again and again; by default glibc maps each one
    afresh, and the page faults took over a third of a step where this was measured. Other systems are left alone.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)
