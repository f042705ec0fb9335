"""The forms that a network is measured in: eager, compiled, exported and so on."""

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmevit.deploy import TARGETS, export, load_exported
from mmevit.utils.errors import ConfigError

from .models import FlatOutputs
from .setting import Setting

# Computes the batch of a workload; returns None in training.
Run = Callable[[], Sequence[Tensor] | None]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network and a batch to measure in each form.

    Args:
        network: The network, in evaluation mode.
        folded: The same network, folded.
        images: A batch, (N, C, H, W).
        setting: Number of threads and memory layout.
        folder: Where exported files are written.
    """

    network: FlatOutputs
    folded: FlatOutputs
    images: Tensor
    setting: Setting
    folder: str


def split_form(form: str) -> tuple[str, str]:
    """Split the name of a form into its key in ``FORMS`` and its dtype.

    Example:
        >>> split_form('aoti-bfloat16'), split_form('eager')
        (('aoti', 'bfloat16'), ('eager', 'float32'))
    """
    name, _, dtype = form.partition('-')
    return name, dtype or 'float32'


def is_form(form: str) -> bool:
    """Whether a form of that name exists."""
    name, dtype = split_form(form)
    return name in FORMS and dtype in ('float32', 'bfloat16', 'float16', 'int8')


def prepare_form(form: str, workload: Workload) -> Run:
    """Bring a network into a form and warm it up."""
    name, dtype = split_form(form)
    return FORMS[name](workload, dtype)


def prepare_eager(workload: Workload, dtype: str, folded: bool = False) -> Run:
    """Run the network as it is."""
    network = workload.folded if folded else workload.network
    channels_last = workload.setting.channels_last
    return warm_up(partial(*convert(network, workload.images, dtype, channels_last)))


def prepare_compiled(workload: Workload, dtype: str) -> Run:
    """Compile the folded network with frozen weights, channels-last."""
    folded, images = convert(workload.folded, workload.images, dtype, channels_last=True)
    return warm_up(partial(torch.compile(folded, options=dict(freezing=True)), images))


def prepare_traced(workload: Workload, dtype: str) -> Run:
    """Trace the folded network, like the speed test of the released code."""
    folded, images = convert(workload.folded, workload.images, dtype, channels_last=False)
    trace: Any = torch.jit.trace(folded, images, check_trace=False)
    return warm_up(partial(trace, images))


def prepare_training(workload: Workload, dtype: str) -> Run:
    """Run forward, in mixed precision, and backward, without an optimizer."""
    channels_last = workload.setting.channels_last
    network, images = convert(workload.network, workload.images, 'float32', channels_last)
    network.train()
    autocast = torch.autocast(images.device.type, getattr(torch, dtype), dtype != 'float32')

    def step() -> None:
        network.zero_grad()
        with torch.enable_grad():
            with autocast:
                outputs = network(images)
            torch.stack([output.float().square().mean() for output in outputs]).sum().backward()

    return warm_up(step)


def prepare_exported(target: str, workload: Workload, dtype: str) -> Run:
    """Export the folded network, and load the file."""
    images = workload.images
    if images.is_cuda and target != 'aoti':
        raise ConfigError(f'{target} is only supported on the CPU. Use --device cpu.')
    path = Path(tempfile.mkdtemp(dir=workload.folder), 'network' + TARGETS[target])
    export(workload.folded, images, path, target, dynamic=(), dtype=dtype, batches=[(images,)])
    return partial(load_exported(path, workload.setting.threads, trust=True), images)


def convert(
    network: FlatOutputs, images: Tensor, dtype: str, channels_last: bool
) -> tuple[FlatOutputs, Tensor]:
    """Copy a network and images to a dtype and a memory format."""
    if dtype == 'int8':
        raise ConfigError('int8 is only supported by onnxruntime and openvino.')
    layout = torch.channels_last if channels_last else torch.preserve_format
    options = dict(dtype=getattr(torch, dtype), memory_format=layout)
    return copy.deepcopy(network).to(**options), images.to(**options)


def warm_up(run: Run) -> Run:
    """Run three times, until everything is compiled and cached."""
    for _ in range(3):
        run()
    return run


FORMS: dict[str, Callable[[Workload, str], Run]] = dict(
    eager=prepare_eager,
    folded=partial(prepare_eager, folded=True),
    compiled=prepare_compiled,
    traced=prepare_traced,
    onnxruntime=partial(prepare_exported, 'onnx'),
    openvino=partial(prepare_exported, 'openvino'),
    torchscript=partial(prepare_exported, 'torchscript'),
    aoti=partial(prepare_exported, 'aoti'),
    training=prepare_training,
)
