"""HookCallback: gives hooks the Trainer's lifecycle.

Hooks are registered when a stage starts, switched for each batch, read when Lightning logs, and taken off in
``teardown`` or, if the run crashes or is interrupted, in ``on_exception``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch

from mi_crow_lightning import trainer_facts
from mi_crow_lightning._arguments import check_flag
from mi_crow_lightning.addressing.root import find_root
from mi_crow_lightning.alarms.alarm import Alarm
from mi_crow_lightning.alarms.argument import check_alarms
from mi_crow_lightning.alarms.engine import RunAlarms
from mi_crow_lightning.alarms.firing import Firing
from mi_crow_lightning.callback import hyperparameters, start_warnings
from mi_crow_lightning.callback.arguments import (
    check_figures,
    check_monitor,
    check_per_dataloader,
    check_prog_bar,
)
from mi_crow_lightning.callback.dataloaders import Dataloaders
from mi_crow_lightning.callback.figure_log import FigureLog
from mi_crow_lightning.callback.monitored import Monitored
from mi_crow_lightning.callback.progress_bar import ProgressBarNumbers
from mi_crow_lightning.callback.watched_trainer import LightningTrainer
from mi_crow_lightning.choices import ReportForm
from mi_crow_lightning.errors import RegistrationError
from mi_crow_lightning.hooks.effects import Effects
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.loggers.histogram_history import HistogramHistory
from mi_crow_lightning.loggers.scalar_choice import Scalars
from mi_crow_lightning.report.build import CallbackArguments
from mi_crow_lightning.report.form import form_of
from mi_crow_lightning.report.logged import write_report
from mi_crow_lightning.report.reporter import Reporter
from mi_crow_lightning.report.tag_count import count_tags
from mi_crow_lightning.runs.arguments import check_history_size, check_hooks, check_options, check_scalars
from mi_crow_lightning.runs.end_page import EndPage
from mi_crow_lightning.runs.hook_states import HookStates
from mi_crow_lightning.runs.hooked_run import HookedRun, failed_to_forget
from mi_crow_lightning.runs.names import (
    describe,
    log_names,
    shown_hooks,
    state_key_after,
    state_keys,
    unique_state_key,
)
from mi_crow_lightning.runs.rank_plans import Plan
from mi_crow_lightning.runs.readings_log import ReadingsLog
from mi_crow_lightning.runs.results import Results
from mi_crow_lightning.runs.roll_call import RollCall
from mi_crow_lightning.runs.run_events import RunEvents
from mi_crow_lightning.spawned_runs import SpawnedRuns

if TYPE_CHECKING:
    pass

__all__ = ["HookCallback"]

_NO_EVENT_FILES = (
    "makes the page of the event files of a TensorBoardLogger, and this Trainer has none: there will be no page. Give "
    "it logger=TensorBoardLogger(...), beside others in a list if you like."
)

_SET_BY_LIGHTNING = ("log", "log_dict")  # methods of the LightningModule


class HookCallback(Results, pl.Callback):
    """A callback that watches and steers the activations of whatever a Trainer runs.

    Detectors see training on the steps that are logged and all of validation and test; controllers act in
    predict. A hook's ``schedule`` changes that. Hooks that are not due are not on the model.

    Args:
        detectors: hooks that observe.
        controllers: hooks that change activations.
        root: name of the submodule that layer names are relative to; the LightningModule if left out.
        name: distinguishes several HookCallbacks of one Trainer in checkpoints.
        log_every_n_steps: how often readings are written in training; the Trainer's interval if left out.
        scalars: the readings that loggers show. ``"auto"``: of an `ActivationStatistics` that measures all statistics
            only ``mean``, ``std``, ``rms``, ``abs_max``, ``token_norm_mean``, ``dead_share`` and ``nonfinite_count``,
            else what it was asked for; of each layer, with histograms, or of more than 500 tags a stage min, median and
            max over the layers, which is logged when the run starts. A list of names, such as ``["rms", "kurtosis"]``:
            these statistics of each layer. ``"all"``: all of each layer. ``"summary"``: min, median and max over the
            layers of all. ``"none"``: none. TensorBoard's event file holds every number in any case, see
            `mi_crow_lightning.loggers.read_compact`.
        monitor: tags, or patterns such as ``"activations_rms/*"``, that are in ``trainer.callback_metrics`` as well. By
            default there are summaries over the layers, and every tag that a callback of the Trainer monitors.
        prog_bar: names of readings that the progress bar shows, such as ``["rms"]``: of each the largest number over
            the layers that it was read at, ``rms_max`` in training and ``val_rms_max`` in validation.
        report: what is logged of `report` when a run starts: ``"full"``, ``"short"``, a line or two, or ``"off"``;
            refusals in any case. ``None``: what the environment variable ``MI_CROW_LIGHTNING_REPORT`` says, else all.
        log_hyperparams: whether loggers get the settings of the hooks, as ``hooks/0/strength``, beside the
            hyperparameters of the module; the Trainer's ``enable_autolog_hparams=False`` turns off both.
        alarms: what is watched for, and what is done then, see `Alarm`; ``"default"`` for `default_alarms`.
        figures: whether a heatmap of each detector's readings goes to the loggers that take images (TensorBoard, W&B)
            at the end of each epoch: its ``rms``, or else another statistic. A list names the statistics that are
            drawn, such as ``["rms", "abs_max"]``. Needs matplotlib.
        page: whether each run, at its end, is written as one HTML file, ``hooks.html`` in the TensorBoardLogger's
            ``log_dir``, which a WandbLogger and an MLFlowLogger of the same Trainer get too.
        token_mask: from a batch to the mask ``(B, T)`` of its real tokens, for models that get no attention mask.
        per_dataloader: whether each of several dataloaders of an evaluation has its own readings, whose tags end in
            ``/dataloader_idx_<i>``, as those of ``self.log(add_dataloader_idx=True)``. By default one reading covers
            all of them.
        history_size: the most numbers that `history` holds; ``None`` for all of a run, 8 bytes each. When there are
            more, it holds only every second step, with one warning, and later fewer; loggers get the same as before.
        dry_run: match layers and report as usual, and attach nothing: the run is the one without the callback.

    Raises:
        TypeError, ValueError: an argument is wrong, a hook names no layer, or two hooks have the same ID. Layers that
            do not exist raise `LayerNotFound` when the run starts.

    Examples:
        >>> import lightning.pytorch as pl
        >>> from mi_crow_lightning import ActivationStatistics, HookCallback
        >>> watch = HookCallback(detectors=[ActivationStatistics("block:*")])
        >>> trainer = pl.Trainer(callbacks=[watch], accelerator="cpu", logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        detectors: Sequence[Hook] | Hook | None = None,
        controllers: Sequence[Hook] | Hook | None = None,
        *,
        root: str | None = None,
        name: str | None = None,
        log_every_n_steps: int | None = None,
        scalars: Scalars = "auto",
        monitor: Sequence[str] = (),
        prog_bar: Sequence[str] = (),
        report: ReportForm | None = None,
        log_hyperparams: bool = True,
        alarms: Sequence[Alarm] | Alarm | Literal["default"] = (),
        figures: bool | Sequence[str] = False,
        page: bool = False,
        token_mask: Callable[[Any], Any] | None = None,
        per_dataloader: bool = False,
        history_size: int | None = 100_000,
        dry_run: bool = False,
    ) -> None:
        self.detectors, self.controllers = check_hooks(detectors, controllers)
        check_options(root, name, log_every_n_steps, token_mask)
        self.root = root
        self.name = name
        self.log_every_n_steps = log_every_n_steps
        self.monitor = check_monitor(monitor)
        self.log_hyperparams = check_flag("log_hyperparams", log_hyperparams)
        self.page = check_flag("page", page)
        self._end_page = EndPage("HookCallback", _NO_EVENT_FILES)
        self.token_mask = token_mask
        self.per_dataloader = check_per_dataloader(per_dataloader, self.detectors)
        self.dry_run = check_flag("dry_run", dry_run)
        self.description = describe([*self.detectors, *self.controllers], name)
        self._state_key = unique_state_key(self, self.description, named=name is not None)
        self._run: HookedRun | None = None
        self._interrupted = False
        self._broke_off_amid_batch = False
        self._trainer: weakref.ref[pl.Trainer] | None = None
        self._roll_call: RollCall | None = None
        self.figures = check_figures(figures, (*self.detectors, *self.controllers))
        self._histograms, self._figure_log = HistogramHistory(), FigureLog(self.figures)
        self._log = ReadingsLog(
            check_scalars(scalars, self.detectors),
            check_history_size(history_size),
            (self._histograms, self._figure_log),
        )
        self._monitored = Monitored(self.monitor)
        self.prog_bar = check_prog_bar(prog_bar, (*self.detectors, *self.controllers))
        self._in_progress_bar = ProgressBarNumbers(self.prog_bar, self.detectors)
        self.alarms = check_alarms(alarms, (*self.detectors, *self.controllers))
        self._alarms = RunAlarms(self.alarms, (*self.detectors, *self.controllers))
        self._dataloaders = Dataloaders(self.per_dataloader)
        self._events = RunEvents()
        self._effects: Effects | None = None
        self._failed_to_forget: dict[str, Exception] = {}
        self._states = HookStates()
        self._resumes = True
        self._reporter: Reporter = Reporter(form_of(report))
        self._spawned_runs = SpawnedRuns()
        for hook in (*self.detectors, *self.controllers):
            hook._spawned_runs = self._spawned_runs

    # Start and end of a run.

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._find_state_key(trainer)
        self._roll_call = RollCall.at(self._place(trainer), trainer.world_size)
        if self._run is None:  # else another Trainer is in its run
            self._effects = None
            self._failed_to_forget = failed_to_forget(self._by_key().values())
        if not trainer_facts.is_fitting(trainer):  # before the Trainer logs hyperparameters
            hyperparameters.log_at_start(trainer, _hook_callbacks(trainer), self)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._register(trainer, pl_module)
        hyperparameters.log_at_start(trainer, _hook_callbacks(trainer), self)  # those of the module are now all there

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._events.training_begins(trainer_facts.start_of_run(trainer))
        self._reporter.data_loaded(trainer, self.controllers)
        self._log_start(trainer)
        start_warnings.warn_of_evaluation_mode(self._run.layers.hooked_modules() if self._run is not None else [])
        start_warnings.warn_if_nothing_is_logged(trainer, self.detectors, self.log_every_n_steps)
        start_warnings.warn_of_detectors_without_validation(trainer, self.detectors)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer_facts.is_fitting(trainer):
            self._pause()  # a training batch whose end event was skipped may have left handles
            self._dataloaders.begin()
        else:
            self._register(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._register(trainer, pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._register(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._events.finish(trainer, trainer.loggers)
        self._end_run_of(trainer)
        hyperparameters.log_at_end(trainer, _hook_callbacks(trainer), self)
        if self._roll_call is not None:
            self._roll_call.end()
            self._roll_call = None
        self._end_page.end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._interrupted = True
        self._events.fail(trainer, trainer.loggers, exception)
        self._end_page.forget()
        self._broke_off_amid_batch = self._run is not None and self._run.is_amid_training_batch
        self._end_run_of(trainer)
        if self._roll_call is not None:
            self._roll_call.fail(exception)  # its others may wait for this rank to start
            self._roll_call = None
        hyperparameters.log_at_end(trainer, _hook_callbacks(trainer), self)

    # Batches.

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._begin_batch(trainer, Stage.TRAIN, batch, batch_idx)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        self._alarms.before_backward(loss)
        self._check_edits()  # before gradient checkpointing repeats them
        if self._run is not None:
            self._run.layers.loss_scale = trainer_facts.loss_scale(trainer)
        if pl_module.automatic_optimization:  # else the step itself runs backward, maybe before some layers
            self._end_step()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._run is not None:
            self._run.layers.loss_scale = None
        self._alarms.after_backward()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._check_edits()  # before a step that the edits should have changed
        self._alarms.before_step()
        if self._run is not None:
            scale, scaled = trainer_facts.scale_of_gradients(trainer, optimizer), trainer_facts.loss_scale(trainer)
            self._run.before_step(optimizer, trainer.optimizers, scale, scaled is not None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs or not pl_module.automatic_optimization:  # else the step left the batch out
            self._end_step()
        self._alarms.end_batch()
        self._end_batch(trainer)
        moment = self._run.moment if self._run is not None else None
        if moment is not None and moment.logged and trainer_facts.takes_a_step(trainer):
            self._write(trainer, moment.step)
        if moment is not None and trainer_facts.takes_a_step(trainer):
            self._alarms.end_step()
        self._events.flush(trainer.loggers)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._begin_batch(trainer, Stage.VALIDATE, batch, batch_idx, dataloader_idx)

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._begin_batch(trainer, Stage.TEST, batch, batch_idx, dataloader_idx)

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._begin_batch(trainer, Stage.PREDICT, batch, batch_idx, dataloader_idx)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._end_step()
        self._end_batch(trainer)
        self._events.flush(trainer.loggers)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    # Ends of stages.

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._pause()
        self._figure_log.end_epoch(trainer, Stage.TRAIN)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._run is not None:
            self._run.effects.count_in(Stage.TRAIN)  # those of the steps since the last that was logged
            self._run.check_that_hooks_ran(Stage.TRAIN)
            self._monitored.warn_of_unmatched()
        self._events.flush(trainer.loggers)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish_evaluation(trainer, Stage.VALIDATE)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish_evaluation(trainer, Stage.TEST)

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish_evaluation(trainer, Stage.PREDICT)

    def _epochs(self) -> Mapping[int, int]:
        return self._figure_log.epochs

    def fired(self) -> list[Firing]:
        """Return the alarms that fired since this callback was made, see `Firing`; on every rank the same.

        Raises:
            RanElsewhere: as `history`.
        """
        self._spawned_runs.refuse("fired()")
        return list(self._alarms.fired)

    # Checkpoints.

    @property
    def state_key(self) -> str:
        """The callback's place in a checkpoint: its ``name``, or its hooks, numbered if several callbacks are equal."""
        return self._state_key

    def state_dict(self) -> dict[str, Any]:
        """Return switches, strengths, vectors and what was seen since the last readings, by hook.

        With several ranks, all must ask.
        """
        amid_batch = self._run.is_amid_training_batch if self._run is not None else self._broke_off_amid_batch
        return self._states.save(self._by_key(), self._run, self._effects, self._interrupted, amid_batch)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # `load_state_dict` follows if the checkpoint has a state of this callback.
        self._resumes = trainer_facts.is_fitting(trainer) or self.state_key not in checkpoint.get("callbacks", {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; a warning names hooks that are not on both sides.

        In validate, test and predict nothing is resumed: switches, strengths and vectors stay as they are.

        Raises:
            HookStateError: the state is damaged, or of another version, or of other layers.
        """
        resumes, self._resumes = self._resumes, True
        self._states.load(self._by_key(), self._run, state_dict, resumes)

    def __repr__(self) -> str:
        return f"HookCallback(detectors={shown_hooks(self.detectors)}, controllers={shown_hooks(self.controllers)})"

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which is not in a run and takes no model along."""
        kept = {name: value for name, value in self.__dict__.items() if name not in _SET_BY_LIGHTNING}
        return {**kept, "_run": None, "_trainer": None, "_roll_call": None}

    # What the events are made of.

    def _find_state_key(self, trainer: pl.Trainer) -> None:
        """Number the key among the Trainer's callbacks, whatever else is alive in this process.

        This comes before a checkpoint is read, which has the state under that key.
        """
        present = _hook_callbacks(trainer)
        if self in present:  # else another callback passes the Trainer's events on
            earlier = [callback.description for callback in present[: present.index(self)]]
            self._state_key = state_key_after(earlier, self.description)

    def _place(self, trainer: pl.Trainer) -> str:
        """Return where the callback stands among those of its kind; another callback may pass events on to it."""
        present = _hook_callbacks(trainer)
        return str(present.index(self)) if self in present else self.description

    def _name_among_others(self, trainer: pl.Trainer) -> str:
        """Return the callback's name, or its number among several of a Trainer; empty for the only one."""
        present = _hook_callbacks(trainer)
        return self.name or (str(present.index(self) + 1) if len(present) > 1 and self in present else "")

    def _writes_page(self, trainer: pl.Trainer) -> bool:
        """Return whether the callback writes the page of a run that ends: of those that are to, the last does."""
        to_write = [one for one in _hook_callbacks(trainer) if one.page and not one.dry_run] or [self]
        return self.page and to_write[-1] is self

    def _register(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._roll_call is None:
            self._start(trainer, pl_module)
        else:
            with self._roll_call.starting():
                self._start(trainer, pl_module)

    def _start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._refuse_second_trainer(trainer)
        self._unregister()  # an earlier run may have ended without any event, e.g. in a killed notebook cell
        self._trainer = weakref.ref(trainer)
        self._interrupted = self._broke_off_amid_batch = False
        self._log.begin_run(trainer_facts.name_of_run(trainer))
        self._dataloaders.begin()
        hooks = [*self.controllers, *self.detectors]
        arguments = CallbackArguments(hooks, self.root, self.log_every_n_steps, self._log.scalars, self.per_dataloader)
        if self.dry_run:
            self._reporter.rehearse(trainer, pl_module, arguments, _registries(trainer))
            self._spawned_runs.begin(trainer_facts.spawns(trainer))  # after the hooks, which note a run in this process
            self._compare_ranks(trainer)
        else:
            place, loggers = self._place(trainer), trainer.loggers if trainer.is_global_zero else []
            first = place == "0" or not place.isdigit()
            self._events.begin(trainer, loggers, first, trainer_facts.start_of_run(trainer))
            self._begin_run(trainer, pl_module, arguments)

    def _begin_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, arguments: CallbackArguments) -> None:
        root, graphs = find_root(pl_module, self.root), trainer_facts.graphs_of_module(pl_module)
        names = self._log_names(trainer)
        hooks = [*arguments.hooks, *self._alarms.hooks()]
        self._run = run = HookedRun(root, hooks, self.token_mask, names, graphs)
        every = trainer_facts.log_interval(trainer, self.log_every_n_steps)
        self._events.follow(run, self.detectors, names, every)
        self._alarms.begin(LightningTrainer(trainer, pl_module), run.layers, names, self._events.alarm)
        self._effects = run.effects
        self._states.give_effects_to(run, self._by_key())
        self._spawned_runs.begin(trainer_facts.spawns(trainer))  # after the hooks, which note a run in this process
        try:
            run.report_failures(self._failed_to_forget)
            if trainer_facts.is_fitting(trainer):
                run.check_before_fit()
            self._reporter.begin(trainer, pl_module, arguments, run.layers, _registries(trainer))
            self._compare_ranks(trainer)
            self._alarms.warn_of_layers(run.layers)
            start_warnings.log_fresh_graphs(run.begin(trainer_facts.stages_of_run(trainer)))
            quiet = not trainer.is_global_zero or trainer_facts.is_a_trial(trainer)
            self._end_page.begin(trainer.loggers, self._writes_page(trainer), quiet)
            if not trainer_facts.is_fitting(trainer):
                self._log_start(trainer)
            start_warnings.warn_of_controllers_never_due(trainer, self.controllers)
        except BaseException:
            self._unregister()
            raise

    def _compare_ranks(self, trainer: pl.Trainer) -> None:
        if self._roll_call is None:
            return
        options = {
            "HookCallbacks": len(_hook_callbacks(trainer)),
            "name": self.name,
            "root": self.root,
            "log_every_n_steps": trainer_facts.log_interval(trainer, self.log_every_n_steps),
            "scalars": self._log.scalars,
            "monitor": self.monitor,
            "token_mask": "given" if self.token_mask is not None else "not given",
            "per_dataloader": self.per_dataloader,
            "alarms": list(map(repr, self.alarms)),
            "dry_run": self.dry_run,
        }
        hooks = {"detectors": self.detectors, "controllers": self.controllers}
        plan = Plan.of(options, hooks, self._run.layers if self._run is not None else None)
        self._roll_call.compare(plan)

    def _log_start(self, trainer: pl.Trainer) -> None:
        """Log that loggers show a summary, once it is known how many dataloaders have readings, and the report."""
        if self._run is not None:
            count = max(self._dataloaders.count(trainer, stage) for stage in trainer_facts.stages_of_run(trainer))
            start_warnings.log_summary(trainer, self._log.scalars, count_tags(self._run.layers, count))
            step = trainer_facts.batches_that_stepped(trainer)
            write_report(trainer.loggers, self._reporter.last(), self._name_among_others(trainer), step)

    def _log_names(self, trainer: pl.Trainer) -> dict[str, str]:
        present = _hook_callbacks(trainer)
        callbacks = present if self in present else [*present, self]  # another callback may pass events on
        return log_names(self.controllers, [callback.controllers for callback in callbacks])

    def _by_key(self) -> dict[str, Hook]:
        return state_keys([*self.detectors, *self.controllers])

    def _refuse_second_trainer(self, trainer: pl.Trainer) -> None:
        other = self._trainer() if self._trainer is not None and self._run is not None else None
        if other is not None and other is not trainer and trainer_facts.is_running(other):
            raise RegistrationError(
                f"{self!r} is in the run of another Trainer, which would lose its hooks: make a HookCallback for each "
                "Trainer"
            )

    def _end_run_of(self, trainer: pl.Trainer) -> None:
        """Take the hooks off, unless they are in the run of another Trainer."""
        if self._trainer is not None and self._trainer() is trainer:
            self._unregister()

    def _unregister(self) -> None:
        run, self._run = self._run, None
        self._alarms.end()
        if run is not None:
            run.end()

    def _begin_batch(
        self, trainer: pl.Trainer, stage: Stage, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._run is not None and not trainer.sanity_checking:
            if stage is not Stage.TRAIN:
                self._read_dataloaders(trainer, stage, begins=dataloader_idx)
            moment = trainer_facts.moment_of(trainer, stage, batch_idx, dataloader_idx, self.log_every_n_steps)
            self._run.begin_batch(moment, batch)
            self._events.batch_begins()
            self._alarms.begin_batch(moment, batch)

    def _check_edits(self) -> None:
        if self._run is not None:
            self._run.layers.check_handles(edits=True)

    def _end_step(self) -> None:
        if self._run is not None:
            self._run.end_step()

    def _end_batch(self, trainer: pl.Trainer) -> None:
        if self._run is not None:
            self._run.end_batch(trainer.strategy.root_device)

    def _pause(self) -> None:
        if self._run is not None:
            self._run.pause()

    def _finish_evaluation(self, trainer: pl.Trainer, stage: Stage) -> None:
        if self._run is None or trainer.sanity_checking:
            return
        self._read_dataloaders(trainer, stage)
        self._figure_log.end_epoch(trainer, stage)
        self._run.check_that_hooks_ran(stage)
        self._events.flush(trainer.loggers)

    def _read_dataloaders(self, trainer: pl.Trainer, stage: Stage, begins: int | None = None) -> None:
        """Write the readings of the dataloaders that are over: those before ``begins``, or at the end all."""
        assert self._run is not None, "readings belong to a run"
        for dataloader_idx in self._dataloaders.over(trainer, stage, begins):
            moment = trainer_facts.moment_of(
                trainer, stage, 0, dataloader_idx or 0, log_every_n_steps=self.log_every_n_steps
            )
            self._run.enter_stage(moment)
            self._write(trainer, moment.step if stage is Stage.VALIDATE else None, dataloader_idx)

    def _write(self, trainer: pl.Trainer, step: int | None, dataloader_idx: int | None = None) -> None:
        """Write readings to the loggers, and their numbers to where other callbacks look for a ``monitor``."""
        assert self._run is not None, "readings belong to a run"
        assert self._run.stage is not None, "readings belong to a stage"
        count, device = self._dataloaders.count(trainer, self._run.stage), trainer.strategy.root_device
        read = self._log.write(self._run, trainer.loggers, step, device, dataloader_idx, count, self._events)
        if read is not None:
            trainer.callback_metrics.update(self._monitored.metrics(trainer, read))
            trainer.progress_bar_metrics.update(self._in_progress_bar.of(read))
        moment = self._run.moment
        assert moment is not None, "readings belong to a batch"
        self._alarms.read(read, moment, step if step is not None else self._run.batches_seen)


def _hook_callbacks(trainer: pl.Trainer) -> list[HookCallback]:
    return [callback for callback in trainer_facts.callbacks_of(trainer) if isinstance(callback, HookCallback)]


def _registries(trainer: pl.Trainer) -> list[Layers]:
    """Return those of all HookCallbacks of the Trainer: their tags go to the same loggers."""
    return [callback._run.layers for callback in _hook_callbacks(trainer) if callback._run is not None]
