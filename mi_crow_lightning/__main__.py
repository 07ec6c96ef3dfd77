"""The command line: ``python -m mi_crow_lightning layers MODEL``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the arguments after the program's name; by default those of the process.

    Returns:
        The exit code: 0, or 2 after an error, with a message on standard error.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    # Only here: torch and transformers take seconds to import, and --help needs neither.
    from mi_crow_lightning.errors import LayerNotFound
    from mi_crow_lightning.language_model.model_outline import outline

    try:
        found = outline(given.model, "block:*" if given.blocks else given.match)
    except (LayerNotFound, OSError, ValueError) as error:
        return _fail(str(error))
    except Exception as error:  # whatever transformers raises for a config that it cannot use
        return _fail(f"{given.model!r}: {type(error).__name__}: {error}")
    print(json.dumps(asdict(found), indent=2) if given.json else found)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mi_crow_lightning")
    layers = parser.add_subparsers(required=True, metavar="COMMAND").add_parser(
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
    return parser


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
