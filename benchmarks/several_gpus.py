"""Training on several GPUs beside one: tokens a second, memory and losses, of Bone and of PEFT's LoRA.

    torchrun --nproc_per_node 2 benchmarks/several_gpus.py [--shape llama2-7b] [--json FILE] [--chart FILE]
    torchrun --nproc_per_node 2 benchmarks/several_gpus.py --shape llama-48b --ways fsdp2 --checkpointing

Each step has the same rows, whatever the way: one GPU takes those of all processes in turns. Weights are random from a
seed, and none are read from a file. With ``--again`` each adapter is saved, loaded into a fresh sharded model, and the
loss compared.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

from bone_peft.costs.bench.contestants import Setting, adapted
from bone_peft.costs.bench.machine import describe
from bone_peft.costs.bench.results import chart, save
from bone_peft.costs.bench.shapes import config_of
from bone_peft.costs.bench.training_step import allow_recompiles, base_layers
from bone_peft.method.tuner.saved import gathered
from bone_peft.method.tuner.sharded import own, part

WARM, GIB = 3, 1 << 30


def main(
    shape: str = "llama2-7b",
    layers: int = 0,
    batch: int = 4,
    length: int = 1024,
    steps: int = 10,
    ways: str = "one,ddp,fsdp2",
    contestants: str = "bone,bat-input,peft-lora-low",
    rounds: int = 1,
    checkpointing: bool = False,
    compiled: bool = False,
    again: bool = False,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
    chart_file: Annotated[Path | None, typer.Option("--chart")] = None,
) -> None:
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", dist.get_rank()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    config = config_of(shape)
    config.num_hidden_layers = layers or config.num_hidden_layers
    rows = torch.randint(
        config.vocab_size, (dist.get_world_size(), batch, length), device=device, generator=_seed(device, 1)
    )
    found: dict[str, Any] = {}
    cells = [(way, name) for way in ways.split(",") for name in contestants.split(",")]
    for way, name in cells * rounds:
        if way != "one" or dist.get_rank() == 0:
            run = Run(config, way, name, rows, checkpointing, compiled)
            result = run.measured(steps)
            if again and way == "fsdp2":
                result |= run.loaded_again()
            del run
            _tidy()
            before = found.get(f"{way} {name}", {"ms": []})
            found[f"{way} {name}"] = result | {"ms": before["ms"] + result["ms"]}
            if dist.get_rank() == 0:
                print(way, name, json.dumps(result), flush=True)
        dist.barrier()
    for result in found.values():
        _summarize(result, rows.numel())
    if dist.get_rank() == 0:
        _compare(found)
        record = {
            "kind": "several GPUs",
            "machine": describe(device.type) | {"command": _command()},
            "gpus": dist.get_world_size(),
            "model": {"shape": shape, "layers": config.num_hidden_layers},
            "batch": batch,
            "length": length,
            "checkpointing": checkpointing,
            "compiled": compiled,
            "results": found,
        }
        print(json.dumps(record), flush=True)
        if json_file:
            save(json_file, record)
        if chart_file:
            rates = {" ".join(reversed(name.split())): run["tokens_s"] for name, run in found.items()}
            chart(chart_file, rates, f"{shape}, {batch} x {length} a GPU", "tokens a second of all GPUs", line=None)
    dist.destroy_process_group()


class Run:
    """One way with one contestant."""

    def __init__(
        self, config: Any, way: str, name: str, rows: torch.Tensor, checkpointing: bool, compiled: bool
    ) -> None:
        self.config, self.way, self.name = config, way, name
        self.checkpointing, self.compiled = checkpointing, compiled
        self.rows = list(rows) if way == "one" else [rows[dist.get_rank()]]
        self.device = rows.device
        self.model = self._model()

    def _model(self) -> Any:
        with torch.device("meta" if self.way == "fsdp2" else self.device):
            base = AutoModelForCausalLM.from_config(self.config, dtype=torch.bfloat16).requires_grad_(False)
        if self.checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        model: Any = adapted(self.name, base, Setting()).train()
        if self.compiled:
            allow_recompiles()
            for layer in base_layers(model):
                layer.compile(dynamic=False)
        if self.way == "fsdp2":
            for layer in base_layers(model):
                fully_shard(layer)
            fully_shard(model).to_empty(device=self.device)
            _fill_rotary(model, self.config, self.device)
        _fill(model, self.device)
        return DistributedDataParallel(model, gradient_as_bucket_view=True) if self.way == "ddp" else model

    def measured(self, steps: int) -> dict[str, Any]:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=5e-4, fused=self.device.type == "cuda")
        losses: list[Any] = []
        ends: list[float] = []
        for _ in range(WARM + steps):
            loss = 0
            for rows in self.rows:
                part_of_loss = self.model(rows, labels=rows, use_cache=False).loss / len(self.rows)
                part_of_loss.backward()
                loss = loss + part_of_loss.detach()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss)
            _wait(self.device)
            ends.append(time.perf_counter())
        spans = [b - a for a, b in zip(ends[WARM - 1 :], ends[WARM:], strict=False)]
        together = torch.stack(losses)
        if self.way != "one":
            dist.all_reduce(together)
            together /= dist.get_world_size()
        return {
            "ms": [1e3 * span for span in spans],
            "peak_gib": torch.cuda.max_memory_allocated() / GIB if self.device.type == "cuda" else None,
            "parameters": sum(p.numel() for p in trained),
            "losses": together.tolist(),
        }

    def loaded_again(self) -> dict[str, Any]:
        """The loss now, and that of a fresh model of the same seed with the adapter from its file."""
        with torch.no_grad():
            now = self.model(self.rows[0], labels=self.rows[0], use_cache=False).loss
        tensors = gathered(self.model)
        folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(folder)
        if dist.get_rank() == 0:
            self.model.save_pretrained(folder[0], state_dict=tensors)
        dist.barrier()
        del self.model
        _tidy()
        self.model = self._model()
        set_peft_model_state_dict(self.model, load_file(f"{folder[0]}/adapter_model.safetensors"))
        with torch.no_grad():
            then = self.model(self.rows[0], labels=self.rows[0], use_cache=False).loss
        return {"loss_saved": now.item(), "loss_loaded": then.item()}


def _seed(device: torch.device, number: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(number)


def _fill(model: Any, device: torch.device) -> None:
    """Each weight from a seed of its own, whatever part of it is here. Adapters start at nothing."""
    for number, (name, parameter) in enumerate(model.named_parameters()):
        values = torch.zeros(parameter.shape, dtype=parameter.dtype, device=device)
        if name.endswith("norm.weight"):
            values.fill_(1)
        elif not parameter.requires_grad or "lora_A" in name:
            values.normal_(0, 0.02, generator=_seed(device, number))
        kept: Any = part(values, parameter.data)
        own(parameter).copy_(own(kept))


def _fill_rotary(model: Any, config: Any, device: torch.device) -> None:
    """Buffers that no file has are computed: on the meta device they were not."""
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            fresh = type(module)(config).to(device)
            for name, buffer in fresh.named_buffers():
                module.register_buffer(name, buffer, persistent=False)


def _summarize(result: dict[str, Any], tokens: int) -> None:
    spans = result.pop("ms")
    low, middle, high = statistics.quantiles(spans, n=4, method="inclusive")
    result |= {"tokens_s": 1e3 * tokens / middle, "spread": [1e3 * tokens / high, 1e3 * tokens / low]}


def _compare(found: dict[str, Any]) -> None:
    for name, run in found.items():
        way, _, contestant = name.partition(" ")
        one = found.get(f"one {contestant}")
        if one and way != "one":
            run["over_one"] = run["tokens_s"] / one["tokens_s"]
            run["losses_off"] = max(abs(a - b) / b for a, b in zip(run["losses"], one["losses"], strict=True))


def _command() -> str:
    arguments = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    return " ".join(["torchrun --nproc_per_node", str(dist.get_world_size()), "benchmarks/several_gpus.py", *arguments])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _tidy() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    typer.run(main)
