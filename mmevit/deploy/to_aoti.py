"""Libraries compiled ahead of time, by AOTInductor: they run with PyTorch alone, or in C++."""

import json

import torch
from torch import nn

from mmevit.models import EfficientViT

from .programs import PyTorchSession, make_program

DTYPES = ('float32', 'bfloat16')
# PyTorch 2.11 compiles the windows of other sizes wrongly, without a word.
DYNAMIC = frozenset({'batch'})


def write(network, inputs, path, dynamic, dtype, metadata):
    """Compile a package, for this kind of processor; see :func:`mmevit.deploy.export`."""
    if 'batch' not in dynamic and not inputs[0].is_cuda:
        # The stem's maps are the largest: those of two images stay in the processor's cache.
        for backbone in (part for part in network.modules() if isinstance(part, EfficientViT)):
            backbone.stem = ImagesInParts(backbone.stem, size=2)
    program = make_program(network, inputs, dynamic, dtype)
    config = {'freezing': True, 'aot_inductor.metadata': dict(mmevit=metadata)}
    torch._inductor.aoti_compile_and_package(
        program, package_path=str(path), inductor_configs=config
    )


class Session(PyTorchSession):
    """A compiled package.

    Args:
        path (str): The file.
        num_threads (int): CPU threads to run on.
    """

    def __init__(self, path, num_threads):
        super().__init__(torch._inductor.aoti_load_package(path), num_threads)
        self.metadata = json.loads(self.module.loader.get_metadata().get('mmevit', '{}'))


class ImagesInParts(nn.Module):
    """A module that is run on a few images at a time, with their channels last.

    Args:
        module (nn.Module): Maps images (N, C, H, W) to a tensor (N, ...).
        size (int): Images at a time.

    Example:
        >>> ImagesInParts(nn.Conv2d(3, 4, 1), size=2)(torch.rand(5, 3, 8, 8)).shape
        torch.Size([5, 4, 8, 8])
    """

    def __init__(self, module, size):
        super().__init__()
        self.module = module
        self.size = size

    def forward(self, x):
        """Map images ``x`` (N, C, H, W) as the module does."""
        # Inductor stacks channels faster than it copies images to channels last.
        parts = (torch.stack(part.unbind(1), dim=-1) for part in x.split(self.size))
        return torch.cat([self.module(part.permute(0, 3, 1, 2)) for part in parts])
