"""What a run leaves on disk, who may write there, and which checkpoint of it is whole."""

import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bone_peft.errors import BoneError
from bone_peft.files.kinds import ADAPTER, TOKENIZER, merged
from bone_peft.io.leftovers import clear, remove
from bone_peft.io.locks import BusyError, locked
from bone_peft.io.ours import MANIFEST, entries, manifest, manifest_text, some
from bone_peft.io.place import expanded, keep_off, real
from bone_peft.io.rename import exchange, put
from bone_peft.io.whole import parents_of, whole_file

_FILES = ("recipe.yaml", "result.json", "report.html", "loss.png")
_NAMES = (*_FILES, "adapter", "checkpoints", "tensorboard")
_CHECKPOINT = (
    r"adapter_config\.json|adapter_model\.(safetensors|bin)|README\.md|trainer_state\.json|training_args\.bin"
    r"|(optimizer|scheduler|scaler|rng_state(_\d+)?)\.(pt|pth|bin)|latest|zero_to_fp32\.py|global_step\d+/.*"
    rf"|(pytorch_model_fsdp|optimizer)(_\d+)?/.*|{TOKENIZER}"
)
# What a run writes while it goes on, before any of it is in its manifest.
_PROGRESS = re.compile(
    rf"\.({'|'.join(map(re.escape, (*_NAMES, MANIFEST)))})\.[0-9a-f]{{8}}\.(partial|taking|old)(/.*)?"
    r"|tensorboard(/events\.out\.tfevents\.[^/]+)?"
    rf"|checkpoints(/README\.md|/checkpoint-\d+(/({_CHECKPOINT}))?)?"
)


