"""HookTrainerCallback: gives hooks the lifecycle of ``transformers.Trainer``.

That Trainer has no event for a run that fails, none before an evaluation, and none that has the batch. So the callback
follows five methods of the one Trainer that it is attached to; its own events say where a step ends, and what is saved.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from transformers.trainer_callback import TrainerCallback

from mi_crow_lightning._arguments import check_flag
from mi_crow_lightning._shown import shown
from mi_crow_lightning._warned import warn
from mi_crow_lightning.addressing.root import find_root
from mi_crow_lightning.alarms.alarm import Alarm
from mi_crow_lightning.alarms.argument import check_alarms
from mi_crow_lightning.alarms.engine import RunAlarms
from mi_crow_lightning.alarms.firing import Firing
from mi_crow_lightning.choices import ReportForm
from mi_crow_lightning.errors import RegistrationError
from mi_crow_lightning.hf_trainer import facts, state_file
from mi_crow_lightning.hf_trainer.loggers import loggers_of
from mi_crow_lightning.hf_trainer.report import refusals_of_run, report_of_run
from mi_crow_lightning.hf_trainer.watched_trainer import TransformersTrainer, check_actions
from mi_crow_lightning.hf_trainer.wrapped_methods import follow, followers_of, unfollow
from mi_crow_lightning.hooks.compiled.graphs import graphs_of
from mi_crow_lightning.hooks.effects import Effects
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.schedules import Moment, Stage
from mi_crow_lightning.loggers.histogram_history import HistogramHistory
from mi_crow_lightning.loggers.scalar_choice import Scalars
from mi_crow_lightning.metrics.collectives import is_distributed
from mi_crow_lightning.report.form import form_of
from mi_crow_lightning.report.info_log import log_info
from mi_crow_lightning.report.logged import write_report
from mi_crow_lightning.report.report_log import ReportLog
from mi_crow_lightning.runs import start_notes
from mi_crow_lightning.runs.arguments import check_history_size, check_hooks, check_options, check_scalars
from mi_crow_lightning.runs.end_page import EndPage
from mi_crow_lightning.runs.hook_states import HookStates
from mi_crow_lightning.runs.hooked_run import HookedRun, failed_to_forget
from mi_crow_lightning.runs.names import log_names, shown_hooks, state_keys
from mi_crow_lightning.runs.rank_plans import Plan
from mi_crow_lightning.runs.readings_log import ReadingsLog
from mi_crow_lightning.runs.results import Results
from mi_crow_lightning.runs.roll_call import RollCall
from mi_crow_lightning.runs.run_events import RunEvents
from mi_crow_lightning.spawned_runs import SpawnedRuns
from mi_crow_lightning.warnings import NothingSeenWarning, ResumeWarning

__all__ = ["HookTrainerCallback"]

_WHO = "HookTrainerCallback"

_NO_EVENT_FILES = (
    "makes the page of TensorBoard's event files, and this Trainer writes none: there will be no page. Give its "
    "TrainingArguments report_to='tensorboard', beside others in a list if you like."
)

_runs = itertools.count()  # on several ranks, of all callbacks: ranks that do the same count the same


class HookTrainerCallback(Results, TrainerCallback):  # type: ignore[misc]  # transformers is taken as Any
    """A callback that watches and steers the activations of what a ``transformers.Trainer`` runs, or one of TRL's.

    Detectors see training on the steps that are logged and all of ``evaluate``; controllers act in ``predict``. A
    hook's ``schedule`` changes that; its stages are ``"train"``, ``"validate"`` for ``evaluate``, also of one within
    ``train``, and ``"predict"``. Hooks that are not due are not on the model. The callback works once it is attached,
    see `attach`: the Trainer's events alone do not show enough.

    Args:
        detectors: hooks that observe.
        controllers: hooks that change activations.
        root: name of the submodule that layer names are relative to; the Trainer's model if left out.
        name: distinguishes several callbacks of one Trainer in checkpoints.
        log_every_n_steps: how often readings are written in training; as the Trainer's arguments say if left out
            (``logging_strategy``, ``logging_steps``, ``logging_first_step``).
        scalars: the readings that loggers show, see `HookCallback`.
        report: what is logged of `report` when a run starts, see `HookCallback`.
        alarms: what is watched for, and what is done then, see `Alarm`; ``"default"`` for `default_alarms`.
        page: whether each run, at its end, is written as one HTML file, ``hooks.html`` beside the event files of
            TensorBoard.
        token_mask: from the inputs of a step to the mask ``(B, T)`` of their real tokens, for models that get no
            attention mask.
        history_size: the most numbers that `history` holds, see `HookCallback`.

    Raises:
        TypeError, ValueError: an argument is wrong, a hook names no layer, or two hooks have the same ID. Layers that
            do not exist raise `LayerNotFound` when the run starts.

    Examples:
        >>> from mi_crow_lightning import ActivationStatistics, HookTrainerCallback
        >>> watch = HookTrainerCallback(detectors=[ActivationStatistics("block:*")])
        >>> watch
        HookTrainerCallback(detectors=[ActivationStatistics(layer_signature='block:*')], controllers=[])

        With a ``trainer``, a ``transformers.Trainer``::

            watch.attach(trainer)
            trainer.train()
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
        report: ReportForm | None = None,
        alarms: Sequence[Alarm] | Alarm | Literal["default"] = (),
        page: bool = False,
        token_mask: Callable[[Any], Any] | None = None,
        history_size: int | None = 100_000,
    ) -> None:
        self.detectors, self.controllers = check_hooks(detectors, controllers)
        check_options(root, name, log_every_n_steps, token_mask)
        self.root = root
        self.name = name
        self.log_every_n_steps = log_every_n_steps
        self.token_mask = token_mask
        self.alarms = check_alarms(alarms, (*self.detectors, *self.controllers))
        check_actions(self.alarms)
        self._alarms = RunAlarms(self.alarms, (*self.detectors, *self.controllers))
        self._events = RunEvents()
        self.page = check_flag("page", page)
        self._end_page = EndPage(_WHO, _NO_EVENT_FILES)
        self._trainer: weakref.ref[Any] | None = None
        self._was_given = False  # whether the Trainer had the callback before it was attached
        self._leave_run()
        self._histograms = HistogramHistory()
        self._log = ReadingsLog(
            check_scalars(scalars, self.detectors), check_history_size(history_size), (self._histograms,), _WHO
        )
        self._effects: Effects | None = None
        self._states = HookStates(_WHO)
        self._reporter = ReportLog(form_of(report))
        self._spawned_runs = SpawnedRuns()
        for hook in (*self.detectors, *self.controllers):
            hook._spawned_runs = self._spawned_runs

    def _leave_run(self) -> None:
        self._run: HookedRun | None = None
        self._method = ""  # the Trainer's, that is running
        self._evaluating: Stage | None = None
        self._batch_idx, self._epoch = 0, -1
        self._resumed_from: Path | None = None
        self._trial: Any = None
        self._loss: Tensor | None = None  # of the training step that has just returned

    # The Trainer.

    def attach(self, trainer: Any) -> HookTrainerCallback:
        """Follow a Trainer's ``train``, ``evaluate`` and ``predict``, until `detach`, or for a ``with`` block.

        For that, ``train``, ``evaluate``, ``predict``, ``training_step`` and ``prediction_step`` of this one object are
        wrapped, and the callback is added to its callbacks if it is not among them. Whatever ends a run, an exception
        and Ctrl-C too, nothing of it stays on the model. Attaching to the same Trainer again changes nothing.

        Args:
            trainer: the ``transformers.Trainer``.

        Returns:
            The callback: ``with watch.attach(trainer):`` detaches it at the end of the block.

        Raises:
            RegistrationError: the callback is attached to another Trainer.
            TypeError: it is not such a Trainer.
        """
        callbacks = getattr(getattr(trainer, "callback_handler", None), "callbacks", None)
        if not isinstance(callbacks, list):
            raise TypeError(
                f"attach({shown(trainer)}): give a transformers.Trainer, or one of TRL's. For Lightning's there is "
                "HookCallback, and for a loop of yours attached()"
            )
        other = self._attached_to()
        if other is trainer:
            return self
        if other is not None:
            raise RegistrationError(
                f"{self!r} is attached to another Trainer: call detach() first, or make a {_WHO} for each Trainer"
            )
        self._trainer = weakref.ref(trainer)
        self._was_given = self in callbacks
        if not self._was_given:
            trainer.add_callback(self)
        follow(trainer, self)
        return self

    def detach(self) -> None:
        """Leave the Trainer, which is then as before `attach`; without one, nothing happens."""
        self._end_run()
        trainer, self._trainer = self._attached_to(), None
        if trainer is None:
            return
        unfollow(trainer, self)
        if not self._was_given and self in trainer.callback_handler.callbacks:
            trainer.remove_callback(self)

    def __enter__(self) -> HookTrainerCallback:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def _attached_to(self) -> Any:
        return self._trainer() if self._trainer is not None else None

    def _trainer_of(self, state: Any) -> Any:
        """Return the Trainer that an event is from.

        Raises:
            RegistrationError: the callback is not attached to it, and would miss most of what the run does.
        """
        trainer = self._attached_to()
        if trainer is None or trainer.state is not state:
            raise RegistrationError(
                f"{self!r} is among the callbacks of a Trainer that it is not attached to, whose events alone show "
                "neither batches, nor the start of an evaluation, nor an error: call watch.attach(trainer) once the "
                "Trainer is made, where watch is this callback"
            )
        return trainer

    def fired(self) -> list[Firing]:
        """Return the alarms that fired since this callback was made, see `Firing`; on every rank the same."""
        return list(self._alarms.fired)

    # What goes around the Trainer's methods.

    def around(self, method: str, arguments: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Return what goes around a call of a method of the Trainer, see `Follower`."""
        if method == "train":
            return self._train(arguments)
        if method == "training_step":
            return self._training_step(arguments)
        if method == "prediction_step":
            return self._prediction_step(arguments)
        return self._evaluation(method)

    def returned(self, method: str, result: Any) -> None:
        """Keep the loss of a training step, see `Follower`."""
        self._loss = result if method == "training_step" and isinstance(result, Tensor) else None

    @contextmanager
    def _train(self, arguments: Mapping[str, Any]) -> Iterator[None]:
        self._end_run()
        self._method, self._trial = "train", arguments["trial"]
        self._resumed_from = facts.resumed_from(self._attached_to(), arguments["resume_from_checkpoint"])
        try:
            yield
        except BaseException as error:
            self._note_failure(error)
            raise
        finally:
            self._end_run()
        self._end_page.end()

    @contextmanager
    def _evaluation(self, method: str) -> Iterator[None]:
        """Follow an evaluation, or nothing new if it is one of several data sets of an evaluation that is running."""
        stage, outer, alone = facts.STAGE_OF[method], self._evaluating, not self._method
        if outer is stage:
            yield
            return
        trained, self._evaluating, self._batch_idx = self._batch_idx, stage, 0
        self._method = self._method or method
        try:
            self._pause()
            yield
            self._finish_evaluation(stage)
        except BaseException as error:
            if alone:
                self._note_failure(error)
            raise
        finally:
            self._pause()
            self._evaluating, self._batch_idx = outer, trained
            if alone:
                self._end_run()
        if alone:
            self._end_page.end()

    @contextmanager
    def _training_step(self, arguments: Mapping[str, Any]) -> Iterator[None]:
        run, trainer = self._run, self._attached_to()
        if run is None:
            _warn_of_single_step("training_step", "train()")
            yield
            return
        with self._batch(run, self._moment(trainer, Stage.TRAIN), arguments["inputs"]):
            run.layers.loss_scale = facts.loss_scale(trainer)
            yield
            run.layers.loss_scale = None
        if self._loss is not None:
            self._alarms.before_backward(self._loss)
        self._alarms.after_backward()
        if trainer.accelerator.sync_gradients:  # before the Trainer clips: of one that is NaN, it makes all NaN
            self._alarms.before_step()

    @contextmanager
    def _prediction_step(self, arguments: Mapping[str, Any]) -> Iterator[None]:
        trainer, stage = self._attached_to(), self._evaluating
        if stage is None:
            _warn_of_single_step("prediction_step", "evaluate() and predict()")
            yield
            return
        run = self._run or self._begin_run(trainer, arguments["model"], [stage])
        with self._batch(run, self._moment(trainer, stage), arguments["inputs"]):
            yield
        run.end_batch()
        self._flush_events()

    @contextmanager
    def _batch(self, run: HookedRun, moment: Moment, inputs: Any) -> Iterator[None]:
        self._batch_idx += 1
        run.begin_batch(moment, inputs)
        self._events.batch_begins()
        self._alarms.begin_batch(moment, inputs)
        try:
            yield
        except BaseException:
            run.pause()
            raise
        run.end_step()

    def _moment(self, trainer: Any, stage: Stage) -> Moment:
        """Return the moment of the batch that begins."""
        step = int(trainer.state.global_step)
        return Moment(
            stage=stage,
            epoch=self._epoch if self._epoch >= 0 else int(trainer.state.epoch or 0),
            batch_idx=self._batch_idx,
            step=step if stage in (Stage.TRAIN, Stage.VALIDATE) else self._batch_idx,
            logged=stage is Stage.TRAIN and facts.is_logged(trainer, self.log_every_n_steps),
        )

    # The Trainer's events.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer_of(state)
        self._begin_run(trainer, trainer.model_wrapped, [Stage.TRAIN, Stage.VALIDATE])
        self._batch_idx = facts.first_batch(trainer)
        self._epoch = state.global_step // facts.steps_of_epoch(trainer) - 1  # on_epoch_begin comes next
        self._events.training_begins(Moment(Stage.TRAIN, epoch=self._epoch + 1, step=int(state.global_step)))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._epoch += 1

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._run is not None:
            self._run.end_batch()
            self._flush_events()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if self._run is not None:
            self._run.layers.check_handles(edits=True)  # before a step that the edits should have changed
            inner = getattr(optimizer, "optimizer", optimizer)  # inside accelerate's, which has no hooks
            scale, clipped = facts.loss_scale(self._trainer_of(state)), args.max_grad_norm > 0  # which unscales them
            self._run.before_step(inner, [inner], None if clipped else scale, scale is not None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._run is None:
            return
        self._run.end_batch()
        moment = self._run.moment
        if moment is not None and moment.logged:
            self._write(self._trainer_of(state), state.global_step)
        self._alarms.end_step()
        self._flush_events()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._pause()
        self._batch_idx = 0

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._run is not None:
            self._run.effects.count_in(Stage.TRAIN)  # those of the steps since the last that was logged
            self._run.check_that_hooks_ran(Stage.TRAIN)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer_of(state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer_of(state)
        if args.save_only_model:
            return
        saved = self._states.save(self._by_key(), self._run, self._effects, alone=False)
        if args.should_save:
            state_file.write(facts.checkpoint_folder(trainer, self._trial) / self._file_name(trainer), saved)

    def __repr__(self) -> str:
        return f"{_WHO}(detectors={shown_hooks(self.detectors)}, controllers={shown_hooks(self.controllers)})"

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which is attached to no Trainer and takes no model along."""
        return {**self.__dict__, "_run": None, "_trainer": None, "_method": "", "_evaluating": None, "_trial": None}

    # What they are made of.

    def _begin_run(self, trainer: Any, called: nn.Module, stages: Sequence[Stage]) -> HookedRun:
        """Put the hooks on the Trainer's model.

        Args:
            trainer: the Trainer.
            called: the module that it calls: the model, or what is wrapped around it.
            stages: those that the run may come to.
        """
        self._end_hooks()  # the Trainer may try again, with smaller batches
        step = int(trainer.state.global_step) if stages[0] is not Stage.PREDICT else 0
        first = _callbacks_of(trainer)[0] is self
        self._events.begin(trainer, loggers_of(trainer, stages[0]), first, Moment(stages[0], step=step), facts.position)
        if not is_distributed():
            return self._start(trainer, called, stages)
        place = f"{_callbacks_of(trainer).index(self)} of {_WHO}, run {next(_runs)}"
        roll_call = RollCall(place, _WHO, after_barrier=False)
        with roll_call.starting():
            run = self._start(trainer, called, stages)
            try:
                self._compare(trainer, roll_call)
            except BaseException:
                self._end_hooks()
                raise
        return run

    def _start(self, trainer: Any, called: nn.Module, stages: Sequence[Stage]) -> HookedRun:
        hooks = self._by_key()
        failed = failed_to_forget(hooks.values())
        self._effects = None
        if self._resumed_from is not None:
            self._resume(self._resumed_from / self._file_name(trainer))
        root = find_root(trainer.model, self.root)
        names = log_names(self.controllers, [one.controllers for one in _callbacks_of(trainer)])
        self._log.begin_run(self._method)
        self._run = run = HookedRun(
            root, [*self.controllers, *self.detectors, *self._alarms.hooks()], self.token_mask, names, graphs_of(called)
        )
        self._events.follow(run, self.detectors, names, facts.log_interval(trainer, self.log_every_n_steps))
        self._alarms.begin(TransformersTrainer(trainer, Stage.TRAIN in stages), run.layers, names, self._events.alarm)
        self._effects = run.effects
        self._states.give_effects_to(run, hooks)
        try:
            run.report_failures(failed)
            if Stage.TRAIN in stages:
                run.check_before_fit()
            self._report(trainer, called, stages)
            self._alarms.warn_of_layers(run.layers)
            if run.begin(stages):
                log_info(start_notes.fresh_graphs_in_words(_WHO))
            with_page = (one for one in followers_of(trainer) if isinstance(one, HookTrainerCallback) and one.page)
            writes_page = next(with_page, None) is self  # of several, the one that ends last
            quiet = not trainer.state.is_world_process_zero
            self._end_page.begin(loggers_of(trainer, stages[0]), writes_page, quiet)
            if Stage.TRAIN not in stages:
                start_notes.warn_of_controllers_never_due(self.controllers, stages, self._method)
        except BaseException:
            self._end_hooks()
            raise
        return run

    def _report(self, trainer: Any, called: nn.Module, stages: Sequence[Stage]) -> None:
        """Log the report of the run, to the Trainer's TensorBoard too, then refuse the run if it must be."""
        assert self._run is not None, "a report is of a run"
        layers, hooks = self._run.layers, [*self.controllers, *self.detectors]
        registries = [one._run.layers for one in _callbacks_of(trainer) if one._run is not None]
        refused = refusals_of_run(trainer, called, layers, registries, stages, self._alarms.asks_before_step)
        every, scalars = self.log_every_n_steps, self._log.scalars
        report = report_of_run(_WHO, self._method, trainer, called, hooks, layers, stages, every, scalars, refused)
        self._reporter.log(trainer, report, layers.unmasked)
        if refused:
            raise refused[0]
        callbacks = _callbacks_of(trainer)
        name = self.name or (str(callbacks.index(self) + 1) if len(callbacks) > 1 else "")
        write_report(loggers_of(trainer, stages[0]), report, name, trainer.state.global_step)

    def _compare(self, trainer: Any, roll_call: RollCall) -> None:
        options = {
            "name": self.name,
            "root": self.root,
            "log_every_n_steps": facts.log_interval(trainer, self.log_every_n_steps),
            "alarms": list(map(repr, self.alarms)),
            "token_mask": "given" if self.token_mask is not None else "not given",
        }
        hooks = {"detectors": self.detectors, "controllers": self.controllers}
        roll_call.compare(Plan.of(options, hooks, self._run.layers if self._run is not None else None))

    def _resume(self, path: Path) -> None:
        if path.is_file():
            self._states.load(self._by_key(), None, state_file.read(path))
            return
        warn(
            f"{_WHO}: the checkpoint {shown(str(path.parent))} holds no {path.name}, so hooks start from nothing, and "
            "not where they were when it was saved.",
            ResumeWarning,
            stacklevel=2,
        )

    def _file_name(self, trainer: Any) -> str:
        unnamed = [one for one in _callbacks_of(trainer) if one.name is None]
        return state_file.file_name(self.name, unnamed.index(self) if self.name is None else 0)

    def _by_key(self) -> dict[str, Hook]:
        return state_keys([*self.detectors, *self.controllers])

    def _end_hooks(self) -> None:
        run, self._run = self._run, None
        self._alarms.end()
        if run is not None:
            run.end()

    def _end_run(self) -> None:
        trainer = self._attached_to()
        if trainer is not None:
            self._events.finish(trainer, self._loggers_of_events(trainer))
        self._end_hooks()
        self._leave_run()

    def _pause(self) -> None:
        if self._run is not None:
            self._run.pause()

    def _loggers_of_events(self, trainer: Any) -> list[Any]:
        """Return the loggers if there are events for them: a closed event file is not opened again for nothing."""
        stage = self._run.stage if self._run is not None else None
        return loggers_of(trainer, stage or Stage.TRAIN) if self._events.waits else []

    def _flush_events(self) -> None:
        self._events.flush(self._loggers_of_events(self._attached_to()))

    def _note_failure(self, error: BaseException) -> None:
        trainer = self._attached_to()
        self._end_page.forget()
        if trainer is not None:
            self._events.fail(trainer, loggers_of(trainer, Stage.TRAIN), error)

    def _finish_evaluation(self, stage: Stage) -> None:
        if self._run is None:  # there was no batch
            return
        trainer, self._batch_idx = self._attached_to(), 0  # the reading is of no one batch
        moment = self._moment(trainer, stage)
        self._run.enter_stage(moment)
        self._write(trainer, moment.step if stage is Stage.VALIDATE else None)
        self._run.check_that_hooks_ran(stage)
        self._flush_events()

    def _write(self, trainer: Any, step: int | None) -> None:
        """Write readings to the Trainer's loggers."""
        assert self._run is not None and self._run.stage is not None, "readings belong to a stage of a run"
        loggers, device = loggers_of(trainer, self._run.stage), trainer.args.device
        read = self._log.write(self._run, loggers, step, device, events=self._events)
        moment = self._run.moment
        assert moment is not None, "readings belong to a batch"
        self._alarms.read(read, moment, step if step is not None else self._run.batches_seen)


def _callbacks_of(trainer: Any) -> list[HookTrainerCallback]:
    return [one for one in trainer.callback_handler.callbacks if isinstance(one, HookTrainerCallback)]


def _warn_of_single_step(method: str, runs: str) -> None:
    warn(
        f"{_WHO}: {method}() was called outside of {runs}, so hooks are off in it: they follow {runs} alone.",
        NothingSeenWarning,
        stacklevel=2,
    )
