"""The configuration file of the documentation gives the alarms that Python would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mi_crow_lightning.alarms import Alarm, Jump, NonFinite

pytest.importorskip("jsonargparse")

from tests.callback.configured import cli, hook_callbacks

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "alarms.md"


@pytest.mark.filterwarnings("ignore:HookCallback writes readings every:UserWarning")
def test_the_file_of_the_documentation_is_read_by_a_command_line() -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (watch,) = hook_callbacks(cli(yaml.safe_load(text)["trainer"]["callbacks"], "fit"))
    meant = [Alarm(NonFinite(), ["snapshot", "stop"]), Alarm(Jump("rms", factor=3.0), "warn")]
    assert repr(watch.alarms) == repr(meant)