class RunFolder:
    """Paths of one run: ``adapter/``, ``checkpoints/``, ``tensorboard/``, recipe, result and report.

    A run that replaces another one begins in a folder of its own, and changes places with it when there is something
    whole to show.

    Attributes:
        place: where the run is asked for.
        root: where it is written now.
    """

    def __init__(self, root: str | Path) -> None:
        self.place = self.root = expanded(root)
        self._begun = False

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def plot(self) -> Path:
        return self.root / "loss.png"

    def holds_a_run(self) -> bool:
        """Whether there is anything of a run that this package wrote."""
        return bool(self._present()) and self._is_ours()

    def check_free(self, *, resume: bool, force: bool, inputs: Iterable[str | Path | None] = ()) -> None:
        """Refuse a folder in which something would be lost.

        Args:
            resume: the run in it is to be continued; what is in other places stays.
            force: the run in it is to be replaced, with all that is in the folder.
            inputs: what the run reads.

        Raises:
            BoneError: names what is in the way.
        """
        place = real(self.place)
        if place.exists() and not place.is_dir():
            raise BoneError(f"{self.place} is a file; choose a folder for the run with --out.")
        if not resume:
            keep_off(self.place, inputs)
        present = self._present()
        if not present:
            return
        if not self._is_ours():
            raise BoneError(
                f"{self.place} holds {some(present)}, written by no run of bone; move that away, or choose another "
                "folder with --out."
            )
        if not (resume or force):
            raise BoneError(
                f"{self.place} already holds a run; continue it with --resume, replace it with --force, "
                "or choose another folder with --out."
            )
        strangers = self._strangers()
        if not force:
            strangers = [path for path in strangers if path.startswith("checkpoints/")]
        if strangers:
            raise BoneError(
                f"{self.place} holds {some(strangers)}, which its run did not write; move that away, or choose another "
                "folder with --out."
            )
        if force:
            keep_off(self.place, (Path.cwd(),))
        if force and os.path.ismount(place):
            raise BoneError(f"{self.place} is a mount point, which cannot be replaced: choose a folder in it.")

    @contextmanager
    def opened(
        self, *, resume: bool, force: bool, inputs: Iterable[str | Path | None] = (), first: bool = True
    ) -> Iterator[None]:
        """Hold the folder for a run, after :meth:`check_free` and after a killed run's leftovers are gone.

        Args:
            resume, force, inputs: see :meth:`check_free`.
            first: whether this is the process of the run that writes; others only look.

        Raises:
            BoneError: the folder is not free, or another process writes there.
        """
        place = real(self.place)
        with ExitStack() as self._held:
            if first:
                self.recover()
                self._held.enter_context(parents_of(place / MANIFEST))
                self._hold(place)
                for output in (place, *(place / name for name in (*_NAMES, MANIFEST))):
                    clear(output)
            self.check_free(resume=resume, force=force, inputs=inputs)
            if force and self.holds_a_run():
                # The place is held, so nobody else has this name.
                self.root = place.with_name(f".{place.name}.00000000.partial")
            try:
                yield
            except BaseException:
                if first and not resume and self.root == self.place:
                    self._forget()
                raise
            finally:
                if first and self.root != self.place:
                    remove(self.root)
                elif first:
                    with suppress(OSError):  # what a start that failed left empty
                        self.checkpoints.rmdir()

    def _forget(self) -> None:
        """A run that failed before anything of it was whole is not in the way of the next try."""
        if self._begun and not self._checkpoint_folders() and not self.adapter.exists():
            for path in (self.recipe, self.tensorboard, self.checkpoints / "README.md", self.root / MANIFEST):
                remove(path)

    def recover(self) -> None:
        """Bring the old run back if a kill caught it on its way out."""
        if not (place := real(self.place)).exists():
            clear(place)

    def begin(self) -> None:
        """Make the folder that the run is written to, and keep only whole checkpoints in it."""
        self._begun = True
        if self.root != self.place:
            self.root.mkdir(exist_ok=True)
            self._hold(self.root)
        for path in self._checkpoint_folders():
            if not _is_whole(path):
                remove(path)

    def publish(self) -> None:
        """Put the new run in the place of the old one, which is deleted. Nothing happens if it is there already.

        Raises:
            BoneError: somebody put something into the old one meanwhile.
        """
        if self.root == self.place:
            return
        new, place = self.root, real(self.place)
        if place.exists():
            self.check_free(resume=False, force=True)
            exchange(new, place)
            self.root = self.place
            remove(new)
        else:
            put(new, place)
            self.root = self.place

    def add_to_manifest(self, folder: Path) -> None:
        """Say of all that is in a new folder of the run that it is ours."""
        known = manifest(self.root) or set()
        files = {path for path in known if os.path.lexists(self.root / path)}
        files |= {(folder / path).relative_to(self.root).as_posix() for path in entries(folder)}
        with whole_file(self.root / MANIFEST) as staging:
            staging.write_text(manifest_text(files), encoding="utf-8")

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end, or None.

        Raises:
            BoneError: it was damaged after that.
        """
        last = next((path for path in reversed(self._checkpoint_folders()) if _is_whole(path)), None)
        if last is not None:
            _check_readable(last)
        return last

    def _hold(self, folder: Path) -> None:
        try:
            self._held.enter_context(locked(folder))
        except BusyError:
            raise BoneError(
                f"Another process is writing to {self.place}; wait for it to end, or choose another folder with --out."
            ) from None

    def _present(self) -> list[str]:
        found = (self.place / name for name in _NAMES if os.path.lexists(self.place / name))
        return [path.name for path in found if path.is_symlink() or not path.is_dir() or any(path.iterdir())]

    def _is_ours(self) -> bool:
        """A run says so in its manifest. One of 0.1 has none, and a recipe with the versions it ran on."""
        if manifest(self.place) is not None:
            return True
        with suppress(OSError, ValueError):
            return bool(re.search(r"^versions:\n  bone-peft: ", (self.place / "recipe.yaml").read_text("utf-8"), re.M))
        return False

    def _strangers(self) -> list[str]:
        """What is in the folder and no run wrote."""
        within = {"adapter": ADAPTER, "merged": merged()}  # the demo merges into its run's folder
        results = [name for name in within if (self.place / name).is_dir() and not (self.place / name).is_symlink()]
        listed = manifest(self.place) or set()
        found = [f"{name}/{path}" for name in results for path in within[name].strangers(self.place / name)]
        for path in entries(self.place):
            top = path.partition("/")[0]
            if top not in results and path not in (*_FILES, *listed) and not _PROGRESS.fullmatch(path):
                found.append(path)
        return found

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
