"""RWKV-PEFT's ``train.py``, byte for byte: it imports ``BoneConfig`` from PEFT, so it starts again, and trains.

    python -m checks.programs.rwkv_peft --checkout RWKV-PEFT

``RWKV-PEFT`` is a clone of https://github.com/Joluck/RWKV-PEFT. Its table of methods has no Bone in it, so it is run
twice: with ``--peft miss`` as it is, and once more with ``BoneConfig`` in ``MissConfig``'s place. It runs on a CPU;
``stand_ins/`` has what it takes from a package whose kernels need a GPU. ``bone activate`` is undone.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

from bone_peft.rwkv.fresh import fresh_model
from bone_peft.rwkv.pth_model import save_model

from .environment import activated, arguments, python_of, run
from .tiny import SUMS, versions

_NEEDS = (
    *("peft==0.21.2", "transformers==5.23.0", "datasets==5.2.0", "deepspeed==0.19.8", "lightning==2.6.6"),
    *("rwkv==0.8.32", "jsonlines==4.0.0", "einops==0.8.2"),
)
_AS_IT_IS = ["train.py"]
_WITH_BONE = [
    "-c",
    "import peft, runpy; peft.MissConfig = peft.BoneConfig; runpy.run_path('train.py', None, '__main__')",
]
_WIDTH, _LAYERS, _ROWS, _R = 128, 2, 65536, 16
_STAND_INS = Path(__file__).with_name("stand_ins")


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--checkout", type=Path, required=True)
    given = parser.parse_args()
    python = python_of(given, "rwkv_peft", *_NEEDS)
    print(versions(python, "peft", "transformers", "lightning", "torch"))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        torch.manual_seed(0)
        low_rank = dict.fromkeys((f"{name}_low_rank_dim" for name in ("decay", "a", "v", "gate")), 32)
        save_model(fresh_model(_WIDTH, _LAYERS, _ROWS, **low_rank), work / "base.pth")
        rows = ({"text": f"What is {a} + {b}? {a} + {b} = {a + b}"} for a, b in SUMS)
        (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with activated(python, False):
            stopped = _train(python, given.checkout, work, _AS_IT_IS, fails=True).strip().splitlines()[-1]
        with activated(python):
            _train(python, given.checkout, work, _AS_IT_IS)
            miss = _losses(work)
            _train(python, given.checkout, work, _WITH_BONE)
            bone = _losses(work)
        before, merged = (torch.load(work / name, weights_only=True) for name in ("base.pth", "out/rwkv-0.pth"))
    moved = {name: merged[name] - before[name] for name in before if not torch.equal(merged[name], before[name])}
    # Bone adds one block of r columns to every r columns of a weight.
    blocks = [change.unflatten(1, (-1, _R)) for change in moved.values()]
    apart = max((block - block[:, :1]).abs().max().item() for block in blocks)
    least = min(block.abs().max().item() for block in blocks)
    print(f"as it is: {stopped.partition(' (')[0]}")
    print(f"--peft miss, after bone activate: {len(miss)} losses, {miss[0]:.4f} to {miss[-1]:.4f}")
    print(
        f"Bone in its place: {len(bone)} losses, {bone[0]:.4f} to {bone[-1]:.4f}; the merged model has "
        f"{len(moved)} of {len(before)} tensors moved, by {least:.1e} or more, each by one block (apart by {apart:.1e})"
    )
    # Receptance, key, value and output of attention, key and value of the feed-forward part.
    right = "BoneConfig" in stopped and len(moved) == 6 * _LAYERS and apart < least / 100
    return int(not right or miss[-1] >= miss[0] or bone[-1] >= bone[0])


def _train(python: str, checkout: Path, work: Path, program: list[str], *, fails: bool = False) -> str:
    options = {
        "load_model": work / "base.pth",
        "proj_dir": work / "out",
        "data_file": work / "rows.jsonl",
        "data_type": "jsonl",
        "vocab_size": _ROWS,
        "n_layer": _LAYERS,
        "n_embd": _WIDTH,
        "dim_ffn": 4 * _WIDTH,
        "ctx_len": 32,
        "micro_bsz": 4,
        "epoch_steps": 32,
        "epoch_count": 1,
        "epoch_save": 1,
        "lr_init": "1e-2",
        "lr_final": "1e-2",
        "accelerator": "cpu",
        "precision": "fp32",
        "devices": 1,
        "strategy": "auto",
        "my_testing": "x070",
        "op": "fla",
        "num_workers": 0,
        "random_seed": 1,
        "peft": "miss",
        "peft_config": json.dumps({"r": _R}),
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [python, *program, *flags]
    return run(command, work, fails=fails, cwd=checkout, PYTHONPATH=str(_STAND_INS), PYTHONDONTWRITEBYTECODE="1")


def _losses(work: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (work / "out/loss_data.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
