"""ONNX files, run with ONNX Runtime."""

import dataclasses
import json
import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import onnxruntime
import torch
from onnxscript import opset18
from torch import Tensor

from .boxes import select_boxes
from .channels_first import put_channels_first
from .programs import ExportJob, export_program
from .quantization import quantize

DTYPES = ('float32', 'float16', 'int8')
DYNAMIC = frozenset({'batch', 'size'})
op: Any = opset18  # Its type hints reject the output of one operator as the input of another.


def write(job: ExportJob) -> None:
    """Write an ONNX file; see :func:`mmevit.deploy.export`."""
    dtype = 'float32' if job.dtype == 'int8' else job.dtype
    names, output_names = input_names(job.inputs), getattr(job.network, 'output_names', None)
    network = put_channels_first(job.network)
    with warnings.catch_warnings():
        # PyTorch's exporter uses deprecated functions of PyTorch.
        warnings.simplefilter('ignore', FutureWarning)
        program: Any = torch.onnx.export(
            export_program(dataclasses.replace(job, network=network, dtype=dtype)),
            input_names=names,
            output_names=output_names,
            custom_translation_table={select_boxes: translate_select_boxes},
            verbose=False,
        )
    model = program.model_proto
    onnx.helper.set_model_props(model, {'mmevit': job.metadata})
    onnx.checker.check_model(model)
    onnx.save(model, job.path)
    if job.dtype == 'int8':
        quantize(job.path, names, job.batches)


def translate_select_boxes(
    boxes: Any, scores: Any, iou_threshold: float, score_threshold: float, max_num: int
) -> Any:
    """Translate :func:`mmevit.deploy.boxes.select_best_boxes` to ONNX operators."""
    # Rows of (image, class, box), sorted by image, then by descending score.
    selected = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, op.Constant(value_ints=[1])),
        op.Constant(value_ints=[max_num]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[score_threshold]),
    )
    image = op.Gather(selected, op.Constant(value_int=0), axis=1)
    box = op.Gather(selected, op.Constant(value_int=2), axis=1)

    num_images = op.Shape(scores, start=0, end=1)
    images = op.Range(op.Constant(value_int=0), op.Squeeze(num_images), op.Constant(value_int=1))
    of_image = op.Cast(op.Equal(op.Unsqueeze(images, op.Constant(value_ints=[1])), image), to=7)
    rank_in_image = op.Mul(op.CumSum(of_image, op.Constant(value_int=1)), of_image)
    rank = op.Sub(
        op.ReduceMax(rank_in_image, op.Constant(value_ints=[0]), keepdims=0),
        op.Constant(value_int=1),
    )
    shape = op.Concat(num_images, op.Constant(value_ints=[max_num]), axis=0)
    padding = op.Expand(op.Constant(value_ints=[-1]), shape)
    last = op.Constant(value_ints=[1])
    positions = op.Concat(op.Unsqueeze(image, last), op.Unsqueeze(rank, last), axis=1)
    return op.ScatterND(padding, positions, box)


def input_names(inputs: Sequence[Tensor]) -> list[str]:
    """Name the inputs: images, and for detectors the image sizes without padding."""
    return ['images', 'image_sizes'][: len(inputs)]


class Session:
    """An ONNX file in ONNX Runtime, on the CPU."""

    def __init__(self, path: str, num_threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        providers = ['CPUExecutionProvider']
        self.session = onnxruntime.InferenceSession(path, options, providers)
        properties = self.session.get_modelmeta().custom_metadata_map
        self.metadata = json.loads(properties.get('mmevit', '{}'))
        self.names = [node.name for node in self.session.get_inputs()]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map input tensors to a tuple of tensors."""
        arrays = (tensor.numpy() for tensor in inputs)
        outputs: Any = self.session.run(None, dict(zip(self.names, arrays, strict=True)))
        return tuple(map(torch.from_numpy, outputs))
