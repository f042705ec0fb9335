"""ncnn files, converted by pnnx. A run is for one image; sessions loop over batches."""

import json
import subprocess
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from typing import Any

import pnnx
import torch
from torch import Tensor
from torch.jit import TracerWarning  # pyright: ignore[reportPrivateImportUsage]

from mmevit.models.attention import put_channels_first
from mmevit.utils.errors import ConfigError

from .networks import PerImageNetwork
from .programs import ExportJob, append_description, export_program
from .replacing import ReplaceFunctions

DTYPES = ('float32', 'float16')
DYNAMIC = frozenset({'batch'})


def write(job: ExportJob) -> None:
    """Write a .param file and its .bin file; see :func:`mmevit.deploy.export`."""
    network, images, metadata = job.network, job.inputs[0][:1], json.loads(job.metadata)
    if isinstance(network, PerImageNetwork):
        network, metadata['suppression'] = network.make_candidate_network(images)
    network.apply(put_channels_first)
    job_of_one = replace(job, network=network, inputs=(images,), dynamic=set(), dtype='float32')
    with ReplaceFunctions(FUNCTIONS):
        program = export_program(job_of_one)
    graph: Any = program.module(check_guards=False)
    select_by_views(graph)
    join_views(graph)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore', TracerWarning)  # of checks of the shape of inputs
        trace: Any = torch.jit.trace(graph, images)
        trace.save(f'{folder}/model.pt')
        run_pnnx(folder, list(images.shape), job.dtype == 'float16')
        for suffix in ('.param', '.bin'):
            copyfile(f'{folder}/model{suffix}', job.path.with_suffix(suffix))
    weights = job.path.with_suffix('.bin')
    append_description(weights, job, program, metadata, dtype=job.dtype)


def run_pnnx(folder: str, shape: list[int], half: bool) -> None:
    """Convert model.pt to model.param and model.bin.

    Raises:
        ConfigError: If pnnx fails, or ncnn has no layer for an operator.
    """
    options = [f'inputshape={shape}'.replace(' ', ''), f'fp16={int(half)}']
    files = ['ncnnparam=model.param', 'ncnnbin=model.bin']
    command = [pnnx.EXEC_PATH, 'model.pt', *options, *files]
    output = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if output.returncode:
        raise ConfigError(
            f'pnnx cannot convert this model (its exit status is {output.returncode}). Use onnx.'
        )
    # pnnx keeps PyTorch's name, such as torch.argmax, for operators that ncnn does not have.
    layers = Path(folder, 'model.param').read_text().splitlines()[2:]
    problems = sorted({name for layer in layers if '.' in (name := layer.split()[0])})
    problems += [line for line in output.stderr.splitlines() if 'not supported' in line]
    if problems:
        raise ConfigError(f'ncnn cannot run this model ({", ".join(problems)}). Use onnx.')


def keep_scores(x: Tensor, dim: int) -> Tensor:
    """Leave it to the runtime to find the best class of each pixel."""
    return x


def permute(x: Tensor, *dims: int) -> Tensor:
    """Do the same as :meth:`torch.Tensor.permute`.

    ncnn has at most four axes, so that windows, which have six, are copied in two steps.
    """
    if dims == (0, 2, 4, 1, 3, 5):  # cut into windows
        batch, channels, rows, height, columns, width = x.shape
        x = swap(x.view(-1, height, columns, width))
        x = swap(x.view(batch, channels, rows * columns, height * width))
        return x.view(batch, rows, columns, channels, height, width)
    if dims == (0, 3, 1, 4, 2, 5):  # put windows together
        batch, rows, columns, channels, height, width = x.shape
        x = swap(x.view(batch, rows * columns, channels, height * width))
        x = swap(x.view(-1, columns, height, width))
        return x.view(batch, channels, rows, height, columns, width)
    return x.permute(*dims)


def swap(x: Tensor) -> Tensor:
    """Copy (A, B, C, D) to (A, C, B, D)."""
    return x.transpose(1, 2).clone(memory_format=torch.contiguous_format)


FUNCTIONS: dict[Any, Any] = {Tensor.permute: permute, Tensor.argmax: keep_scores}


def select_by_views(network: Any) -> None:
    """Replace the selection of the only image by a view, since ncnn has no axis of images."""
    for node in network.graph.nodes:
        if node.target is torch.ops.aten.select.int and node.args[1:] == (0, 0):
            source, shape = node.args[0], node.args[0].meta['val'].shape
            if shape[0] == 1:
                node.target, node.args = torch.ops.aten.view.default, (source, list(shape[1:]))


def join_views(network: Any) -> None:
    """Replace consecutive views by the last, so that no tensor has more than four axes."""
    view, clone = torch.ops.aten.view.default, torch.ops.aten.clone.default
    for node in network.graph.nodes:
        while node.target is view:
            source = node.args[0]
            if source.target is clone and source.args[0].target is view:
                source = source.args[0]
            if source.target is not view:
                break
            node.args = source.args[0], node.args[1]
    network.graph.eliminate_dead_code()
    network.recompile()
