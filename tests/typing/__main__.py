"""Whether a type checker finds the typos of ``typos.py`` and takes the right uses of ``uses.py``.

``python -m tests.typing`` asks mypy, with the settings of pyproject.toml; ``python -m tests.typing pyright`` pyright,
with any options behind it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TYPOS, USES = (Path(__file__).with_name(name).relative_to(Path.cwd()) for name in ("typos.py", "uses.py"))


def found_by(command: list[str]) -> dict[Path, set[int]]:
    """The lines of each file in which a type checker finds an error."""
    ran = subprocess.run([*command, str(TYPOS), str(USES)], capture_output=True, text=True)
    lines: dict[Path, set[int]] = {TYPOS: set(), USES: set()}
    for path, line in re.findall(r"^ *(\S+?):(\d+)(?::\d+)?(?: -|:) error\b", ran.stdout, re.MULTILINE):
        for file in lines:
            if Path(path).resolve() == file.resolve():
                lines[file].add(int(line))
    if not lines[TYPOS]:  # it did not run
        sys.exit(f"{ran.stdout}{ran.stderr}")
    return lines


def main(command: list[str]) -> None:
    found = found_by(command)
    text = TYPOS.read_text(encoding="utf-8").splitlines()
    typos = {number: line.split("# typo: ")[1] for number, line in enumerate(text, 1) if "# typo: " in line}
    missed = [what for number, what in typos.items() if number not in found[TYPOS]]
    wrong = [f"{TYPOS}:{number}" for number in found[TYPOS] - typos.keys()]
    wrong += [f"{USES}:{number}" for number in found[USES]]
    print(f"{command[0]} finds {len(typos) - len(missed)} of {len(typos)} typos")
    if missed:
        print("missed:", *missed, sep="\n  ")
    if wrong:
        print("refused, though right:", *sorted(wrong), sep="\n  ")
    if wrong or missed:
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:] or [str(Path(sys.executable).with_name("mypy"))])
