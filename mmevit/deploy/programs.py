"""Exporting to a program of PyTorch's, from which others are made."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mmevit.utils.errors import ConfigError

# Height and width of the example of a dynamic size. The largest strides and windows leave several
# pixels and windows of it: torch.export takes a map of one pixel for one that is always so.
EXAMPLE_SIZE = (1056, 1184)


def make_program(network, inputs, dynamic, dtype):
    """Export a network with ``torch.export``.

    Args:
        network (nn.Module): The network, which is changed.
        inputs (tuple[Tensor]): Images (N, C, H, W), perhaps followed by others (N, ...).
        dynamic (Collection[str]): Which of ``'batch'`` and ``'size'`` may change.
        dtype (str): Type that it computes in.

    Returns:
        torch.export.ExportedProgram: The program.

    Raises:
        ConfigError: If this PyTorch is too old.
    """
    # Not at the top: running files takes no such new PyTorch as writing them.
    try:
        from torch.export import Dim
        from torch.fx.experimental import _config as symbolic_shapes

        # Without this, a dimension that can be 1 is taken for one that cannot: maps of stride 64
        # are a pixel high from 32 pixels on.
        with_single_pixels = symbolic_shapes.patch(backed_size_oblivious=True)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f'PyTorch {torch.__version__} is too old to write this kind of file: 2.11.0 was tried; '
            'torchscript and coreml need no such new one.'
        ) from error

    network = InDtype(network, dtype).eval()
    if 'size' in dynamic:
        # A map of one pixel has no telling layout, and so no size that may change.
        network.to(memory_format=torch.contiguous_format)
        inputs = (inputs[0].new_zeros(*inputs[0].shape[:2], *EXAMPLE_SIZE), *inputs[1:])
    if 'batch' in dynamic:
        # A batch of one would be taken for one that is always so.
        inputs = tuple(torch.cat([tensor, tensor]) for tensor in inputs)
    batch = {0: Dim('batch', min=1, max=4096)} if 'batch' in dynamic else {}
    sides = {2: Dim('height', min=32, max=8192), 3: Dim('width', min=32, max=8192)}
    images = {**batch, **(sides if 'size' in dynamic else {})}
    shapes = (images, tuple(batch for _ in inputs[1:]))[: len(inputs)]
    with with_single_pixels:
        return torch.export.export(network, inputs, dynamic_shapes=shapes)


class InDtype(nn.Module):
    """A network that computes in another type between float32 inputs and outputs.

    Args:
        network (nn.Module): The network, which is changed.
        dtype (str): Name of the type, such as ``'bfloat16'``.

    Example:
        >>> InDtype(nn.Linear(2, 3), 'bfloat16')(torch.rand(1, 2)).dtype
        torch.float32
    """

    def __init__(self, network, dtype):
        super().__init__()
        self.dtype = getattr(torch, dtype)
        self.network = network.to(self.dtype)

    def forward(self, images, *others):
        """Map images and what goes with them, in float32, to float32 tensors."""
        outputs = self.network(images.to(self.dtype), *others)
        if isinstance(outputs, torch.Tensor):
            return self.widen(outputs)
        return tuple(map(self.widen, outputs))

    def widen(self, output):
        """Give float32 for the type that is computed in; labels stay whole numbers."""
        return output.float() if output.is_floating_point() else output


class PyTorchSession:
    """An exported file that PyTorch itself runs.

    Args:
        module (Callable): What the file holds.
        num_threads (int): CPU threads to run on.
    """

    def __init__(self, module, num_threads):
        self.module, self.num_threads = module, num_threads

    @torch.no_grad()
    def __call__(self, *inputs):
        """Map input tensors to a tuple of tensors."""
        with pytorch_threads(self.num_threads):
            return as_tuple(self.module(*inputs))


@contextmanager
def pytorch_threads(count: int) -> Iterator[None]:
    """Set the number of PyTorch's CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def as_tuple(tensors):
    """Make a tuple of one tensor or several."""
    return (tensors,) if isinstance(tensors, torch.Tensor) else tuple(tensors)
