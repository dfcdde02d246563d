"""A run that replaces another one takes its place with its first whole checkpoint."""

import json
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from bone_peft.io.whole import whole_file

from .run_folder import RunFolder


class Publish(TrainerCallback):
    """Tells the run's folder of every checkpoint, and the Trainer where the folder is."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.trainer: Any = None
        self._log: TensorBoardCallback | None = None

    def attach(self, trainer: Any) -> None:
        """Begin to listen, and to log."""
        self.trainer = trainer
        trainer.add_callback(self)
        if PartialState().is_main_process:
            self._log = TensorBoardCallback(self._writer())
            trainer.add_callback(self._log)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Other processes write into a checkpoint, too.
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            self.run.add_to_manifest(self.run.checkpoints / f"checkpoint-{state.global_step}")
        self.publish()

    def publish(self) -> None:
        """Put the new run in its place, in every process, if it is not there yet."""
        old = self.run.root
        if old == self.run.place:
            return
        trainer, new = self.trainer, self.run.place
        best = trainer.state.best_model_checkpoint
        if best is not None:
            trainer.state.best_model_checkpoint = best.replace(str(old), str(new), 1)
        if trainer.state.is_world_process_zero:
            if best is not None:
                self._correct_best()
            if self._log is not None and self._log.tb_writer is not None:
                self._log.tb_writer.close()
            self.run.publish()
            if self._log is not None and self._log.tb_writer is not None:
                self._log.tb_writer = self._writer()
        self.run.root = new
        trainer.args.output_dir = str(self.run.checkpoints)
        PartialState().wait_for_everyone()

    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.run.tensorboard))

    def _correct_best(self) -> None:
        """The best checkpoint is named in the state of each."""
        for file in self.run.checkpoints.glob("checkpoint-*/trainer_state.json"):
            content = json.loads(file.read_text(encoding="utf-8"))
            content["best_model_checkpoint"] = self.trainer.state.best_model_checkpoint
            with whole_file(file) as staging:
                staging.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
