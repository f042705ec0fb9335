"""OpenVINO files, converted from ONNX, and run with OpenVINO."""

import json
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import openvino
import torch
from torch import Tensor, nn

from . import to_onnx

DTYPES = ('float32', 'bfloat16', 'float16', 'int8')
DYNAMIC = frozenset({'batch', 'size'})


def write(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    dynamic: Collection[str],
    dtype: str,
    metadata: str,
    batches: Iterable[Sequence[Tensor]] = (),
) -> None:
    """Write a .xml file and its .bin file; see :func:`mmevit.deploy.export`."""
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = f'{folder}/model.onnx'
        # OpenVINO converts to half precision itself.
        onnx_dtype = 'int8' if dtype == 'int8' else 'float32'
        to_onnx.write(network, inputs, onnx_path, dynamic, onnx_dtype, metadata, batches)
        model: Any = openvino.convert_model(onnx_path)
    model.set_rt_info(metadata, 'mmevit')
    # For bfloat16, the weights stay float32 and the processor computes in bfloat16.
    model.set_rt_info('bf16' if dtype == 'bfloat16' else 'f32', 'mmevit_precision')
    openvino.save_model(model, path, compress_to_fp16=dtype == 'float16')


class Session:
    """An OpenVINO file on the CPU.

    Args:
        path: The .xml file; the .bin file is next to it.
        num_threads: CPU threads.
    """

    def __init__(self, path: str, num_threads: int) -> None:
        core = openvino.Core()
        model: Any = core.read_model(path)
        self.metadata = json.loads(model.get_rt_info('mmevit').value)
        # By default OpenVINO computes in bfloat16 on CPUs that support it.
        precision = model.get_rt_info('mmevit_precision').value
        config = dict(INFERENCE_NUM_THREADS=num_threads, INFERENCE_PRECISION_HINT=precision)
        self.model = core.compile_model(model, 'CPU', config)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map input tensors to a tuple of tensors."""
        outputs = self.model([tensor.numpy() for tensor in inputs])
        return tuple(torch.from_numpy(array.copy()) for array in outputs.values())
