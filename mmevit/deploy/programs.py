"""Exporting with torch.export, and running files with PyTorch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
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


@dataclass
class ExportJob:
    """What the ``write()`` of a target writes; see :func:`mmevit.deploy.export`."""

    network: nn.Module  # a copy in evaluation mode, which targets may change
    inputs: tuple[Tensor, ...]  # images (N, C, H, W), perhaps followed by others (N, ...)
    path: Path
    dynamic: set[str]
    dtype: str
    metadata: str  # JSON
    batches: Iterable[Sequence[Tensor]] = ()


def export_program(job: ExportJob) -> 'ExportedProgram':
    """Export a network with ``torch.export``."""
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
    """A network, which is changed to another dtype, with float32 inputs and outputs."""

    def __init__(self, network: nn.Module, dtype: str) -> None:
        super().__init__()
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.network = network.to(self.dtype)

    def forward(self, images: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Cast the images, run the network, and cast its outputs; labels stay integers."""
        outputs = self.network(images.to(self.dtype), *others)
        cast = [x.float() if x.is_floating_point() else x for x in as_tuple(outputs)]
        return cast[0] if isinstance(outputs, Tensor) else tuple(cast)


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
