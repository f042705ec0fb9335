"""ONNX files, run with ONNX Runtime."""

import logging
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import onnx
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)
from onnxscript import FLOAT, INT64, opset18, script
from torch import Tensor

from mmevit.models.attention import put_channels_first

from .networks import PerImageNetwork
from .operators import EXTRACT_ROIS, LAY_MASKS, SELECT_BOXES
from .programs import (
    ExportJob,
    count_outputs,
    export_detector,
    export_program,
    list_input_names,
    list_output_names,
    temporarily,
)
from .replacing import ReplaceFunctions

DTYPES = ('float32', 'float16', 'int8')
DYNAMIC = frozenset({'batch', 'size'})
op: Any = opset18  # Its type hints reject the output of one operator as the input of another.


def write(job: ExportJob, float_stem: bool = True) -> None:
    """Write an ONNX file; see :func:`mmevit.deploy.export` and :func:`list_quantized`."""
    names = list_input_names(job.network)
    with ReplaceFunctions(INT8_FUNCTIONS if job.dtype == 'int8' else {}):
        model = convert(job, names)
    onnx.checker.check_model(model)
    if job.dtype == 'int8':
        model = quantize(model, CalibrationBatches(names, job.batches), float_stem)
    onnx.helper.set_model_props(model, {'mmevit': job.metadata})
    onnx.save(model, job.path)


def convert(job: ExportJob, input_names: list[str]) -> onnx.ModelProto:
    """Convert a network, a detector as its two parts."""
    job.network.apply(put_channels_first)
    if not isinstance(job.network, PerImageNetwork):
        program = export_program(job)
        names = list_output_names(job.network, count_outputs(program))
        return translate(program, input_names, names)
    batched, one = export_detector(job)
    maps = [f'feature_{index}' for index in range(count_outputs(batched))]
    names = list_output_names(job.network, count_outputs(one))
    return join(
        translate(batched, input_names[:1], maps),
        translate(one, ['image', 'image_size', *maps], names),
        [*input_names, *maps],
        names,
    )


def translate(program: Any, input_names: list[str], output_names: list[str]) -> onnx.ModelProto:
    """Translate an exported program to an ONNX model."""
    # PyTorch's exporter calls deprecated functions, and warns of constants that it does not fold.
    optimizer = logging.getLogger('onnxscript.optimizer')
    level = temporarily(optimizer.setLevel, logging.ERROR, optimizer.level)
    with warnings.catch_warnings(), level:
        warnings.simplefilter('ignore', FutureWarning)
        result: Any = torch.onnx.export(
            program,
            input_names=input_names,
            output_names=output_names,
            custom_translation_table=OPERATORS,
            verbose=False,
        )
    return result.model_proto


