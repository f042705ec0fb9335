"""ONNX files, run with ONNX Runtime."""

import dataclasses
import json
import logging
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import onnx
import onnxruntime
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)
from onnxscript import opset18
from torch import Tensor

from mmevit.models.attention import put_channels_first

from .boxes import select_boxes
from .programs import ExportJob, export_program, temporarily

DTYPES = ('float32', 'float16', 'int8')
DYNAMIC = frozenset({'batch', 'size'})
op: Any = opset18  # Its type hints reject the output of one operator as the input of another.


def write(job: ExportJob) -> None:
    """Write an ONNX file; see :func:`mmevit.deploy.export`."""
    dtype = 'float32' if job.dtype == 'int8' else job.dtype
    names, output_names = input_names(job.inputs), getattr(job.network, 'output_names', None)
    job.network.apply(put_channels_first)
    with warnings.catch_warnings():
        # PyTorch's exporter uses deprecated functions of PyTorch.
        warnings.simplefilter('ignore', FutureWarning)
        program: Any = torch.onnx.export(
            export_program(dataclasses.replace(job, dtype=dtype)),
            input_names=names,
            output_names=output_names,
            custom_translation_table={select_boxes: translate_select_boxes},
            verbose=False,
        )
    model = program.model_proto
    onnx.checker.check_model(model)
    if job.dtype == 'int8':
        model = quantize(model, CalibrationBatches(names, job.batches))
    onnx.helper.set_model_props(model, {'mmevit': job.metadata})
    onnx.save(model, job.path)


def translate_select_boxes(
    boxes: Any, scores: Any, iou_threshold: float, score_threshold: float, max_num: int
) -> Any:
    """Translate :func:`mmevit.deploy.boxes.select_best_boxes` to ONNX operators."""
    # Rows of (image, class, box), sorted by image, then by descending score.
    selected = op.NonMaxSuppression(
        boxes, op.Unsqueeze(scores, [1]), [max_num], [iou_threshold], [score_threshold]
    )
    image, box = op.Gather(selected, 0, axis=1), op.Gather(selected, 2, axis=1)
    num_images = op.Shape(scores, start=0, end=1)
    images = op.Range(0, op.Squeeze(num_images), 1)
    of_image = op.Cast(op.Equal(op.Unsqueeze(images, [1]), image), to=onnx.TensorProto.INT64)
    rank_in_image = op.Mul(op.CumSum(of_image, 1), of_image)
    rank = op.Sub(op.ReduceMax(rank_in_image, [0], keepdims=0), 1)
    shape = op.Concat(num_images, op.Constant(value_ints=[max_num]), axis=0)
    padding = op.Expand([-1], shape)
    positions = op.Concat(op.Unsqueeze(image, [1]), op.Unsqueeze(rank, [1]), axis=1)
    return op.ScatterND(padding, positions, box)


def input_names(inputs: Sequence[Tensor]) -> list[str]:
    """Name the inputs: images, and for detectors the image sizes without padding."""
    return ['images', 'image_sizes'][: len(inputs)]


def quantize(model: onnx.ModelProto, batches: CalibrationDataReader) -> onnx.ModelProto:
    """Quantize convolutions and linear layers of a float32 model, per channel."""
    with tempfile.TemporaryDirectory() as folder:
        original, prepared, quantized = (f'{folder}/{number}.onnx' for number in range(3))
        onnx.save(model, original)
        # The warnings are about the unprocessed model.
        with temporarily(logging.disable, logging.WARNING, logging.NOTSET):
            quant_pre_process(original, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantized,
            batches,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=['Conv', 'Gemm'],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options=dict(ActivationSymmetric=False, WeightSymmetric=True),
        )
        return onnx.load(quantized)


class CalibrationBatches(CalibrationDataReader):
    """Batches in the format of ONNX Runtime."""

    def __init__(self, names: Sequence[str], batches: Iterable[Sequence[Tensor]]) -> None:
        self.names, self.batches = names, iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """Return the arrays of the next batch by name, None after the last."""
        if (batch := next(self.batches, None)) is None:
            return None
        return {name: part.numpy() for name, part in zip(self.names, batch, strict=True)}


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
