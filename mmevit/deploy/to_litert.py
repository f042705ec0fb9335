"""LiteRT (TensorFlow Lite) files, run with XNNPACK. Their images and maps have channels last."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import litert_torch
import torch
import torch.nn.functional as F
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import qtyping
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.quantizer import Quantizer
from litert_converter.mlir import ir as mlir_ir
from litert_converter.mlir.dialects import stablehlo
from litert_torch.backend.lowerings import lower
from litert_torch.backend.lowerings.utils import node_meta_to_ir_types, splat
from torch import Tensor, nn

from mmevit.runtime.sessions import append_metadata
from mmevit.utils.errors import ConfigError, one_line

from .operators import SELECT_BOXES, define, select_boxes
from .programs import ExportJob, as_tuple, list_input_names, list_output_names, temporarily
from .replacing import ReplaceFunctions

DTYPES = ('float32', 'float16', 'int8')
DYNAMIC = frozenset()
ir: Any = mlir_ir  # It has no type hints.


def write(job: ExportJob) -> None:
    """Write a .tflite file of one shape; see :func:`mmevit.deploy.export`."""
    names = list_input_names(job.network)
    content = convert(ChannelsLast(job.network).eval(), name_inputs(names, job.inputs))
    if job.dtype == 'float16':
        content = cast_weights_to_float16(content)
    elif job.dtype == 'int8':
        content = quantize(content, (name_inputs(names, batch) for batch in job.batches))
    job.path.write_bytes(content)
    append_metadata(job.path, job.metadata)


def name_inputs(names: Sequence[str], inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return inputs by name, with channels-last images."""
    images, *others = inputs
    return dict(zip(names, (images.permute(0, 2, 3, 1), *others), strict=True))


def convert(network: nn.Module, inputs: dict[str, Tensor]) -> bytes:
    """Convert a network; raise ConfigError if LiteRT does not support an operator of it."""
    config = litert_torch.config
    try:
        with temporarily(partial(setattr, config, 'show_progress'), False, config.show_progress):
            return litert_torch.convert(
                network, sample_kwargs=inputs, runtime_constant_folding=True
            ).model_content()
    except (RuntimeError, ValueError) as error:
        reason = one_line(error)
        if 'Lowering not found' not in reason and 'converter passes' not in reason:
            raise
        raise ConfigError(f'LiteRT cannot convert this model ({reason}). Use onnx.') from error


class ChannelsLast(nn.Module):
    """A network with channels-last images and maps, and a dict of outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Run the network."""
        images, *others = inputs.values()
        with ReplaceFunctions(FUNCTIONS):
            outputs = as_tuple(self.network(images.permute(0, 3, 1, 2), *others))
        names = list_output_names(self.network, len(outputs))
        return dict(zip(names, map(put_channels_last, outputs), strict=True))


def put_channels_last(x: Tensor) -> Tensor:
    """Reorder maps (N, C, H, W) to (N, H, W, C), and make labels 32-bit integers."""
    if x.ndim == 4:
        return x.permute(0, 2, 3, 1)
    return x if x.is_floating_point() else x.int()


def suppress(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_num: int
) -> tuple[Tensor, Tensor]:
    """Return what :func:`select_boxes` does, and the number of boxes, as LiteRT's operator does."""
    kept = select_boxes(boxes, scores, iou_threshold, max_num).int()
    return kept, (kept >= 0).sum(dtype=torch.int32)


SUPPRESS = define(
    'suppress(Tensor boxes, Tensor scores, float iou_threshold, int max_num) -> (Tensor, Tensor)',
    suppress,
    lambda boxes, scores, iou_threshold, max_num: (
        boxes.new_empty(max_num, dtype=torch.int32),
        boxes.new_empty((), dtype=torch.int32),
    ),
)


@lower(SUPPRESS)  # pyright: ignore[reportArgumentType]
def translate_suppress(
    context: Any, boxes: Any, scores: Any, iou_threshold: float, max_num: int
) -> Any:
    """Translate :func:`suppress` to LiteRT's operator, which the converter recognizes by name."""
    integer, real = ir.IntegerType.get_signless(32), ir.F32Type.get()
    limits = splat(max_num, integer), splat(iou_threshold, real), splat(0.0, real)
    return stablehlo.custom_call(
        node_meta_to_ir_types(context.node),
        [boxes, scores, *limits],
        'tfl.non_max_suppression_v4',
        has_side_effect=False,
        backend_config=ir.StringAttr.get('{}'),
    )


def select_suppressed(boxes: Tensor, scores: Tensor, iou_threshold: float, max_num: int) -> Tensor:
    """Do the same as :func:`select_boxes`."""
    kept, count = SUPPRESS(boxes, scores, iou_threshold, max_num)
    return torch.where(torch.arange(max_num) < count, kept, -1).long()


