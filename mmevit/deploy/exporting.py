"""Exporting a network to a file that runs elsewhere, and checking that it gives the same."""

import json
from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from pathlib import Path

import torch

from mmevit.utils.errors import ConfigError, one_line
from mmevit.utils.files import atomic_write, check_ending

from .programs import as_tuple

# What a target's file is called; its module is ``to_<target>.py`` in this folder.
TARGETS = dict(
    onnx='.onnx', openvino='.xml', coreml='.mlpackage', torchscript='.torchscript', aoti='.pt2'
)


def export(
    network, inputs, path, target, dynamic=None, dtype='float32', metadata=None, batches=None
):
    """Write a network to a file for another runtime.

    Args:
        network (nn.Module): What goes into the file; :func:`fold` it first. It
            maps the inputs to a tensor or a tuple of tensors, whose names are its
            ``output_names``, if it has these.
        inputs (Tensor | tuple[Tensor]): Example inputs, of which the first is images
            (N, C, H, W). Use a batch of two or more for a dynamic one.
        path (str | Path): File to write, with the suffix of the target in ``TARGETS``. A file that
            is there is replaced once the new one is whole.
        target (str): ``'onnx'``, ``'openvino'``, ``'coreml'``, ``'torchscript'`` or ``'aoti'``, a
            library that runs without this package.
        dynamic (Collection[str], optional): Which of ``'batch'`` and ``'size'``, height and width,
            may be others than those of the example. Defaults to the batch, but for coreml, which
            takes neither.
        dtype (str): Type that it computes in; inputs and outputs stay float32. ``'float32'``;
            ``'bfloat16'`` for aoti, torchscript and openvino; ``'float16'`` for onnx, openvino and
            coreml; ``'int8'`` for onnx and openvino.
        metadata (dict, optional): What is kept in the file as JSON, such as the preprocessing.
        batches (Iterable[tuple[Tensor]], optional): Real inputs, by whose activations int8 is
            scaled.

    Raises:
        ConfigError: If the target is unknown, not installed, or does not take the type or what is
            dynamic.
        UserError: If the path ends otherwise than such files do, or cannot be written.

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
    module = find_target(target)
    if dtype not in module.DTYPES:
        raise ConfigError(f'{target} takes {", ".join(module.DTYPES)}, not {dtype}.')
    dynamic = choose_dynamic(target, dynamic)
    check_ending(path, [TARGETS[target]])
    # Targets change the network as suits them.
    network, inputs = deepcopy(network).eval(), as_tuple(inputs)
    metadata = json.dumps(metadata or {})
    options = dict(batches=batches) if dtype == 'int8' else {}
    with torch.no_grad(), atomic_write(path) as unfinished:
        module.write(network, inputs, unfinished, dynamic, dtype, metadata, **options)


def choose_dynamic(target, dynamic=None):
    """Choose what may be others later than when a network is exported.

    Args:
        target (str): A name in ``TARGETS``.
        dynamic (Collection[str], optional): Which of ``'batch'`` and ``'size'``. Defaults to the
            batch, where the target knows that.

    Returns:
        set[str]: Which of them.

    Raises:
        ConfigError: If the target does not take one of them.
    """
    known = find_target(target).DYNAMIC
    dynamic = {'batch'} & known if dynamic is None else set(dynamic)
    if surplus := dynamic - known:
        raise ConfigError(f'{target} takes no other {" and ".join(sorted(surplus))} than exported.')
    return dynamic


def load_exported(
    path: str | Path, num_threads: int | None = None, trust: bool = False
) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Load an exported file for running.

    Args:
        path: The file.
        num_threads: CPU threads to run on. Defaults to PyTorch's number of threads.
        trust: Whether to load files that hold native code, those of ``'aoti'``.

    Returns:
        Maps input tensors to a tuple of tensors. Its ``metadata`` is what :func:`export` was given.

    Raises:
        ConfigError: If the file is missing, cannot be read, has an unknown suffix, or holds native
            code and ``trust`` is False.
    """
    targets = {suffix: target for target, suffix in TARGETS.items()}
    if Path(path).suffix not in targets:
        raise ConfigError(f'{path} must end in {", ".join(targets)} to be run.')
    if not Path(path).exists():
        raise ConfigError(f'The exported file {path} is missing: tools/export.py writes them.')
    if Path(path).suffix == TARGETS['aoti'] and not trust:
        raise ConfigError(
            f'{path} holds native code, which runs when it is loaded. If you know where it comes '
            'from, give the tools --trust-checkpoint, or load_exported() trust=True.'
        )
    module = find_target(targets[Path(path).suffix])
    try:
        return module.Session(str(path), num_threads or torch.get_num_threads())
    # The runtimes have errors of their own.
    except Exception as error:
        raise ConfigError(f'{path} cannot be loaded: {one_line(error)}') from error


def find_target(target):
    """Import the module of a target.

    Args:
        target (str): Its name in ``TARGETS``.

    Returns:
        module: It has ``DTYPES``, ``DYNAMIC``, ``write()`` and ``Session``.

    Raises:
        ConfigError: If it is unknown, or what it needs is not installed.
    """
    if target not in TARGETS:
        raise ConfigError(f'There is no target {target!r}: choose from {", ".join(TARGETS)}.')
    try:
        return import_module(f'.to_{target}', __package__)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'{target} needs {error.name}, which is not installed: pip install "mmevit[{target}]".'
        ) from error


def compare(network, session, inputs):
    """Compare an exported file with the network that it was made of.

    Args:
        network (nn.Module): The network.
        session (Callable): The file, from :func:`load_exported`.
        inputs (tuple[Tensor]): Inputs for both.

    Returns:
        float: Largest difference of an output, relative to the largest value of that output.
    """
    with torch.no_grad():
        expected = as_tuple(network(*inputs))
    outputs = session(*inputs)
    if hasattr(network, 'in_order'):
        outputs = network.in_order(outputs, expected)
    return largest_difference(outputs, expected)


def largest_difference(outputs, expected):
    """Find the largest difference, relative to the largest value of the same output.

    Args:
        outputs (Sequence[Tensor]): What another form of a network gives.
        expected (Sequence[Tensor]): What the network gives.

    Returns:
        float: The difference; NaN if there is any NaN.

    Example:
        >>> largest_difference([torch.tensor([1.0, 4.0])], [torch.tensor([2.0, 4.0])])
        0.25
    """
    differences = [
        (output.float() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)
        for output, wanted in zip(outputs, expected, strict=True)
    ]
    # Unlike Python's max(), this does not lose a NaN.
    return float(torch.stack(differences).max())
