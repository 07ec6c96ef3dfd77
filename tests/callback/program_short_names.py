"""What a command line of LightningCLI may name before and after the package is imported, as JSON."""

import contextlib
import io
import json
import sys
from abc import ABC, abstractmethod

from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

SHORT = ["--trainer.callbacks=HookCallback"]
FULL = ["--trainer.callbacks=mi_crow_lightning.HookCallback"]
HOOKS = [
    *("--trainer.callbacks.detectors+=ActivationStatistics", "--trainer.callbacks.detectors.layer_signature=layer"),
    *("--trainer.callbacks.controllers+=ScaleController", "--trainer.callbacks.controllers.layer_signature=layer"),
    *("--trainer.callbacks.controllers.factor=2", "--trainer.callbacks.alarms+=Alarm"),
    "--trainer.callbacks.alarms.rule=NonFinite",
]


def printed(*arguments: str) -> str:
    """What a command prints: the hooks of its callback, its help, or its error."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(SystemExit):
        cli = LightningCLI(BoringModel, run=False, args=list(arguments))
        (callback,) = [one for one in cli.trainer.callbacks if type(one).__name__ == "HookCallback"]
        return str([type(one).__name__ for one in (*callback.detectors, *callback.controllers)])
    return " ".join(out.getvalue().split())


if __name__ == "__main__":
    found = {"before": printed(*SHORT), "imported before": "mi_crow_lightning" in sys.modules}
    found["full"] = printed(*FULL, *HOOKS)  # jsonargparse imports the package, and with it all that may be named
    found["after"] = printed(*SHORT, *HOOKS)

    import mi_crow_lightning as mcl

    class Unfinished(mcl.Detector, ABC):
        """A user's base class."""

        @abstractmethod
        def number(self):
            """Return a number."""

    class Own(Unfinished):
        def number(self):
            return 1

    found["help"] = printed("--trainer.callbacks.help=HookCallback")
    found["help of an alarm"] = printed("--trainer.callbacks=HookCallback", "--trainer.callbacks.alarms.help=Alarm")
    named = ["--trainer.callbacks=HookCallback", "--trainer.callbacks.detectors+=Detector"]
    found["a base"] = printed(*named, "--trainer.callbacks.detectors.layer_signature=layer")
    print("\n" + json.dumps(found))
