"""Export with torch.export; sessions that run exported files."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmevit.runtime.sessions import append_metadata, open_file
from mmevit.utils.errors import ConfigError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# Height and width of the example of a dynamic size. At the largest stride it has several pixels and
# windows: torch.export would treat a map of one pixel as constant.
EXAMPLE_SIZE = (1056, 1184)


@dataclass
class ExportJob:
    """What the ``write()`` of a target writes; see :func:`mmevit.deploy.export`."""

    network: nn.Module  # a copy in evaluation mode, which targets may change
    inputs: tuple[Tensor, ...]  # images (N, C, H, W), perhaps followed by others (N, ...)
    path: Path
    dynamic: set[str]
    dtype: str
    metadata: str  # JSON
    batches: Iterable[Sequence[Tensor]]


def export_program(job: ExportJob) -> 'ExportedProgram':
    """Export a network with ``torch.export``."""
    inputs = example_inputs(job)
    if 'batch' in job.dynamic:
        # torch.export treats a batch of one as constant.
        inputs = tuple(torch.cat([tensor, tensor]) for tensor in inputs)
    batch: dict[int, str | None] = {0: 'batch'} if 'batch' in job.dynamic else {}
    sides: dict[int, str | None] = {2: 'height', 3: 'width'} if 'size' in job.dynamic else {}
    dtype = 'float32' if job.dtype == 'int8' else job.dtype  # int8 is quantized afterwards
    network = PrecisionWrapper(job.network, dtype)
    return run_export(network, inputs, [{**batch, **sides}, batch][: len(inputs)])


def export_detector(job: ExportJob) -> tuple['ExportedProgram', 'ExportedProgram']:
    """Export a :class:`Detector` as two programs, for the batch and for one image.

    The inputs of the second are an image, its size, and the outputs of the first for this image.
    """
    detector: Any = job.network
    images, sizes = example_inputs(job)
    features = [feature[0] for feature in detector.features(images)]
    batched = replace(job, network=detector.features, inputs=job.inputs[:1])
    sides: dict[int, str | None] = {1: None, 2: None} if 'size' in job.dynamic else {}
    one = run_export(
        VariadicInputs(detector.predict),
        (images[0], sizes[0], *features),
        [sides, {}, *(sides for _ in features)],
    )
    return export_program(batched), one


def example_inputs(job: ExportJob) -> tuple[Tensor, ...]:
    """Return example inputs, which are large if the size is dynamic."""
    images, *others = job.inputs
    if 'size' in job.dynamic:
        images = images.new_zeros(*images.shape[:2], *EXAMPLE_SIZE)
    return images, *others


def run_export(
    network: nn.Module, inputs: Sequence[Tensor], axes: Sequence[dict[int, str | None]]
) -> 'ExportedProgram':
    """Run ``torch.export``.

    Args:
        network: A network, see :class:`VariadicInputs`.
        inputs: Example inputs.
        axes: Names of the dynamic axes of each input, None for axes with individual ranges.
    """
    # Imported here, since loading files works with an older PyTorch than writing them.
    try:
        from torch._dynamo.exc import UserError
        from torch.export import Dim
        from torch.fx.experimental import _config

        # Otherwise torch.export assumes that no dynamic dimension is 1, but maps of stride 64 have
        # a height of 1 up to 64 pixels. PyTorch has no public name for this option.
        allow_single_pixels = _config.patch(  # pyright: ignore[reportAttributeAccessIssue]
            backed_size_oblivious=True
        )
        ranges: dict[str | None, Any] = {
            'batch': Dim('batch', min=1, max=4096),
            'height': Dim('height', min=32, max=8192),
            'width': Dim('width', min=32, max=8192),
            None: Dim.DYNAMIC,
        }
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f'PyTorch {torch.__version__} is too old for this target. Use PyTorch 2.11, or export '
            'to torchscript or coreml.'
        ) from error
    # The memory format of maps of one pixel is ambiguous, which would fix their size.
    network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    shapes = tuple({axis: ranges[name] for axis, name in named.items()} for named in axes)
    network.eval()
    with allow_single_pixels:
        for _ in range(2):  # An error can be about the height only, and the next about the width.
            try:
                return torch.export.export(network, tuple(inputs), dynamic_shapes=(shapes,))
            except UserError as error:
                shapes = restrict_shapes(shapes, error)
        return torch.export.export(network, tuple(inputs), dynamic_shapes=(shapes,))


def restrict_shapes(shapes: tuple[Any, ...], error: Any) -> tuple[Any, ...]:
    """Restrict axes to the sizes in the suggestions of a failed export.

    Some necks need a multiple of 32, and some heads a minimum.
    """
    from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes

    is_named = all(hasattr(axis, '__name__') for axes in shapes for axis in axes.values())
    if 'Suggested fixes:' not in error.msg or not is_named:
        raise error
    refined: Any = refine_dynamic_shapes_from_suggested_fixes(error.msg, shapes)
    if any(isinstance(axis, int) for axes in refined for axis in axes.values()):
        raise error
    return refined


class VariadicInputs(nn.Module):
    """A network with one variadic argument, which is how dynamic shapes are listed."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Any:
        """Run the network."""
        return self.network(*inputs)


