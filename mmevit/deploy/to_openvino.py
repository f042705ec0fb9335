"""OpenVINO's files, made by way of ONNX, and running them."""

import json
import tempfile

import openvino
import torch

from . import to_onnx

DTYPES = ('float32', 'bfloat16', 'float16', 'int8')
DYNAMIC = frozenset({'batch', 'size'})


def write(network, inputs, path, dynamic, dtype, metadata, batches=None):
    """Write a pair of .xml and .bin; see :func:`mmevit.deploy.export`."""
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = f'{folder}/model.onnx'
        # Half precision comes below.
        onnx_dtype = 'int8' if dtype == 'int8' else 'float32'
        to_onnx.write(network, inputs, onnx_path, dynamic, onnx_dtype, metadata, batches)
        model = openvino.convert_model(onnx_path)
    model.set_rt_info(metadata, 'mmevit')
    # The weights stay as they are then, and the processor computes in bfloat16.
    model.set_rt_info('bf16' if dtype == 'bfloat16' else 'f32', 'mmevit_precision')
    openvino.save_model(model, path, compress_to_fp16=dtype == 'float16')


class Session:
    """An OpenVINO file on the CPU.

    Args:
        path (str): The .xml file, beside its .bin.
        num_threads (int): CPU threads.
    """

    def __init__(self, path, num_threads):
        core = openvino.Core()
        model = core.read_model(path)
        self.metadata = json.loads(model.get_rt_info('mmevit').value)
        # By itself a CPU that has bfloat16 computes in that, unasked.
        precision = model.get_rt_info('mmevit_precision').value
        config = dict(INFERENCE_NUM_THREADS=num_threads, INFERENCE_PRECISION_HINT=precision)
        self.model = core.compile_model(model, 'CPU', config)

    def __call__(self, *inputs):
        """Map input tensors to a tuple of tensors."""
        outputs = self.model([tensor.numpy() for tensor in inputs])
        return tuple(torch.from_numpy(array.copy()) for array in outputs.values())
