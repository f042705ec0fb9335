"""Exporting with torch.export, and running files with PyTorch."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmevit.utils.errors import ConfigError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# Height and width of the example of a dynamic size. At the largest stride it has several pixels and
# windows: torch.export would treat a map of one pixel as constant.
EXAMPLE_SIZE = (1056, 1184)


@dataclasses.dataclass
class ExportJob:
    """What the ``write()`` of a target writes; see :func:`mmevit.deploy.export`.

    Args:
        network: A copy in evaluation mode, which targets may change.
        inputs: Images (N, C, H, W), perhaps followed by others (N, ...).
        path: The file.
        dynamic: Dynamic axes, ``'batch'`` and ``'size'``.
        dtype: What the file computes in.
        metadata: JSON.
        batches: Inputs for the calibration of int8.
    """

    network: nn.Module
    inputs: tuple[Tensor, ...]
    path: Path
    dynamic: set[str]
    dtype: str
    metadata: str
    batches: Iterable[Sequence[Tensor]] = ()


def export_program(job: ExportJob) -> 'ExportedProgram':
    """Export a network with ``torch.export``.

    Raises:
        ConfigError: If PyTorch is too old.
    """
    # Imported here, since loading files works with an older PyTorch than writing them.
    try:
        from torch.export import Dim
        from torch.fx.experimental import _config

        # Otherwise torch.export assumes that no dynamic dimension is 1, but maps of stride 64 have
        # a height of 1 up to 64 pixels. PyTorch has no public name for this option.
        allow_single_pixels = _config.patch(  # pyright: ignore[reportAttributeAccessIssue]
            backed_size_oblivious=True
        )
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f'PyTorch {torch.__version__} is too old for this target. Use PyTorch 2.11, or export '
            'to torchscript or coreml.'
        ) from error

    network, inputs, dynamic = job.network, job.inputs, job.dynamic
    network = PrecisionWrapper(network, job.dtype).eval()
    if 'size' in dynamic:
        # The memory format of maps of one pixel is ambiguous, which would fix their size.
        network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        inputs = (inputs[0].new_zeros(*inputs[0].shape[:2], *EXAMPLE_SIZE), *inputs[1:])
    if 'batch' in dynamic:
        # torch.export treats a batch of one as constant.
        inputs = tuple(torch.cat([tensor, tensor]) for tensor in inputs)
    batch = {0: Dim('batch', min=1, max=4096)} if 'batch' in dynamic else {}
    sides = {2: Dim('height', min=32, max=8192), 3: Dim('width', min=32, max=8192)}
    images = {**batch, **(sides if 'size' in dynamic else {})}
    shapes = (images, tuple(batch for _ in inputs[1:]))[: len(inputs)]
    with allow_single_pixels:
        return torch.export.export(network, inputs, dynamic_shapes=shapes)


class PrecisionWrapper(nn.Module):
    """A network that computes in another dtype, with float32 inputs and outputs.

    Args:
        network: The network, which is changed.
        dtype: Name of the dtype, such as ``'bfloat16'``.

    Example:
        >>> PrecisionWrapper(nn.Linear(2, 3), 'bfloat16')(torch.rand(1, 2)).dtype
        torch.float32
    """

    def __init__(self, network: nn.Module, dtype: str) -> None:
        super().__init__()
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.network = network.to(self.dtype)

    def forward(self, images: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Cast the images, run the network, and cast floating-point outputs to float32."""
        outputs = self.network(images.to(self.dtype), *others)
        if isinstance(outputs, Tensor):
            return to_float32(outputs)
        return tuple(map(to_float32, outputs))


def to_float32(output: Tensor) -> Tensor:
    """Cast a floating-point tensor; labels stay integers."""
    return output.float() if output.is_floating_point() else output


class PyTorchSession:
    """An exported file that PyTorch runs.

    Args:
        module: The loaded file.
        num_threads: CPU threads.
    """

    metadata: dict[str, Any]

    def __init__(self, module: Callable[..., Any], num_threads: int) -> None:
        self.module, self.num_threads = module, num_threads

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map input tensors to a tuple of tensors."""
        with pytorch_threads(self.num_threads):
            return as_tuple(self.module(*inputs))


@contextmanager
def pytorch_threads(count: int) -> Iterator[None]:
    """Set the number of PyTorch's CPU threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def as_tuple(tensors: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Make a tuple of one tensor or several."""
    return (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
