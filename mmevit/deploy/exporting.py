"""Exporting networks to files for other runtimes, loading the files, and comparing outputs."""

import json
from collections.abc import Collection, Iterable, Sequence
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmevit.runtime.sessions import OPENERS
from mmevit.utils.errors import ConfigError, one_line
from mmevit.utils.files import atomic_write, check_ending

from .networks import Exportable
from .programs import ExportJob, RuntimeSession, as_tuple

# Suffix of the files of each target, which the module to_<target>.py writes.
TARGETS = dict(
    onnx='.onnx',
    openvino='.xml',
    litert='.tflite',
    executorch='.pte',
    ncnn='.param',
    coreml='.mlpackage',
    torchscript='.torchscript',
    aoti='.pt2',
)
TARGETS_BY_SUFFIX = {suffix: target for target, suffix in TARGETS.items()}


class Session(Protocol):
    """A loaded file.

    ``metadata`` is what :func:`export` was given. ExecuTorch and ncnn add ``suppression``, the
    settings of the selection of boxes by :mod:`mmevit.runtime`.
    """

    metadata: dict[str, Any]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map input tensors to a tuple of tensors."""
        ...


def export(
    network: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    path: str | Path,
    target: str,
    dynamic: Collection[str] | None = None,
    dtype: str = 'float32',
    metadata: dict[str, Any] | None = None,
    batches: Iterable[Sequence[Tensor]] | None = None,
) -> None:
    """Write a network to a file for another runtime.

    Args:
        network: The network; :func:`fold` it first. It returns a tensor or a tuple of tensors,
            which an attribute ``output_names`` may name.
        inputs: Example inputs, the first of which is images (N, C, H, W).
        path: The file, with the suffix of the target in ``TARGETS``. It is replaced atomically.
        target: ``'onnx'``, ``'openvino'``, ``'litert'``, ``'executorch'``, ``'ncnn'``,
            ``'coreml'``, ``'torchscript'`` or ``'aoti'``, a compiled library that runs without
            mmevit.
        dynamic: Dynamic axes, ``'batch'`` and ``'size'`` (height and width). Defaults to the batch,
            if supported.
        dtype: What the file computes in, or for float16 of litert and ncnn stores weights in;
            inputs and outputs stay float32. ``'float32'``; ``'bfloat16'`` for aoti, torchscript
            and openvino; ``'float16'`` for onnx, openvino, litert, executorch, ncnn and coreml;
            ``'int8'`` for onnx, openvino, litert and executorch.
        metadata: Stored in the file as JSON, such as the preprocessing.
        batches: Real inputs for the calibration of int8.

    Raises:
        ConfigError: If the target is unknown or not installed, or does not support the dtype or a
            dynamic axis.
        UserError: If the path has another suffix, or cannot be written.

    Example:
        >>> import tempfile
        >>> from mmevit.models import EfficientViT
        >>> backbone = EfficientViT('m0').eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = folder + '/m0.torchscript'
        ...     export(backbone, torch.rand(2, 3, 64, 64), path, 'torchscript')
        ...     [tuple(map_.shape) for map_ in load_exported(path)(torch.rand(5, 3, 64, 64))]
        [(5, 64, 4, 4), (5, 128, 2, 2), (5, 192, 1, 1)]
    """
    check_dtype(target, dtype)
    if dtype == 'int8' and batches is None:
        raise ConfigError('int8 needs inputs for its calibration. Pass batches.')
    axes = choose_dynamic(target, dynamic)
    check_ending(path, [TARGETS[target]])
    network, content = deepcopy(network).eval(), json.dumps(metadata or {})
    with torch.no_grad(), atomic_write(path) as unfinished:
        job = ExportJob(network, as_tuple(inputs), unfinished, axes, dtype, content, batches or ())
        find_target(target).write(job)


def check_dtype(target: str, dtype: str) -> None:
    """Raise ConfigError if a target is unknown or not installed, or does not support a dtype."""
    if dtype not in (supported := find_target(target).DTYPES):
        raise ConfigError(f'{target} does not support {dtype}. Choose from {", ".join(supported)}.')


def choose_dynamic(target: str, dynamic: Collection[str] | None) -> set[str]:
    """Return the dynamic axes of an export, by default the batch, if supported."""
    supported = find_target(target).DYNAMIC
    axes = {'batch'} & supported if dynamic is None else set(dynamic)
    if unsupported := axes - supported:
        raise ConfigError(
            f'{target} does not support a dynamic {" and ".join(sorted(unsupported))}. '
            'Export it with fixed shapes.'
        )
    return axes


def load_exported(path: str | Path, num_threads: int | None = None, trust: bool = False) -> Session:
    """Load an exported file for inference.

    Args:
        path: The file.
        num_threads: CPU threads. Defaults to PyTorch's number of threads.
        trust: Whether to load files that contain native code, those of ``'aoti'``.

    Raises:
        ConfigError: If the file is missing, cannot be read, has an unknown suffix, or contains
            native code and ``trust`` is False.
    """
    target = TARGETS_BY_SUFFIX.get(Path(path).suffix)
    if target is None:
        suffixes = ', '.join(TARGETS_BY_SUFFIX)
        raise ConfigError(f'{path} is not an exported file. They end in {suffixes}.')
    if not Path(path).exists():
        raise ConfigError(f'The exported file {path} is missing. Write it with tools/export.py.')
    if target == 'aoti' and not trust:
        raise ConfigError(
            f'{path} contains native code, which is executed on loading. If you trust its source, '
            'pass --trust-checkpoint, or trust=True to load_exported().'
        )
    session = RuntimeSession if Path(path).suffix in OPENERS else find_target(target).Session
    try:
        return session(str(path), num_threads or torch.get_num_threads())
    except ConfigError:
        raise
    # Each runtime raises errors of its own.
    except Exception as error:
        raise ConfigError(
            f'{path} cannot be loaded ({one_line(error)}). Copy it again, or export it again.'
        ) from error


def find_target(target: str) -> ModuleType:
    """Import the module of a target, with ``DTYPES``, ``DYNAMIC`` and ``write()``.

    It has a class ``Session`` if :mod:`mmevit.runtime` does not run its files, and may have a
    function ``count_undelegated()``.
    """
    if target not in TARGETS:
        raise ConfigError(f'Unknown target {target!r}. Choose from {", ".join(TARGETS)}.')
    try:
        return import_module(f'.to_{target}', __package__)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'{target} needs {error.name}, which is not installed. '
            f'Run pip install "mmevit[{target}]".'
        ) from error


def compare(network: Exportable, session: Session, inputs: Sequence[Tensor]) -> float:
    """Return the difference of a file from its network, see ``network.measure_difference()``."""
    with torch.no_grad():
        expected = as_tuple(network(*inputs))
    return network.measure_difference(session(*inputs), expected)
