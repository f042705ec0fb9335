"""TorchScript files, which LibTorch runs too."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import TracerWarning  # pyright: ignore[reportPrivateImportUsage]

from .networks import PerImageNetwork
from .operators import (
    EXTRACT_ROIS,
    LAY_MASKS,
    SELECT_BOXES,
    extract_rois,
    lay_masks,
    select_boxes,
)
from .programs import ExportJob, PrecisionWrapper, PyTorchSession, temporarily
from .replacing import ReplaceFunctions

DTYPES = ('float32', 'bfloat16')
DYNAMIC = frozenset({'batch', 'size'})


def write(job: ExportJob) -> None:
    """Write a trace, which supports other shapes; see :func:`mmevit.deploy.export`."""
    with ReplaceFunctions(FUNCTIONS), warnings.catch_warnings():
        # Sizes in Python; compared with PyTorch at another size.
        warnings.simplefilter('ignore', TracerWarning)
        is_detector = isinstance(job.network, PerImageNetwork)
        trace = trace_detector(job) if is_detector else trace_network(job)
    fixed = None if job.dynamic else shapes_of(job.inputs)
    extra = dict(mmevit=job.metadata, fixed_shapes=json.dumps(fixed))
    torch.jit.freeze(trace).save(str(job.path), _extra_files=extra)


def trace_network(job: ExportJob) -> Any:
    """Trace a network."""
    return torch.jit.trace(PrecisionWrapper(job.network, job.dtype).eval(), job.inputs)


def trace_detector(job: ExportJob) -> Any:
    """Trace the two parts of a :class:`Detector`, and call the second one in a loop."""
    detector: Any = job.network
    images, sizes = job.inputs
    features = trace_network(replace(job, network=detector.features, inputs=(images,)))
    first = images[0], sizes[0], [feature[0] for feature in features(images)]
    predict: Any = torch.jit.trace(WithList(detector.predict), first)
    return torch.jit.script(Loop(features, predict, len(detector.output_names)).eval())


class WithList(nn.Module):
    """A network whose inputs from the third on are one list."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, size: Tensor, features: list[Tensor]) -> Any:
        """Run the network."""
        return self.network(image, size, *features)


class Loop(nn.Module):
    """A detector of two traces, in TorchScript."""

    def __init__(self, features: nn.Module, predict: nn.Module, num_outputs: int) -> None:
        super().__init__()
        self.features, self.predict, self.num_outputs = features, predict, num_outputs

    def forward(self, images: Tensor, image_sizes: Tensor) -> list[Tensor]:
        """Run the second trace for each image."""
        features: list[Tensor] = []
        for feature in self.features(images):
            features.append(feature)  # TorchScript has no list of a tuple
        results: list[Tensor] = []
        for index in range(images.shape[0]):
            maps = [feature[index] for feature in features]
            for result in self.predict(images[index], image_sizes[index], maps):
                results.append(result)
        num_outputs = self.num_outputs
        return [torch.stack(results[output::num_outputs]) for output in range(num_outputs)]


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    # PyTorch 2.11 fails to fuse bmm with an addition of a constant.
    torch.bmm: torch.matmul,
    # Only Python has the operators of mmevit.
    SELECT_BOXES: torch.jit.script(select_boxes),
    EXTRACT_ROIS: torch.jit.script(extract_rois),
    LAY_MASKS: torch.jit.script(lay_masks),
}


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
        self.metadata = json.loads(extra['mmevit'] or '{}')
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
