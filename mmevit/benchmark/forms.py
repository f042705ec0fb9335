"""The setting of a benchmark, and the forms that networks are measured in: eager, exported, ..."""

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmevit.deploy import TARGETS, export, load_exported
from mmevit.deploy.networks import largest_difference, make_exportable
from mmevit.deploy.programs import as_tuple
from mmevit.utils.errors import ConfigError

from .models import FlatOutputs, Predictions

DTYPES = ('float32', 'bfloat16', 'float16', 'int8')
# Computes the batch of a workload; returns None in training.
Run = Callable[[], Sequence[Tensor] | None]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all networks of a benchmark have in common.

    Args:
        batch_size: Images per call; 1 measures latency.
        threads: CPU threads.
        size: Height and width of the images. Defaults to the size that the accuracy of each network
            is published for, 224 x 224 if that is unknown.
        device: ``'cpu'`` or ``'cuda'``.
        channels_last: Whether the eager, folded and cudagraph forms use channels-last images and
            weights. Compiled forms always do. Traced forms never do, except for EfficientViT, whose
            folded weights are channels-last.
        rounds: Number of times that each network is measured.
        seconds: Duration of each measurement, which is at least one call.
        seed: Seed of weights, images and the order of measurements.
        keep_memory: Whether the allocator keeps freed memory, for steadier times. This lasts for
            the rest of the process.
    """

    batch_size: int = 16
    threads: int = 1
    size: tuple[int, int] | None = None
    device: str = 'cpu'
    channels_last: bool = False
    rounds: int = 20
    seconds: float = 0.25
    seed: int = 0
    keep_memory: bool = False


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network, in evaluation mode, and a batch (N, C, H, W) to measure in each form."""

    network: FlatOutputs
    folded: FlatOutputs
    images: Tensor
    setting: Setting
    folder: str  # for exported files

    @cached_property
    def expected(self) -> tuple[Tensor, ...]:
        """The outputs of the eager network, for all forms."""
        network, inputs = with_inputs(self.network, self.images)
        return as_tuple(network(*inputs))

    def measure_difference(self, outputs: Sequence[Tensor]) -> float | None:
        """Measure the difference from the eager network, None for a varying number of boxes."""
        if not isinstance(self.network, Predictions):
            return largest_difference(outputs, self.expected)
        if [output.shape for output in outputs] != [output.shape for output in self.expected]:
            return None
        network, _ = with_inputs(self.network, self.images)
        return network.measure_difference(outputs, self.expected)


def with_inputs(network: FlatOutputs, images: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
    """Return the module to trace or export, and its inputs for images (N, C, H, W)."""
    if not isinstance(network, Predictions):
        return network, (images,)
    exportable = make_exportable(network.model)
    return exportable, exportable.make_inputs(images)


def split_form(form: str) -> tuple[str, str]:
    """Split the name of a form into its key in ``FORMS`` and its dtype.

    Example:
        >>> split_form('aoti-bfloat16'), split_form('eager')
        (('aoti', 'bfloat16'), ('eager', 'float32'))
    """
    name, _, dtype = form.partition('-')
    return name, dtype or 'float32'


def prepare(
    workload: Workload,
    dtype: str,
    make_run: Callable[[Any, Tensor], Run] = partial,
    folded: bool = True,
    channels_last: bool | None = None,
) -> Run:
    """Copy a network and images to a dtype and a memory format, make the run, and warm it up.

    By default, the run calls the network, and the setting decides about ``channels_last``.
    """
    if dtype == 'int8':
        raise ConfigError('int8 is only supported by onnxruntime, openvino, litert and executorch.')
    if channels_last is None:
        channels_last = workload.setting.channels_last
    layout = torch.channels_last if channels_last else torch.preserve_format
    options: dict[str, Any] = dict(dtype=getattr(torch, dtype), memory_format=layout)
    network = copy.deepcopy(workload.folded if folded else workload.network)
    run = make_run(network.to(**options), workload.images.to(**options))
    for _ in range(3):  # until everything is compiled and cached
        run()
    return run


def compile_frozen(network: nn.Module, images: Tensor) -> Run:
    """Compile a network with frozen weights."""
    return partial(torch.compile(network, options=dict(freezing=True)), images)


def capture(network: nn.Module, images: Tensor) -> Run:
    """Record the kernels of a network in a CUDA graph, which launches all of them at once."""
    if not images.is_cuda:
        raise ConfigError('cudagraph is only supported on GPUs. Use --device cuda.')
    network(images)  # fills caches, which cannot be recorded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = network(images)

    def replay(*recorded: Any) -> Sequence[Tensor]:
        graph.replay()
        return outputs

    return partial(replay, network, images)  # keeps their memory, which the graph reads


def trace(network: FlatOutputs, images: Tensor) -> Run:
    """Trace a network, like the speed test of the released code."""
    exportable, inputs = with_inputs(network, images)
    traced: Any = torch.jit.trace(exportable, inputs, check_trace=False)
    return partial(traced, *inputs)


def prepare_training(workload: Workload, dtype: str) -> Run:
    """Run forward, in mixed precision, and backward, without an optimizer."""

    def make_step(network: nn.Module, images: Tensor) -> Run:
        network.train()
        autocast = torch.autocast(images.device.type, getattr(torch, dtype), dtype != 'float32')

        def step() -> None:
            network.zero_grad()
            with torch.enable_grad():
                with autocast:
                    outputs = network(images)
                losses = [output.float().square().mean() for output in outputs]
                torch.stack(losses).sum().backward()

        return step

    return prepare(workload, 'float32', make_step, folded=False)


def prepare_exported(target: str, workload: Workload, dtype: str) -> Run:
    """Export the folded network, and load the file."""
    images = workload.images
    if images.is_cuda and target != 'aoti':
        raise ConfigError(f'{target} is only supported on the CPU. Use --device cpu.')
    path = Path(tempfile.mkdtemp(dir=workload.folder), 'network' + TARGETS[target])
    if target == 'litert':  # as cameras have them, and LiteRT files take them
        images = images.contiguous(memory_format=torch.channels_last)
    network, inputs = with_inputs(workload.folded, images)
    export(network, inputs, path, target, dynamic=(), dtype=dtype, batches=[inputs])
    return partial(load_exported(path, workload.setting.threads, trust=True), *inputs)


# Functions that bring a network into a form and, unless it is exported, warm it up.
FORMS: dict[str, Callable[[Workload, str], Run]] = dict(
    eager=partial(prepare, folded=False),
    folded=prepare,
    compiled=partial(prepare, make_run=compile_frozen, channels_last=True),
    cudagraph=partial(prepare, make_run=capture),
    traced=partial(prepare, make_run=trace, channels_last=False),
    onnxruntime=partial(prepare_exported, 'onnx'),
    openvino=partial(prepare_exported, 'openvino'),
    litert=partial(prepare_exported, 'litert'),
    executorch=partial(prepare_exported, 'executorch'),
    ncnn=partial(prepare_exported, 'ncnn'),
    torchscript=partial(prepare_exported, 'torchscript'),
    aoti=partial(prepare_exported, 'aoti'),
    training=prepare_training,
)
