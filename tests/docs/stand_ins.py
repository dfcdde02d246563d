"""What the pages speak of, tiny: models under the names that they have on the hub, and files in the reader's folder."""

from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, MissConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from bone_peft import BoneConfig, convert, load_base
from bone_peft.runs.training import Recipe, train

from ..models import SMALL
from ..runs.tiny import make_base, write_rows

_COMMIT = "0" * 40
WIDTH = 128  # r=64, which the pages ask for, divides every side


def _moe(folder: Path) -> None:
    sizes = {**SMALL, "hidden_size": WIDTH, "moe_intermediate_size": WIDTH, "num_experts": 4, "num_experts_per_tok": 2}
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes)).save_pretrained(folder)


HUB: dict[str, Callable[[Path], object]] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": lambda folder: make_base(folder, chat=True, hidden=WIDTH),
    "HuggingFaceTB/SmolLM2-135M": lambda folder: make_base(folder, chat=False, hidden=WIDTH),
    "Qwen/Qwen3-30B-A3B": _moe,
}


def lay_hub(cache: Path) -> None:
    """Make ``cache`` what the hub's client leaves behind when it has fetched these models."""
    for name, make in HUB.items():
        place = cache / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(_COMMIT)
        make(place / "snapshots" / _COMMIT)


def _adapter(config: Callable[..., object], **options: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        settings = {"r": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options}
        model = get_peft_model(AutoModelForCausalLM.from_pretrained("llama"), config(**settings))
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.05)
        model.save_pretrained(folder)

    return write


def _rows(question: str, answer: str, numbers: range) -> Callable[[Path], object]:
    return lambda path: write_rows(path, [{question: f"{i} + {i}", answer: str(2 * i)} for i in numbers])


def _rwkv(path: Path) -> None:
    from bone_peft.rwkv.fresh import fresh_model
    from bone_peft.rwkv.pth_model import save_model

    save_model(fresh_model(WIDTH, 2, 65536), path, dtype=torch.bfloat16)


def _of_rwkv(to: str, **names: bool) -> Callable[[Path], None]:
    """An adapter for ``model.pth`` in another program's form."""

    def write(path: Path) -> None:
        model, _ = load_base("model.pth")
        adapted = get_peft_model(model, BoneConfig(r=8, init_weights=False, task_type="CAUSAL_LM"))
        convert(adapted, to, path, **names)

    return write


def _texts(path: Path) -> object:
    return write_rows(path, [{"text": f"{i} and {i} are {2 * i}. " * 3} for i in range(20)])


def _run(folder: Path) -> None:
    options = {"r": 8, "target_modules": ["q_proj", "v_proj"]}
    train(Recipe(base="llama", data="rows.jsonl", out=str(folder), adapter=options, training={"max_steps": 1}))


FILES: dict[str, Callable[[Path], object]] = {
    "llama": lambda folder: make_base(folder, chat=True, hidden=WIDTH),
    "rows.jsonl": _rows("prompt", "completion", range(8)),
    "sums.jsonl": _rows("question", "answer", range(8)),
    "held-out.jsonl": _rows("question", "answer", range(20, 23)),
    "old-adapter": _adapter(BoneConfig),
    "miss-adapter": _adapter(MissConfig),
    "lora-adapter": _adapter(LoraConfig, lora_alpha=16),
    "adapters/polite": _adapter(BoneConfig),
    "adapters/short": _adapter(BoneConfig),
    "runs/mine": _run,
    "model.pth": _rwkv,
    "data.jsonl": _texts,
    "books.jsonl": _texts,
    "test.jsonl": _rows("prompt", "completion", range(20, 23)),
    "rwkv-0.pth": _of_rwkv("rwkv"),
    "out-adapter": _of_rwkv("miss", rwkv_names=True),
}
"""What is in the reader's folder before a page is read from its top."""


def lay_files(text: str) -> None:
    """Put those into the working folder that ``text`` speaks of, and what they are made from."""
    for name, make in FILES.items():
        if name in text or name in ("llama", "rows.jsonl"):
            make(Path(name))
