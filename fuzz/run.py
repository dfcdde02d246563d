"""The loop: damage, read, judge."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from bone_peft.errors import BoneError
from bone_peft.files.conversion import convert
from bone_peft.files.inspection import inspect_adapter
from bone_peft.files.merging import merge

from . import mutations

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"
FOUND = Path(__file__).parent / "found"
MAX_GROWTH = 512 * 2**20

Target = tuple[Path, str, list[mutations.Mutation], Callable[[Path, Path], object]]


def targets(sentinel: Path) -> list[Target]:
    """What is copied, the file in it to damage, the ways, and what is done with it then."""
    peft = FIXTURES / "peft-0.18.1" / "bone-llama"
    bat = FIXTURES / "peft-0.18.1" / "bat-llama"
    rwkv = FIXTURES / "rwkv-peft"
    torch_ways = [*mutations.TORCH, mutations.evil_pickle(str(sentinel)), mutations.evil_pickle(str(sentinel))]
    base, adapter = str(peft / "base"), peft / "adapter"

    def read(path: Path, out: Path) -> None:
        inspect_adapter(path)
        convert(path, "bone", out / "converted")

    def fold(path: Path, out: Path) -> None:
        merge(base, path, out / "merged")

    def lora(path: Path, out: Path) -> None:
        convert(path, "lora", out / "converted", base=base)

    def into(path: Path, out: Path) -> None:
        merge(str(path), adapter, out / "merged")

    def read_file(path: Path, out: Path) -> None:
        read(path / "adapter.pth", out)

    def into_file(path: Path, out: Path) -> None:
        merge(str(path / "base.pth"), rwkv / "bone" / "adapter.pth", out / "merged.pth")

    weights, config = "adapter_model.safetensors", "adapter_config.json"
    return [
        (adapter, weights, mutations.SAFETENSORS, read),
        (adapter, weights, mutations.SAFETENSORS, fold),
        (adapter, config, mutations.JSON, read),
        (adapter, config, mutations.JSON, fold),
        (bat / "adapter", weights, mutations.SAFETENSORS, read),
        (bat / "adapter", config, mutations.JSON, lora),
        (peft / "base", "model.safetensors", mutations.SAFETENSORS, into),
        (peft / "base", "config.json", mutations.JSON, into),
        (rwkv / "bone", "adapter.pth", torch_ways, read_file),
        (rwkv / "bat", "adapter.pth", torch_ways, read_file),
        (rwkv / "bone", "base.pth", torch_ways, into_file),
    ]


def attempts(count: int, seed: int, work: Path) -> Iterator[tuple[str, str | None]]:
    """Do ``count`` attempts. Yields what happened to each, and the fault if it is one."""
    rng = random.Random(seed)
    sentinel = work / "code-was-run"
    chosen = targets(sentinel)
    start = _peak()
    for index in range(count):
        source, name, ways, action = chosen[index % len(chosen)]
        given, out = work / "given", work / "out"
        for folder in (given, out):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, given)
        out.mkdir()
        way = rng.choice(ways)
        (given / name).write_bytes(way((given / name).read_bytes(), rng))
        fault = None
        try:
            with _limited_time():
                action(given, out)
            happened = "taken"
        except BoneError as error:
            happened = "refused"
            if "\n" in str(error) or not str(error).endswith((".", "?")) or len(str(error)) > 1000:
                fault = f"not one sentence: {error!r}"
            if list(out.iterdir()):
                fault = f"left {[path.name for path in out.iterdir()]} behind"
        except Exception:
            happened = "crashed"
            fault = traceback.format_exc()
        if sentinel.exists():
            fault = "ran code"
            sentinel.unlink()
        if _peak() - start > MAX_GROWTH:
            fault, start = f"grew by {(_peak() - start) >> 20} MiB", _peak()
        if fault is not None:
            fault = f"{source.parent.name}/{name} by {way.__name__}: {fault}"
        yield happened, fault


@contextmanager
def _limited_time() -> Iterator[None]:
    """A minute for what takes a moment."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(count: int = 10000, seed: int = 1) -> None:
    """Damage COUNT inputs and judge what becomes of them."""
    warnings.filterwarnings("ignore")
    # What would not fit here fails here, and not on the whole machine.
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
    totals: Counter[str] = Counter()
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for happened, fault in attempts(count, seed, Path(folder)):
            totals[happened] += 1
            if fault is not None:
                faults.append(fault)
                if len(faults) == 1:
                    shutil.rmtree(FOUND, ignore_errors=True)
                    shutil.copytree(Path(folder) / "given", FOUND)
    print(f"{count} inputs, seed {seed}: {dict(totals)}, {len(faults)} faults, peak memory {_peak() >> 20} MiB")
    for fault, times in Counter(
        fault.splitlines()[0] + " ... " + fault.splitlines()[-1] for fault in faults
    ).most_common(20):
        print(f"{times} x {fault}")
    if faults:
        print(faults[0])
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
