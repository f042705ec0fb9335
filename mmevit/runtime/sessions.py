"""Exported files in ONNX Runtime or OpenVINO."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmevit.utils.errors import ConfigError, one_line
from mmevit.version import __version__

# Version of the metadata, which changes when older readers would misread a file.
FORMAT = 1
DETECTION = {'boxes', 'scores', 'labels'}
# The outputs of each task.
OUTPUTS = {
    'classification': {'logits'},
    'detection': DETECTION,
    'instance-segmentation': DETECTION | {'masks'},
    'semantic-segmentation': {'segments'},
    'panoptic-segmentation': {'segments'},
}
# Names of inputs and outputs, metadata, and a function from arrays by name to those of the outputs.
Opened = tuple[list[str], list[str], str | None, Callable[[Mapping[str, np.ndarray]], Any]]


def open_onnx(path: str, num_threads: int) -> Opened:
    """Open a file with ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, ['CPUExecutionProvider'])
    inputs, outputs = ([x.name for x in xs] for xs in (session.get_inputs(), session.get_outputs()))
    metadata = session.get_modelmeta().custom_metadata_map.get('mmevit')
    return inputs, outputs, metadata, lambda arrays: session.run(None, arrays)


def open_openvino(path: str, num_threads: int) -> Opened:
    """Open a file with OpenVINO."""
    import openvino

    model: Any = openvino.Core().read_model(path)
    info = {name: model.get_rt_info(name).value for name in model.rt_info if 'mmevit' in name}
    # By default OpenVINO computes in bfloat16 on CPUs that support it.
    config = dict(INFERENCE_PRECISION_HINT=info.get('mmevit_precision', 'f32'))
    config.update(dict(INFERENCE_NUM_THREADS=num_threads) if num_threads else {})
    compiled: Any = openvino.compile_model(model, 'CPU', config)
    inputs, outputs = ([x.any_name for x in xs] for xs in (model.inputs, model.outputs))
    return inputs, outputs, info.get('mmevit'), lambda x: map(np.array, compiled(x).values())


OPENERS = {'.onnx': open_onnx, '.xml': open_openvino}


class Session:
    """A file of a complete model, on the CPU, which maps arrays by name to arrays by name.

    Raises:
        ConfigError: If the file or its runtime is missing, or mmevit did not write the file.
    """

    def __init__(self, path: str | Path, num_threads: int) -> None:
        if not Path(path).is_file() or Path(path).suffix not in OPENERS:
            raise ConfigError(
                f'{path} is missing, or not {" or ".join(OPENERS)}. Write it with tools/export.py.'
            )
        try:
            opened = OPENERS[Path(path).suffix](str(path), num_threads)
            self.inputs, self.outputs, metadata, self.run = opened
        except ModuleNotFoundError as error:
            raise ConfigError(
                f'{path} needs {error.name}, which is not installed. Run pip install {error.name}.'
            ) from error
        # Each runtime raises errors of its own.
        except Exception as error:
            raise ConfigError(
                f'{path} is corrupt or truncated ({one_line(error)}). Copy or export it again.'
            ) from error
        self.metadata: dict[str, Any] = json.loads(metadata or '{}')
        if fault := self.find_fault():
            raise ConfigError(f'{path} {fault}')

    def find_fault(self) -> str | None:
        """Say why the metadata, inputs and outputs are not those of a complete model."""
        found, task = self.metadata.get('format', 0), self.metadata.get('task')
        if not self.metadata:
            return 'has no metadata of mmevit. Write it with tools/export.py.'
        if found != FORMAT:
            return (
                f'has format {found} of mmevit {self.metadata.get("version", "0.1")}, but '
                f'mmevit {__version__} reads format {FORMAT}. Update mmevit or export again.'
            )
        if task == 'features':
            return 'is a backbone, without predictions. Use mmevit.deploy.load_exported().'
        extra = set(self.inputs) - {'images', 'image_sizes'}
        if extra or 'images' not in self.inputs or OUTPUTS.get(str(task)) != {*self.outputs}:
            return (
                f'has the inputs {", ".join(self.inputs)} and outputs {", ".join(self.outputs)}, '
                f'not those of {task}. Write it with tools/export.py.'
            )

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the file with those of the arrays that it needs."""
        values = self.run({name: arrays[name] for name in self.inputs})
        return dict(zip(self.outputs, values, strict=True))
