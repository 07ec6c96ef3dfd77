"""The loggers of a ``transformers.Trainer``: the callbacks that ``report_to`` names, in the form of Lightning's.

Readings go to these callbacks alone, and not through ``trainer.log``: that would print hundreds of numbers in the
terminal, keep them in ``trainer_state.json``, and make TRL's trainers write and forget what they have summed so far.
"""

from __future__ import annotations

from typing import Any

from mi_crow_lightning.hooks.schedules import Stage

__all__ = ["ReportTo", "TensorBoard", "loggers_of", "reporting_callbacks"]

_PREFIXES = {Stage.VALIDATE: "eval_", Stage.TEST: "test_", Stage.PREDICT: "test_"}  # as these callbacks know them


def reporting_callbacks(trainer: Any) -> list[Any]:
    """Return the callbacks of a Trainer that send numbers to a logger: those of ``transformers.integrations``."""
    return [one for one in trainer.callback_handler.callbacks if any(map(_reports, type(one).__mro__))]


def _reports(cls: type) -> bool:
    return cls.__module__.startswith("transformers.integrations") and "on_log" in vars(cls)


def is_tensorboard(callback: Any) -> bool:
    """Return whether a callback writes with a ``SummaryWriter``."""
    return any(cls.__name__ == "TensorBoardCallback" for cls in type(callback).__mro__)


def loggers_of(trainer: Any, stage: Stage) -> list[TensorBoard | ReportTo]:
    """Return the loggers of a Trainer, on the process that logs; on the others there are none.

    Args:
        trainer: the Trainer.
        stage: that of the readings, which decides on the first part of their names in other loggers than TensorBoard.
    """
    if not trainer.state.is_world_process_zero:
        return []
    return [
        TensorBoard(one, trainer) if is_tensorboard(one) else ReportTo(one, trainer, _PREFIXES.get(stage, ""))
        for one in reporting_callbacks(trainer)
    ]


class ReportTo:
    """A callback of the Trainer as a logger: it gets numbers as it gets those of the Trainer.

    Args:
        callback: the callback.
        trainer: the Trainer.
        prefix: the first part of all names.
    """

    def __init__(self, callback: Any, trainer: Any, prefix: str = "") -> None:
        self._callback, self._trainer, self._prefix = callback, trainer, prefix

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log numbers at the Trainer's step."""
        trainer, handler = self._trainer, self._trainer.callback_handler
        self._callback.on_log(
            trainer.args,
            trainer.state,
            trainer.control,
            logs={f"{self._prefix}{name}": value for name, value in metrics.items()},
            model=handler.model,
            processing_class=handler.processing_class,
            optimizer=handler.optimizer,
            lr_scheduler=handler.lr_scheduler,
            train_dataloader=handler.train_dataloader,
            eval_dataloader=handler.eval_dataloader,
        )


class TensorBoard(ReportTo):
    """The Trainer's TensorBoardCallback as a logger with a ``SummaryWriter``, which takes whole events."""

    @property
    def experiment(self) -> Any:
        """The writer, which the callback makes when it first logs something."""
        if self._callback.tb_writer is None:
            self.log_metrics({})
        return self._callback.tb_writer
