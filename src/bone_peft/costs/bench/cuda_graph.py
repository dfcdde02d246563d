"""Calls as one CUDA graph: the GPU does not wait for Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bone_peft.method.ops.dispatch import hosts_time_is_free


def as_cuda_graph(run: Callable[[], Any]) -> Callable[[], None]:
    """``run``, which works on the same tensors each time, recorded once to be replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with hosts_time_is_free(), torch.cuda.stream(side):
        run()
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with hosts_time_is_free(), torch.cuda.graph(graph):
        run()

    def replay(_: Any = run) -> None:  # The graph works on memory that ``run`` holds.
        graph.replay()

    return replay
