"""ONNX files, and running them with ONNX Runtime."""

import json
import warnings

import onnx
import onnxruntime
import torch
from onnxscript import opset18 as op

from .boxes import select_boxes
from .channels_first import put_channels_first
from .programs import make_program
from .quantization import quantize

DTYPES = ('float32', 'float16', 'int8')
DYNAMIC = frozenset({'batch', 'size'})


def write(network, inputs, path, dynamic, dtype, metadata, batches=None):
    """Write an ONNX file; see :func:`mmevit.deploy.export`."""
    compute_dtype = 'float32' if dtype == 'int8' else dtype
    with warnings.catch_warnings():
        # PyTorch's exporter uses what PyTorch is about to rename.
        warnings.simplefilter('ignore', FutureWarning)
        program = torch.onnx.export(
            make_program(put_channels_first(network), inputs, dynamic, compute_dtype),
            input_names=input_names(inputs),
            output_names=getattr(network, 'output_names', None),
            custom_translation_table={select_boxes: translate_select_boxes},
            verbose=False,
        )
    model = program.model_proto
    onnx.helper.set_model_props(model, {'mmevit': metadata})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    if dtype == 'int8':
        quantize(path, input_names(inputs), batches)


def translate_select_boxes(boxes, scores, iou_threshold, score_threshold, max_num):
    """Say :func:`mmevit.deploy.boxes.select_best_boxes` in operators of ONNX."""
    # Rows of image, class and box, of one image after the other, the best first.
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
    nothing = op.Expand(op.Constant(value_ints=[-1]), shape)
    last = op.Constant(value_ints=[1])
    places = op.Concat(op.Unsqueeze(image, last), op.Unsqueeze(rank, last), axis=1)
    return op.ScatterND(nothing, places, box)


def input_names(inputs):
    """Name the inputs: images, and for detectors the sizes of the images inside the padding."""
    return ['images', 'image_sizes'][: len(inputs)]


class Session:
    """An ONNX file in ONNX Runtime, on the CPU.

    Args:
        path (str): The file.
        num_threads (int): CPU threads.
    """

    def __init__(self, path, num_threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        providers = ['CPUExecutionProvider']
        self.session = onnxruntime.InferenceSession(path, options, providers)
        properties = self.session.get_modelmeta().custom_metadata_map
        self.metadata = json.loads(properties.get('mmevit', '{}'))
        self.names = [node.name for node in self.session.get_inputs()]

    def __call__(self, *inputs):
        """Map input tensors to a tuple of tensors."""
        arrays = (tensor.numpy() for tensor in inputs)
        outputs = self.session.run(None, dict(zip(self.names, arrays, strict=True)))
        return tuple(map(torch.from_numpy, outputs))
