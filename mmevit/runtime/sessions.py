"""Exported files in ONNX Runtime, OpenVINO, LiteRT, ExecuTorch or ncnn."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from mmevit.utils.errors import ConfigError, one_line
from mmevit.version import __version__

from .suppression import select_and_suppress, suppress

# Version of the metadata, which changes when older readers would misread a file.
FORMAT = 1
# File in the archive that follows the model in LiteRT's, ExecuTorch's and ncnn's files.
APPENDED_NAME = 'mmevit.json'
NO_METADATA = 'has no metadata of mmevit. Write it with tools/export.py.'
# The outputs of each task.
OUTPUTS = {
    'classification': {'logits'},
    'detection': {'boxes', 'scores', 'labels'},
    'instance-segmentation': {'boxes', 'scores', 'labels', 'masks'},
    'semantic-segmentation': {'segments'},
    'panoptic-segmentation': {'segments'},
}
Run = Callable[[dict[str, np.ndarray]], Any]
Opened = tuple[list[str], list[str], dict[str, Any], Run]  # inputs, outputs, metadata, function


def open_onnx(path: str, num_threads: int) -> Opened:
    """Open a file with ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, ['CPUExecutionProvider'])
    inputs, outputs = ([x.name for x in xs] for xs in (session.get_inputs(), session.get_outputs()))
    metadata = session.get_modelmeta().custom_metadata_map.get('mmevit', '{}')
    return inputs, outputs, json.loads(metadata), lambda arrays: session.run(None, arrays)


def open_openvino(path: str, num_threads: int) -> Opened:
    """Open a file with OpenVINO."""
    import openvino

    model: Any = openvino.Core().read_model(path)
    info = {name: model.get_rt_info(name).value for name in model.rt_info if 'mmevit' in name}
    # By default OpenVINO computes in bfloat16 on CPUs that support it.
    precision = info.get('mmevit_precision', 'f32')
    config = dict(INFERENCE_PRECISION_HINT=precision, INFERENCE_NUM_THREADS=num_threads)
    compiled: Any = openvino.compile_model(model, 'CPU', config)
    inputs, outputs = ([x.any_name for x in xs] for xs in (model.inputs, model.outputs))
    metadata = json.loads(info.get('mmevit', '{}'))
    return inputs, outputs, metadata, lambda x: map(np.array, compiled(x).values())


def open_litert(path: str, num_threads: int) -> Opened:
    """Open a file with LiteRT. In the file, images and maps have channels last."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=num_threads or os.cpu_count())
    interpreter.allocate_tensors()
    metadata = read_metadata(path)  # Files of others can have no signature.
    signature = interpreter.get_signature_runner()
    # The signature's dicts are ordered by name.
    inputs = sort_tensors(signature.get_input_details(), interpreter.get_input_details())
    outputs = sort_tensors(signature.get_output_details(), interpreter.get_output_details())

    def run(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
        for name, index in inputs.items():
            array = arrays[name]
            interpreter.set_tensor(index, np.moveaxis(array, 1, -1) if array.ndim == 4 else array)
        interpreter.invoke()
        return [restore_layout(interpreter.get_tensor(index)) for index in outputs.values()]

    return [*inputs], [*outputs], metadata, run


def restore_layout(array: np.ndarray) -> np.ndarray:
    """Return an output of LiteRT as other runtimes do: channels first, and 64-bit labels."""
    if array.ndim == 4:
        return np.moveaxis(array, -1, 1)
    return array.astype(np.int64) if array.dtype == np.int32 else array


def sort_tensors(named: dict[str, Any], ordered: list[dict[str, Any]]) -> dict[str, int]:
    """Return the names and the indices of the tensors of a LiteRT file, in its order."""
    names = {tensor['index']: name for name, tensor in named.items()}
    return {names[tensor['index']]: tensor['index'] for tensor in ordered}


# Methods of ExecuTorch that are in use.
LOADED = WeakSet()


def open_executorch(path: str, num_threads: int) -> Opened:
    """Open a file with ExecuTorch, which runs on PyTorch's tensors."""
    import torch
    from executorch.runtime import Runtime, Verification

    info = read_metadata(path)
    metadata = json.loads(info['metadata'])
    set_executorch_threads(num_threads)
    program = Runtime.get().load_program(path, verification=Verification.Minimal)
    method: Any = program.load_method('forward')
    LOADED.add(method)
    suppression = metadata.get('suppression')

    def run(arrays: dict[str, np.ndarray]) -> Any:
        tensors = [torch.from_numpy(arrays[name]) for name in info['inputs']]
        outputs = [tensor.numpy() for tensor in method.execute(tensors)]
        return suppress(*outputs, **suppression) if suppression else outputs

    return info['inputs'], info['outputs'], metadata, run


