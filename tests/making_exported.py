"""Exported files whose outputs are known."""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TASKS = dict(
    logits='classification',
    boxes='detection',
    masks='instance-segmentation',
    segments='semantic-segmentation',
)


def write_exported(
    path, outputs=None, nodes=(), sizes=True, shape=(None, 3, None, None), **changes
):
    """Write an ONNX file that returns arrays for every image, or what nodes compute.

    Args:
        path (Path): The file.
        outputs (dict): Arrays for one image by name, or type and shape of an output of ``nodes``.
        nodes (list): Of the graph, with the input ``images``.
        sizes (bool): Whether there is an input ``image_sizes``.
        shape (tuple): Of ``images``, None for dynamic axes.
        **changes: Of the metadata; those named in ``input`` are changed there.
    """
    initializers, nodes = [], [*nodes, helper.make_node('Shape', ['images'], ['batch'], end=1)]
    infos = [helper.make_tensor_value_info('images', TensorProto.FLOAT, shape)]
    if sizes:
        infos.append(helper.make_tensor_value_info('image_sizes', TensorProto.FLOAT, [shape[0], 2]))
    results = []
    for name, array in outputs.items():
        if isinstance(array, tuple):
            results.append(helper.make_tensor_value_info(name, *array))
            continue
        ones = np.ones(array.ndim, np.int64)
        initializers += [
            numpy_helper.from_array(array[None], f'{name}_values'),
            numpy_helper.from_array(ones, f'{name}_ones'),
        ]
        nodes += [
            helper.make_node('Concat', ['batch', f'{name}_ones'], [f'{name}_shape'], axis=0),
            helper.make_node('Expand', [f'{name}_values', f'{name}_shape'], [name]),
        ]
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        results.append(helper.make_tensor_value_info(name, kind, [None] * (array.ndim + 1)))
    graph = helper.make_graph(nodes, 'graph', infos, results, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=8)
    onnx.checker.check_model(model)
    metadata = dict(
        format=1,
        version='0.1.0',
        task=next(task for name, task in reversed(TASKS.items()) if name in outputs),
        model='Detector',
        classes=['cat', 'dog', 'tree'],
        input=dict(
            shape=list(shape),
            channels='BGR',
            mean=None,
            std=None,
            pad_size_divisor=1,
            pad_value=0,
            pipeline=[dict(type='LoadImageFromFile')],
        ),
    )
    metadata['input'].update(changes.pop('input', {}))
    onnx.helper.set_model_props(model, dict(mmevit=json.dumps({**metadata, **changes})))
    onnx.save(model, path)
    return path


def convert_to_openvino(path):
    """Convert an ONNX file to OpenVINO as the export does, and return the file."""
    import openvino

    model = openvino.convert_model(path)
    (metadata,) = (x.value for x in onnx.load(path).metadata_props if x.key == 'mmevit')
    model.set_rt_info(metadata, 'mmevit')
    model.set_rt_info('f32', 'mmevit_precision')
    openvino.save_model(model, path.with_suffix('.xml'), compress_to_fp16=False)
    return path.with_suffix('.xml')


def means(**changes):
    """Nodes and outputs of a classifier whose logits are the means of the channels."""
    node = helper.make_node('GlobalAveragePool', ['images'], ['pooled'])
    flat = helper.make_node('Flatten', ['pooled'], ['logits'])
    return dict(
        outputs=dict(logits=(TensorProto.FLOAT, [None, None])),
        nodes=[node, flat],
        sizes=False,
        **changes,
    )


def first_channel(**changes):
    """Nodes and outputs of a segmentor whose labels are the values of the first channel."""
    index = helper.make_node('Constant', [], ['zero'], value_int=0)
    gather = helper.make_node('Gather', ['images', 'zero'], ['channel'], axis=1)
    cast = helper.make_node('Cast', ['channel'], ['segments'], to=TensorProto.INT64)
    outputs = dict(segments=(TensorProto.INT64, [None] * 3))
    return dict(outputs=outputs, nodes=[index, gather, cast], sizes=False, **changes)
