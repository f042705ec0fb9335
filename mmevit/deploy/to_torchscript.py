"""TorchScript files, which LibTorch runs too."""

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .programs import ExportJob, PrecisionWrapper, PyTorchSession, temporarily

DTYPES = ('float32', 'bfloat16')
DYNAMIC = frozenset({'batch', 'size'})


def write(job: ExportJob) -> None:
    """Write a trace, which supports other shapes; see :func:`mmevit.deploy.export`."""
    with MatmulForBmm():
        trace = torch.jit.trace(PrecisionWrapper(job.network, job.dtype).eval(), job.inputs)
    fixed = None if job.dynamic else shapes_of(job.inputs)
    extra = dict(mmevit=job.metadata, fixed_shapes=json.dumps(fixed))
    torch.jit.freeze(trace).save(str(job.path), _extra_files=extra)


class MatmulForBmm(TorchFunctionMode):
    """Call matmul instead of bmm: PyTorch 2.11 fails to fuse bmm with an addition of a constant."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return (torch.matmul if func is torch.bmm else func)(*args, **(kwargs or {}))


def shapes_of(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Return the shapes of tensors as lists, like JSON does."""
    return [list(tensor.shape) for tensor in tensors]


class Session(PyTorchSession):
    """A TorchScript file, which oneDNN fuses if it was written for one shape.

    Consecutive convolutions then pass on their outputs in oneDNN's own layout. For files with
    dynamic shapes, the fused code of PyTorch 2.11 is wrong or crashes.
    """

    def __init__(self, path: str, num_threads: int) -> None:
        extra = dict(mmevit='', fixed_shapes='')
        super().__init__(torch.jit.load(path, _extra_files=extra), num_threads)
        self.metadata = json.loads(extra['mmevit'])
        self.path = path
        self.fused_shapes = json.loads(extra['fixed_shapes'] or 'null')
        self.is_compiled = False

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map input tensors to a tuple of tensors."""
        if self.fused_shapes:
            try:
                if shapes_of(inputs) == self.fused_shapes:
                    return self.run_fused(*inputs)
            except RuntimeError:
                pass  # oneDNN does not support maps of one pixel.
            # Code compiled for other shapes, or incompletely, must not run again.
            self.module, self.fused_shapes = torch.jit.load(self.path), None
        return super().__call__(*inputs)

    def run_fused(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the fused code, which the second run compiles."""
        was_enabled = torch.jit.onednn_fusion_enabled()
        with temporarily(torch.jit.enable_onednn_fusion, True, was_enabled):
            if not self.is_compiled:
                super().__call__(*inputs)
                self.is_compiled = True
            return super().__call__(*inputs)
