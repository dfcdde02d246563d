"""What a run leaves on disk, and which checkpoint of it is whole."""

import json
import shutil
import zipfile
from pathlib import Path

from bone_peft.errors import BoneError


class RunFolder:
    """Paths of one run: ``adapter/``, ``checkpoints/``, ``tensorboard/``, recipe, result and report."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.adapter = self.root / "adapter"
        self.checkpoints = self.root / "checkpoints"
        self.tensorboard = self.root / "tensorboard"
        self.recipe = self.root / "recipe.yaml"
        self.result = self.root / "result.json"
        self.report = self.root / "report.html"
        self.plot = self.root / "loss.png"

    def holds_a_run(self) -> bool:
        return self.recipe.exists() or self.adapter.exists() or bool(self._checkpoint_folders())

    def check_free(self, *, resume: bool, force: bool) -> None:
        """Refuse a folder whose run would be overwritten unasked."""
        if self.root.exists() and not self.root.is_dir():
            raise BoneError(f"{self.root} is a file; choose a folder for the run with --out.")
        if self.holds_a_run() and not (resume or force):
            raise BoneError(
                f"{self.root} already holds a run; continue it with --resume, replace it with --force, "
                "or choose another folder with --out."
            )

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end, or None.

        Raises:
            BoneError: it was damaged after that.
        """
        last = next((path for path in reversed(self._checkpoint_folders()) if _is_whole(path)), None)
        if last is not None:
            _check_readable(last)
        return last

    def drop_broken_checkpoints(self) -> None:
        """Delete what a killed or failed save left behind, so that it is not counted as a checkpoint."""
        for path in self._checkpoint_folders():
            if not _is_whole(path):
                shutil.rmtree(path)

    def start_over(self) -> None:
        """Forget the old run's progress; its adapter and report stay until new ones are whole."""
        for path in (self.checkpoints, self.tensorboard):
            shutil.rmtree(path, ignore_errors=True)

    def _checkpoint_folders(self) -> list[Path]:
        folders = (path for path in self.checkpoints.glob("checkpoint-*") if path.name.split("-")[1].isdigit())
        return sorted(folders, key=lambda path: int(path.name.split("-")[1]))


def _is_whole(checkpoint: Path) -> bool:
    # The Trainer writes this file after everything else.
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _check_readable(checkpoint: Path) -> None:
    from safetensors import SafetensorError, safe_open

    weights = checkpoint / "adapter_model.safetensors"
    broken = [path for path in checkpoint.glob("*.pt") if not zipfile.is_zipfile(path)]
    try:
        with safe_open(weights, framework="pt"):
            pass
    except (OSError, SafetensorError):
        broken.append(weights)
    if broken:
        raise BoneError(
            f"The checkpoint file {broken[0]} is damaged; delete {checkpoint} to continue from the one before it."
        )