def interpolate(x: Tensor, *args: Any, mode: str = 'nearest', **kwargs: Any) -> Tensor:
    """Do the same as :func:`torch.nn.functional.interpolate`.

    Upsampling to twice the size, or one pixel less, by the nearest pixel repeats pixels: XNNPACK
    does not run LiteRT's operator, and the converter samples other pixels unless factors are
    integers.

    Raises:
        ConfigError: If maps are resized by the nearest pixel, and by other factors.
    """
    output = F.interpolate(x, *args, mode=mode, **kwargs)
    if mode != 'nearest' or x.ndim != 4:
        return output
    (_, _, height, width), (_, _, rows, columns) = x.shape, output.shape
    if not {2 * height - rows, 2 * width - columns} <= {0, 1}:
        if rows % height or columns % width:
            raise ConfigError(
                f'LiteRT cannot resize maps from {height}x{width} to {rows}x{columns} by the '
                'nearest pixel. Use another --size, or onnx.'
            )
        return output
    x = x.permute(0, 2, 3, 1)
    x = torch.cat([x, x], dim=3).reshape(-1, height, 2 * width, x.shape[3])[:, :, :columns]
    x = torch.cat([x, x], dim=2).reshape(-1, 2 * height, columns, x.shape[3])[:, :rows]
    return x.permute(0, 3, 1, 2)


FUNCTIONS: dict[Any, Any] = {
    # For a batch of one, torch.bmm becomes a fully connected layer of variable weights, which
    # XNNPACK does not support.
    torch.bmm: torch.ops.tfl.batch_matmul,
    SELECT_BOXES: select_suppressed,
    F.interpolate: interpolate,
}


def cast_weights_to_float16(content: bytes) -> bytes:
    """Store the weights in half precision. XNNPACK computes in float32, GPUs in half precision."""
    quantizer: Any = Quantizer(content)
    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    quantizer.update_quantization_recipe(
        '.*',
        qtyping.TFLOperationName.ALL_SUPPORTED,
        qtyping.OpQuantizationConfig(
            weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.FLOAT
        ),
        AlgorithmName.FLOAT_CASTING,
    )
    return quantizer.quantize().quantized_model


# XNNPACK has no int8 versions of the first three, and concatenating the heads in 8 bits is slower.
# With a classifier of 8 bits, M1 predicts another class for 28 % of Imagenette.
FLOAT_OPERATORS = (
    'SOFTMAX',
    'RELU',
    'BATCH_MATMUL',
    'CONCATENATION',
    'FULLY_CONNECTED',
    'INPUT',
    'OUTPUT',
)


def quantize(content: bytes, batches: Iterable[dict[str, Tensor]]) -> bytes:
    """Quantize a network, except for :data:`FLOAT_OPERATORS` and the boxes of detectors."""
    quantizer: Any = Quantizer(content)
    operators = qtyping.TFLOperationName
    quantizer.add_static_config('.*', operators.ALL_SUPPORTED, 8, 8)
    excluded = [('.*', operators[name]) for name in FLOAT_OPERATORS]
    excluded += [(scope, operators.ALL_SUPPORTED) for scope in find_decoding(content)]
    for scope, operator in excluded:
        quantizer.update_quantization_recipe(
            scope, operator, algorithm_key=AlgorithmName.NO_QUANTIZE
        )
    arrays = ({name: part.numpy() for name, part in batch.items()} for batch in batches)
    statistics = None
    while chunk := list(islice(arrays, 16)):  # Not all images fit into memory.
        statistics = quantizer.calibrate(
            {'serving_default': chunk}, statistics, num_threads=torch.get_num_threads()
        )
    return quantizer.quantize(statistics).quantized_model


def find_decoding(content: bytes) -> list[str]:
    """Return patterns of the last convolutions of a detector and of the operators after them.

    Coordinates of 8 bits, of which only 256 differ, cost 5 points of AP on the digits.
    """
    interpreter = Interpreter(model_content=content)
    names = {tensor['index']: tensor['name'] for tensor in interpreter.get_tensor_details()}
    if not any('PredictOne' in name for name in names.values()):
        return []
    operators = walk_back(interpreter, until='CONV')
    scopes = (''.join(f'{names[index]};' for index in op['outputs']) for op in operators)
    return [f'^{re.escape(scope)}$' for scope in scopes]


def walk_back(interpreter: Interpreter, until: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the operators that outputs depend on, back to those with ``until`` in their name."""
    # LiteRT has no public function for it. Each part that XNNPACK runs is a further operator at the
    # end of the list; the operators in it stay in the list.
    operators = interpreter._get_ops_details()
    producers = {index: operator for operator in operators for index in operator['outputs']}
    needed = [tensor['index'] for tensor in interpreter.get_output_details()]
    found: set[int] = set()
    while needed:
        operator = producers.get(needed.pop())
        if operator is None or operator['index'] in found:
            continue
        found.add(operator['index'])
        yield operator
        if until is None or until not in operator['op_name']:
            needed += [*operator['inputs']]


def count_undelegated(path: str | Path) -> Counter[str]:
    """Return the number of operators of each type that XNNPACK does not run."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    names = (operator['op_name'] for operator in walk_back(interpreter))
    return Counter(name for name in names if name != 'DELEGATE')