def join(
    batched: onnx.ModelProto,
    single: onnx.ModelProto,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    """Append a graph that runs for each image of a batch.

    Args:
        batched: Maps the first of ``inputs`` to those from the third on.
        single: Maps one image of all ``inputs`` to one of the ``outputs``.
        inputs: Names of tensors whose first axis is the batch.
        outputs: Names of the results.
    """
    # Without this map, constants are not renamed in loops.
    constants = {value.name: f'image/{value.name}' for value in single.graph.initializer}
    onnx.compose.add_prefix_graph(single.graph, 'image/', inplace=True, name_map=constants)
    scan = onnx.helper.make_node(
        'Scan',
        list(inputs),
        list(outputs),
        'images',
        body=single.graph,
        num_scan_inputs=len(inputs),
    )
    graph = batched.graph
    graph.node.append(scan)
    sizes = onnx.helper.make_tensor_value_info(
        inputs[1], onnx.TensorProto.FLOAT, [batch_axis(graph.input[0]), 2]
    )
    graph.input.append(sizes)
    del graph.output[:]
    for name, value in zip(outputs, single.graph.output, strict=True):
        shape = [batch_axis(graph.input[0]), *map(axis_value, value.type.tensor_type.shape.dim)]
        graph.output.append(
            onnx.helper.make_tensor_value_info(name, value.type.tensor_type.elem_type, shape)
        )
    return batched


def batch_axis(value: onnx.ValueInfoProto) -> str | int:
    """Return the name or the size of the first axis."""
    return axis_value(value.type.tensor_type.shape.dim[0])


def axis_value(axis: Any) -> str | int:
    """Return the name or the size of an axis."""
    return axis.dim_param or axis.dim_value


def permute(x: Tensor, *dims: int) -> Tensor:
    """Do the same as :meth:`torch.Tensor.permute`, but copy windows with channels last.

    Convolutions of 8 bits have channels last. Copying single bytes takes 7 % of the time of M4.
    """
    if dims == (0, 2, 4, 1, 3, 5):  # cut into windows
        batch, channels, rows, height, columns, width = x.shape
        x = x.view(batch, channels, rows * height, columns * width).permute(0, 2, 3, 1)
        x = swap(x.view(batch, rows, height, columns, width, channels))
        x = x.view(-1, height, width, channels).permute(0, 3, 1, 2)
        return x.view(batch, rows, columns, channels, height, width)
    if dims == (0, 3, 1, 4, 2, 5):  # put windows together
        batch, rows, columns, channels, height, width = x.shape
        x = x.view(-1, channels, height, width).permute(0, 2, 3, 1)
        x = swap(x.view(batch, rows, columns, height, width, channels))
        x = x.view(batch, rows * height, columns * width, channels).permute(0, 3, 1, 2)
        return x.view(batch, channels, rows, height, columns, width)
    return x.permute(*dims)


def swap(x: Tensor) -> Tensor:
    """Copy (N, A, B, C, D, E) to (N, A, C, B, D, E)."""
    return x.transpose(2, 3).clone(memory_format=torch.contiguous_format)


INT8_FUNCTIONS: dict[Any, Any] = {Tensor.permute: permute}


def translate_select_boxes(boxes: Any, scores: Any, iou_threshold: float, max_num: int) -> Any:
    """Translate :func:`mmevit.deploy.operators.select_boxes` to ONNX operators."""
    selected = op.NonMaxSuppression(
        op.Unsqueeze(boxes, [0]), op.Unsqueeze(scores, [0, 1]), [max_num], [iou_threshold], [0.0]
    )
    # Rows of (image, class, box), by descending score.
    kept = op.Gather(selected, 2, axis=1)
    padding = op.Expand([-1], op.Sub([max_num], op.Shape(kept)))
    return op.Concat(kept, padding, axis=0)


def translate_extract_rois(
    maps: Sequence[Any],
    boxes: Any,
    levels: Any,
    scales: Sequence[float],
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Any:
    """Translate :func:`mmevit.deploy.operators.extract_rois` to ONNX operators."""
    if aligned and sampling_ratio == 0:
        # Boxes without area have no samples: PyTorch and ONNX Runtime return zeros, but OpenVINO
        # NaN. Boxes outside the image have zeros everywhere.
        corners, ends = op.Split(boxes, axis=1, num_outputs=2)
        sides = op.Sub(ends, corners)
        has_area = op.Greater(op.ReduceMin(sides, [1]), 0.0)
        boxes = op.Where(has_area, boxes, [-1064.0, -1064.0, -1000.0, -1000.0])
    index, features = [], []
    for level, (values, scale) in enumerate(zip(maps, scales, strict=True)):
        rows = op.Squeeze(op.NonZero(op.Equal(levels, level)), [0])
        index.append(rows)
        features.append(
            op.RoiAlign(
                values,
                op.Gather(boxes, rows, axis=0),
                op.Mul(rows, 0),
                coordinate_transformation_mode='half_pixel' if aligned else 'output_half_pixel',
                output_height=size,
                output_width=size,
                sampling_ratio=sampling_ratio,
                spatial_scale=scale,
            )
        )
    # The rows by level, back in the order of the boxes.
    order = op.Concat(*index, axis=0)
    _, inverse = op.TopK(order, op.Shape(order), largest=0)
    return op.Gather(op.Concat(*features, axis=0), inverse, axis=0)


@script()
def translate_lay_masks(
    rows: FLOAT[...],
    columns: FLOAT[...],
    labels: INT64[...],
    count: INT64,
    threshold: float,
    max_overlap: float,
) -> INT64[...]:
    """Translate :func:`mmevit.deploy.operators.lay_masks` to an ONNX loop."""
    height = op.Shape(rows, start=1, end=2)
    width = op.Shape(columns, start=2)
    output = op.Expand(op.Constant(value_int=0), op.Concat(height, width, axis=0))
    number = op.Constant(value_int=0)
    for index in range(count):  # pyright: ignore[reportArgumentType]
        probabilities = op.MatMul(op.Gather(rows, index), op.Gather(columns, index))
        mask = probabilities >= op.Constant(value_float=threshold)
        is_free = output == 0
        area = op.ReduceSum(op.Cast(mask, to=1), keepdims=0)
        free = op.ReduceSum(op.Cast(op.And(mask, is_free), to=1), keepdims=0)
        overlap = (area - free) / (area + 1e-5)
        is_kept = op.And(area > 0.0, overlap <= op.Constant(value_float=max_overlap))
        number = number + op.Cast(is_kept, to=7)
        value = op.Gather(labels, index) + 1000 * number
        output = op.Where(op.And(op.And(mask, is_free), is_kept), value, output)
    return output


OPERATORS = {
    SELECT_BOXES: translate_select_boxes,
    EXTRACT_ROIS: translate_extract_rois,
    LAY_MASKS: translate_lay_masks,
}


LAYERS = ('Conv', 'Gemm')
# Operators between layers, in 8 bits too: converting to float32 and back takes longer than most of
# them, and a ReLU after a layer then takes no time.
CONNECTIONS = ('Relu', 'Add', 'Concat', 'Split', 'Reshape', 'Transpose')


def quantize(
    model: onnx.ModelProto, batches: CalibrationDataReader, float_stem: bool
) -> onnx.ModelProto:
    """Quantize a float32 model, see :func:`list_quantized`, per channel."""
    with tempfile.TemporaryDirectory() as folder:
        original, prepared, quantized = (f'{folder}/{number}.onnx' for number in range(3))
        onnx.save(model, original)
        # The warnings are about the unprocessed model.
        with temporarily(logging.disable, logging.WARNING, logging.NOTSET):
            quant_pre_process(original, prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        rename_constants_of_loops(model.graph)
        onnx.save(model, prepared)
        quantize_static(
            prepared,
            quantized,
            batches,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=LAYERS + CONNECTIONS,
            nodes_to_quantize=list_quantized(model.graph, float_stem),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options=dict(ActivationSymmetric=False, WeightSymmetric=True),
        )
        return onnx.load(quantized)


def list_quantized(graph: onnx.GraphProto, float_stem: bool) -> list[str]:
    """List the nodes to quantize: layers, and the connections that lead to them.

    Others, such as the sums that softmax needs or the coordinates of boxes, stay in float32. With
    ``float_stem`` the first convolution does too, for which ONNX Runtime takes up to 2.6 times as
    long in 8 bits.
    """
    producers = {output: node for node in graph.node for output in node.output}
    layers = [node for node in graph.node if node.op_type in LAYERS]
    if float_stem:
        layers = [node for node in layers if node.input[0] != graph.input[0].name]
    found = {node.name for node in layers}
    needed = [node.input[0] for node in layers]
    while needed:
        node = producers.get(needed.pop())
        if node is not None and node.op_type in CONNECTIONS and node.name not in found:
            found.add(node.name)
            needed += node.input
    return [*found]


def rename_constants_of_loops(graph: onnx.GraphProto) -> None:
    """Give constants of loops names that are not used outside.

    ONNX Runtime's optimizer uses some names twice, which OpenVINO confuses.
    """
    attributes = (attribute for node in graph.node for attribute in node.attribute)
    for body in (attribute.g for attribute in attributes if attribute.HasField('g')):
        onnx.compose.add_prefix_graph(
            body,
            'loop/',
            rename_edges=False,
            rename_inputs=False,
            rename_outputs=False,
            rename_value_infos=False,
            inplace=True,
            name_map={value.name: f'loop/{value.name}' for value in body.initializer},
        )


class CalibrationBatches(CalibrationDataReader):
    """Batches in the format of ONNX Runtime."""

    def __init__(self, names: Sequence[str], batches: Iterable[Sequence[Tensor]]) -> None:
        self.names, self.batches = names, iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """Return the arrays of the next batch by name, None after the last."""
        if (batch := next(self.batches, None)) is None:
            return None
        return {name: part.numpy() for name, part in zip(self.names, batch, strict=True)}
