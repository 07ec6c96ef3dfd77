"""Run what has no result yet, then write the page. An interrupted run goes on where it was."""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from examples.science.page import write
from examples.science.plan import parts
from examples.science.worker import measure, quiet

ROOT = Path(__file__).parents[2]


def main(quick: bool, again: bool, workers: int, only: list[str], page: Path) -> None:
    folder = ROOT / "outputs" / "science" / ("quick" if quick else "whole")
    folder.mkdir(parents=True, exist_ok=True)
    names = [part.name for part in parts(quick) if not only or part.effect in only]
    todo = [name for name in names if again or not (folder / f"{name}.json").exists()]
    os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}  # in the workers
    with ProcessPoolExecutor(workers, get_context("spawn"), quiet) as pool:
        running = {pool.submit(measure, name, quick, folder): name for name in todo}
        bar = tqdm(total=len(names), initial=len(names) - len(todo), unit="part", disable=False)
        for done in as_completed(running):
            bar.set_postfix_str(f"{running[done]}: {done.result():.0f} s")
            bar.update()
        bar.close()
    if not only:
        print(write(folder, quick, page))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make science", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a trial of every script, whose verdicts mean nothing")
    parser.add_argument("--again", action="store_true", help="run also what has a result")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="EFFECT", help="these parts alone, and no page")
    parser.add_argument(
        "--page", type=Path, help="the page to write (default: docs/science.md; --quick: beside results)"
    )
    main(**vars(parser.parse_args()))
