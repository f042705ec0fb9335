"""OpenVINO files, converted from ONNX, and run with OpenVINO."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import openvino
from openvino.frontend import OpConversionFailure

from mmevit.utils.errors import ConfigError, one_line

from . import to_onnx
from .programs import ExportJob

DTYPES = ('float32', 'bfloat16', 'float16', 'int8')
DYNAMIC = frozenset({'batch', 'size'})


def write(job: ExportJob) -> None:
    """Write a .xml file and its .bin file; see :func:`mmevit.deploy.export`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'model.onnx')
        # OpenVINO converts to half precision itself.
        dtype = 'int8' if job.dtype == 'int8' else 'float32'
        to_onnx.write(dataclasses.replace(job, path=path, dtype=dtype), float_stem=False)
        model = convert(path)
        if job.dtype == 'float16':
            path = path.with_suffix('.xml')
            openvino.save_model(model, path, compress_to_fp16=False)
            keep_loops_in_float(path)
            model = openvino.Core().read_model(path)
        model.set_rt_info(job.metadata, 'mmevit')
        # For bfloat16, the weights stay float32 and the processor computes in bfloat16.
        model.set_rt_info('bf16' if job.dtype == 'bfloat16' else 'f32', 'mmevit_precision')
        openvino.save_model(model, job.path, compress_to_fp16=job.dtype == 'float16')
    if job.dtype == 'bfloat16':
        keep_loops_in_float(job.path)


def convert(path: Path) -> Any:
    """Convert an ONNX file; raise ConfigError if OpenVINO does not support the graph."""
    try:
        return openvino.convert_model(path)
    except OpConversionFailure as error:
        raise ConfigError(
            f'OpenVINO cannot convert this model ({one_line(error)}). Use onnx, or another --dtype.'
        ) from error


def keep_loops_in_float(path: Path) -> None:
    """Mark what runs for each image, such as the decoding of boxes, as float32.

    OpenVINO has no public function for it, and does not write the marks itself.
    """
    tree = ElementTree.parse(path)
    for layer in set(tree.iterfind('.//body//layer')):  # bodies can be nested
        info = layer.find('rt_info')
        info = ElementTree.SubElement(layer, 'rt_info') if info is None else info
        ElementTree.SubElement(info, 'attribute', name='precise', version='0')
    tree.write(path)
