"""Compiles the kernels for NVIDIA GPUs, as a script; neither a GPU nor its driver is needed.

    python -m tests.metrics.one_pass.on_cuda.program_compile

It shows that Triton's compiler and ptxas take them, with the arguments and options that they are launched with. It
does not show that they compute the right thing (the interpreter does), nor how fast.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from mi_crow_lightning.metrics.one_pass.buffers import Place
from mi_crow_lightning.metrics.one_pass.on_cuda.launch import launch, launch_sum
from mi_crow_lightning.metrics.rows import ROW_SIZE
from mi_crow_lightning.metrics.summary import Group


class NoDevice:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


launched = JITFunction.run


def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
    compiled = launched(self, *args, grid=grid, warmup=True, **options)
    print(self.__name__, compiled.metadata.target.arch, f"{len(compiled.asm['cubin'])} bytes")
    return compiled


def compile_for(capability: int, dtype: torch.dtype, shape: tuple[int, int], keep: Any, groups: Group) -> None:
    triton.runtime.driver.set_active(NoDevice(capability))
    width = shape[1] if Group.CHANNELS in groups else 0
    place = Place(*(torch.empty(size, dtype=torch.float64) for size in (ROW_SIZE, width, width)))
    launch(torch.empty(shape, dtype=dtype), keep, groups, place, add=keep is None, batch=3)


@triton.jit
def abs_sum(v, valid):
    return tl.sum(tl.abs(v))


def compile_sum_for(capability: int, dtype: torch.dtype, shape: tuple[int, int], keep: Any) -> None:
    triton.runtime.driver.set_active(NoDevice(capability))
    launch_sum(torch.empty(shape, dtype=dtype), keep, abs_sum, 0.0)


if __name__ == "__main__":
    JITFunction.run = compile_only
    compile_for(90, torch.bfloat16, (256, 768), None, Group.ALL)
    compile_for(80, torch.float32, (40, 64), torch.ones(40, 1, dtype=torch.bool), Group.ALL)
    compile_for(90, torch.float16, (3, 50), torch.ones(3, 50, dtype=torch.bool), Group.MOMENTS | Group.CHANNELS)
    compile_sum_for(90, torch.bfloat16, (256, 768), None)
    compile_sum_for(80, torch.float32, (40, 64), torch.ones(40, 1, dtype=torch.bool))
    compile_sum_for(90, torch.float16, (3, 50), torch.ones(3, 50, dtype=torch.bool))