def set_executorch_threads(num_threads: int) -> None:
    """Set the number of threads of the process, or raise ConfigError if files are in use."""
    from executorch.extension.pybindings import portable_lib

    count = portable_lib._threadpool_get_thread_count()
    if num_threads in (0, count):
        return
    if LOADED:  # They would wait forever for the threads from before.
        raise ConfigError(
            f'ExecuTorch has {count} threads for all files of a process, not {num_threads}. Load '
            'all of them with the same number.'
        )
    portable_lib._unsafe_reset_threadpool(num_threads)


def open_ncnn(path: str, num_threads: int) -> Opened:
    """Open a file with ncnn, which runs one image at a time."""
    import ncnn as untyped

    ncnn: Any = untyped
    weights = str(Path(path).with_suffix('.bin'))
    info = read_metadata(weights)
    metadata = json.loads(info['metadata'])
    network = ncnn.Net()
    network.opt.num_threads = num_threads or os.cpu_count()
    if info['dtype'] == 'float32':
        # By default, ncnn computes in lower types where the processor can.
        for name in ('fp16_packed', 'fp16_storage', 'fp16_arithmetic', 'bf16_storage'):
            setattr(network.opt, f'use_{name}', False)
    if network.load_param(path) or network.load_model(weights):
        raise RuntimeError(f'ncnn cannot read {path} or {weights}')

    suppression = metadata.get('suppression')

    def run_one(image: np.ndarray) -> list[np.ndarray]:
        extractor = network.create_extractor()
        extractor.input('in0', ncnn.Mat(np.ascontiguousarray(image)))
        return [np.array(extractor.extract(name)[1]) for name in network.output_names()]

    def run(arrays: dict[str, np.ndarray]) -> Any:
        outputs = [np.stack(parts) for parts in zip(*map(run_one, arrays['images']), strict=True)]
        # ncnn cannot select the best boxes or classes.
        if suppression:
            boxes, scores = outputs
            return select_and_suppress(boxes, scores, arrays['image_sizes'], **suppression)
        is_map = info['outputs'] == ['segments']
        return [outputs[0].argmax(axis=1)] if is_map else outputs

    return info['inputs'], info['outputs'], metadata, run


def append_metadata(path: Path, metadata: str) -> None:
    """Append metadata to a model; runtimes ignore what follows it."""
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr(APPENDED_NAME, metadata)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return the metadata that follows the model, or raise ConfigError if there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(APPENDED_NAME))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ConfigError(f'{path} {NO_METADATA}') from error


OPENERS = {
    '.onnx': open_onnx,
    '.xml': open_openvino,
    '.tflite': open_litert,
    '.pte': open_executorch,
    '.param': open_ncnn,
}


def check_format(path: str | Path, metadata: dict[str, Any]) -> None:
    """Raise ConfigError if a file has no metadata or another version of it."""
    if not metadata:
        raise ConfigError(f'{path} {NO_METADATA}')
    if (found := metadata.get('format', 0)) != FORMAT:
        raise ConfigError(
            f'{path} has format {found} of mmevit {metadata.get("version", "0.1")}, but mmevit '
            f'{__version__} reads format {FORMAT}. Update mmevit or export again.'
        )


def open_file(path: str | Path, num_threads: int) -> Opened:
    """Open a file, or raise ConfigError if its runtime is not installed or cannot read it."""
    try:
        return OPENERS[Path(path).suffix](str(path), num_threads)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        name = str(error.name).partition('.')[0]
        raise ConfigError(
            f'{path} needs {name}, which is not installed. Run pip install {name}.'
        ) from error
    # Each runtime raises errors of its own.
    except Exception as error:
        raise ConfigError(
            f'{path} cannot be loaded ({one_line(error)}). Copy it again, export it again, or '
            'update its runtime.'
        ) from error


def open_exported(path: str | Path, num_threads: int) -> tuple[dict[str, Any], Run]:
    """Return the metadata of a complete model and a function to run it, or raise ConfigError."""
    if Path(path).suffix not in OPENERS:
        raise ConfigError(
            f'{path} does not end in {" or ".join(OPENERS)}. Pass a file of tools/export.py.'
        )
    if not Path(path).is_file():
        raise ConfigError(f'The exported file {path} is missing. Write it with tools/export.py.')
    inputs, outputs, metadata, run = open_file(path, num_threads)
    check_format(path, metadata)
    task = str(metadata.get('task'))
    if task == 'features':
        fault = 'is a backbone, without predictions. Use mmevit.deploy.load_exported().'
    elif {*inputs} - {'image_sizes'} != {'images'} or OUTPUTS.get(task) != {*outputs}:
        fault = (
            f'has the inputs {", ".join(inputs)} and outputs {", ".join(outputs)}, not those of '
            f'{task}. Write it with tools/export.py.'
        )
    else:
        return metadata, lambda x: dict(zip(outputs, run({i: x[i] for i in inputs}), strict=True))
    raise ConfigError(f'{path} {fault}')
