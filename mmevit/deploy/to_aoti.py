"""Libraries compiled by AOTInductor, which run with PyTorch only, or in C++."""

import json

import torch
from torch import Tensor, nn

from mmevit.models import EfficientViT
from mmevit.utils.errors import ConfigError

from .programs import ExportJob, PyTorchSession, export_program

DTYPES = ('float32', 'bfloat16')
# PyTorch 2.11 silently miscompiles the windows of a dynamic size.
DYNAMIC = frozenset({'batch'})


def write(job: ExportJob) -> None:
    """Compile a package for the processor of this machine; see :func:`mmevit.deploy.export`.

    Raises:
        ConfigError: If PyTorch finds no C++ compiler.
    """
    if 'batch' not in job.dynamic and not job.inputs[0].is_cuda:
        # The maps of the stem are the largest. Those of two images fit into the cache.
        for part in list(job.network.modules()):
            if isinstance(part, EfficientViT) and not part.out_stem:
                part.register_module('stem', SplitBatch(part.stem, size=2))
    config = {'freezing': True, 'aot_inductor.metadata': dict(mmevit=job.metadata)}
    program = export_program(job)  # reports a PyTorch that is too old for the next call
    # PyTorch documents these two functions of a private module, and has no public ones.
    try:
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(job.path), inductor_configs=config
        )
    except RuntimeError as error:
        if 'InvalidCxxCompiler' not in str(error):
            raise
        raise ConfigError(
            'aoti needs a C++ compiler, and PyTorch finds none. Install g++, or set CXX.'
        ) from error


class Session(PyTorchSession):
    """A compiled package."""

    def __init__(self, path: str, num_threads: int) -> None:
        if not hasattr(torch._inductor, 'aoti_load_package'):
            raise ConfigError(
                f'PyTorch {torch.__version__} is too old for this target. Use PyTorch 2.11.'
            )
        package = torch._inductor.aoti_load_package(path)
        super().__init__(package, num_threads)
        self.metadata = json.loads(package.get_metadata().get('mmevit', '{}'))


class SplitBatch(nn.Module):
    """A module that is run on a few channels-last images (N, C, H, W) at a time."""

    def __init__(self, module: nn.Module, size: int) -> None:
        super().__init__()
        self.module, self.size = module, size

    def forward(self, x: Tensor) -> Tensor:
        """Map images like the module does."""
        # Inductor stacks channels faster than it converts images to channels-last.
        parts = (torch.stack(part.unbind(1), dim=-1) for part in x.split(self.size))
        return torch.cat([self.module(part.permute(0, 3, 1, 2)) for part in parts])
