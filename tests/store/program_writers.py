"""A script: processes that write to a store without end, ``python -m tests.store.program_writers FOLDER``.

Each line that it reads is a number: a new process writes tensors of this number and those that follow. Its ID is
printed when it has written once. torch is imported once for all of them.
"""

from __future__ import annotations

import os
import sys

import torch

from mi_crow_lightning.store import LocalStore

SIZE = 100_000


def write_without_end(folder: str, number: int) -> None:
    store, said = LocalStore(folder), False
    while True:
        tensor = torch.full((SIZE,), float(number))
        store.put("r", number % 7, "l", "k", tensor)
        store.put_run_batch("whole", number % 5, {"a": tensor, "b": tensor + 1})
        store.put_run_metadata("r", {"number": number, "pad": "x" * 10_000})
        store.put_detector_metadata("d", 0, {"number": number}, {"l": {"k": tensor}})
        if not said:
            print(os.getpid(), flush=True)
            said = True
        number += 1


def main(folder: str) -> None:
    for line in sys.stdin:
        if os.fork() == 0:
            write_without_end(folder, int(line))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
