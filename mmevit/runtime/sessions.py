"""Run exported files with ONNX Runtime or OpenVINO."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmevit.utils.errors import ConfigError, one_line
from mmevit.version import __version__

# Version of the metadata, which changes when older readers would misread a file.
FORMAT = 1
# The outputs of each task.
OUTPUTS = {
    'classification': {'logits'},
    'detection': {'boxes', 'scores', 'labels'},
    'instance-segmentation': {'boxes', 'scores', 'labels', 'masks'},
    'semantic-segmentation': {'segments'},
    'panoptic-segmentation': {'segments'},
}
Arrays = Mapping[str, np.ndarray]


class OnnxSession:
    """An ONNX file, on the CPU."""

    def __init__(self, path: str, num_threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3  # errors
        self.session: Any = onnxruntime.InferenceSession(path, options, ['CPUExecutionProvider'])
        self.metadata = self.session.get_modelmeta().custom_metadata_map.get('mmevit')
        self.inputs = [node.name for node in self.session.get_inputs()]
        self.outputs = [node.name for node in self.session.get_outputs()]

    def __call__(self, arrays: Arrays) -> Arrays:
        """Map inputs to outputs, by name."""
        return dict(zip(self.outputs, self.session.run(None, arrays), strict=True))


class OpenVinoSession:
    """An OpenVINO file, ``.xml`` next to ``.bin``, on the CPU."""

    def __init__(self, path: str, num_threads: int) -> None:
        import openvino

        core = openvino.Core()
        model: Any = core.read_model(path)
        info = {name: model.get_rt_info(name).value for name in model.rt_info if 'mmevit' in name}
        self.metadata = info.get('mmevit')
        # By default OpenVINO computes in bfloat16 on CPUs that support it.
        config = dict(INFERENCE_PRECISION_HINT=info.get('mmevit_precision', 'f32'))
        config.update(dict(INFERENCE_NUM_THREADS=num_threads) if num_threads else {})
        self.model = core.compile_model(model, 'CPU', config)
        self.inputs = [node.any_name for node in model.inputs]
        self.outputs = [node.any_name for node in model.outputs]

    def __call__(self, arrays: Arrays) -> Arrays:
        """Map inputs to outputs, by name."""
        outputs = self.model(dict(arrays)).values()
        return {name: np.array(x) for name, x in zip(self.outputs, outputs, strict=True)}


SESSIONS = {'.onnx': OnnxSession, '.xml': OpenVinoSession}


def load(path: str | Path, num_threads: int) -> tuple[OnnxSession | OpenVinoSession, dict]:
    """Load an exported file, and return it with its metadata.

    Raises:
        ConfigError: If the file or its runtime is missing, or the file is not a complete model
            written by mmevit in this format.
    """
    make = SESSIONS.get(Path(path).suffix)
    if make is None:
        raise ConfigError(f'{path} is not an exported file. Give one of {", ".join(SESSIONS)}.')
    if not Path(path).is_file():
        raise ConfigError(f'The exported file {path} is missing. Write it with tools/export.py.')
    try:
        session = make(str(path), num_threads)
        metadata = json.loads(session.metadata or '{}')
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'{path} needs {error.name}, which is not installed. Run pip install {error.name}.'
        ) from error
    # Each runtime raises errors of its own.
    except Exception as error:
        raise ConfigError(
            f'{path} is corrupt or truncated ({one_line(error)}). Copy or export it again.'
        ) from error
    check(session, metadata, path)
    return session, metadata


def check(session: OnnxSession | OpenVinoSession, metadata: dict, path: str | Path) -> None:
    """Raise ConfigError if a file is not a complete model in this format."""
    found, task = metadata.get('format', 0), metadata.get('task')
    if not metadata:
        raise ConfigError(f'{path} has no metadata of mmevit. Write it with tools/export.py.')
    if found > FORMAT:
        raise ConfigError(
            f'{path} was written by mmevit {metadata.get("version")} in format {found}, but mmevit '
            f'{__version__} only reads format {FORMAT}. Run pip install --upgrade mmevit.'
        )
    if found < FORMAT:
        raise ConfigError(f'{path} was written by an older mmevit. Export the checkpoint again.')
    if task == 'features':
        raise ConfigError(
            f'{path} is a backbone, without predictions. Use mmevit.deploy.load_exported().'
        )
    inputs, outputs = set(session.inputs), set(session.outputs)
    if not {'images'} <= inputs <= {'images', 'image_sizes'} or not OUTPUTS.get(task) == outputs:
        raise ConfigError(
            f'{path} has the inputs {", ".join(session.inputs)} and the outputs '
            f'{", ".join(session.outputs)}, which are not those of {task}. Write it with '
            'tools/export.py.'
        )