class PrecisionWrapper(nn.Module):
    """A network, which is changed to another dtype, with float32 inputs and outputs."""

    def __init__(self, network: nn.Module, dtype: str) -> None:
        super().__init__()
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.network = network.to(self.dtype)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Cast the images, run the network, and cast its outputs; labels stay integers."""
        images, *others = inputs
        outputs = self.network(images.to(self.dtype), *others)
        cast = [x.float() if x.is_floating_point() else x for x in as_tuple(outputs)]
        return cast[0] if isinstance(outputs, Tensor) else tuple(cast)


class RuntimeSession:
    """An exported file that :mod:`mmevit.runtime` runs, with tensors instead of arrays."""

    def __init__(self, path: str, num_threads: int) -> None:
        self.inputs, _, self.metadata, self.run = open_file(path, num_threads)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map input tensors to a tuple of tensors."""
        arrays = (tensor.numpy() for tensor in inputs)
        outputs = self.run(dict(zip(self.inputs, arrays, strict=True)))
        return tuple(map(torch.from_numpy, outputs))


class PyTorchSession:
    """An exported file that PyTorch runs."""

    metadata: dict[str, Any]

    def __init__(self, module: Callable[..., Any], num_threads: int) -> None:
        self.module, self.num_threads = module, num_threads

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map input tensors to a tuple of tensors."""
        with pytorch_threads(self.num_threads):
            return as_tuple(self.module(*inputs))


def list_input_names(network: nn.Module) -> list[str]:
    """Return the names of the inputs of a network."""
    return list(getattr(network, 'input_names', ['images']))


def list_output_names(network: nn.Module, count: int) -> list[str]:
    """Return the names of the outputs of a network, by default numbers."""
    return list(getattr(network, 'output_names', [f'output_{i}' for i in range(count)]))


def append_description(
    path: Path, job: ExportJob, program: 'ExportedProgram', metadata: dict[str, Any], **others: Any
) -> None:
    """Append names of inputs and outputs, metadata and others, for :mod:`mmevit.runtime`."""
    description = dict(
        inputs=list_input_names(job.network),
        outputs=list_output_names(job.network, count_outputs(program)),
        metadata=json.dumps(metadata),
        **others,
    )
    append_metadata(path, json.dumps(description))


def count_outputs(program: 'ExportedProgram') -> int:
    """Return the number of outputs."""
    return len(program.graph_signature.user_outputs)


def pytorch_threads(count: int) -> AbstractContextManager[None]:
    """Set the number of PyTorch's CPU threads in the block."""
    return temporarily(torch.set_num_threads, count, torch.get_num_threads())


@contextmanager
def temporarily(set_value: Callable[[Any], Any], value: Any, before: Any) -> Iterator[None]:
    """Set a global value in the block, and the one from before after it."""
    set_value(value)
    try:
        yield
    finally:
        set_value(before)


def as_tuple(tensors: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Make a tuple of one tensor or several."""
    return (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
