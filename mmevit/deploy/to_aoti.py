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
            backbone.stem = InParts(backbone.stem, size=2)
    config = {'freezing': True, 'aot_inductor.metadata': dict(mmevit=metadata)}
    torch._inductor.aoti_compile_and_package(
        make_program(network, inputs, dynamic, dtype),
        package_path=str(path),
        inductor_configs=config,
    )


class Session(PyTorchSession):
    """A compiled package.

    Args:
        path (str): The file.
        num_threads (int): CPU threads, of all that PyTorch does.
    """

    def __init__(self, path, num_threads):
        super().__init__(torch._inductor.aoti_load_package(path), num_threads)
        self.metadata = json.loads(self.module.loader.get_metadata().get('mmevit', '{}'))


class InParts(nn.Module):
    """A module that is run on a few images at a time.

    Args:
        module (nn.Module): Maps a tensor (N, ...) to another.
        size (int): Images at a time.

    Example:
        >>> InParts(nn.Linear(2, 3), size=2)(torch.rand(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(self, module, size):
        super().__init__()
        self.module = module
        self.size = size

    def forward(self, x):
        """Map ``x`` (N, ...) as the module does."""
        return torch.cat([self.module(part) for part in x.split(self.size)])
