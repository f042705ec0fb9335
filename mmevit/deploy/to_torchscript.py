"""TorchScript files, which LibTorch runs too."""

import json

import torch

from .programs import InDtype

DTYPES = ('float32', 'bfloat16')
DYNAMIC = frozenset({'batch', 'size'})


def write(network, inputs, path, dynamic, dtype, metadata):
    """Write a trace, which any size may follow; see :func:`mmevit.deploy.export`."""
    trace = torch.jit.trace(InDtype(network, dtype).eval(), inputs)
    torch.jit.freeze(trace).save(str(path), _extra_files=dict(mmevit=metadata))


class Session:
    """A TorchScript file.

    Args:
        path (str): The file.
        num_threads (int): CPU threads, of all that PyTorch does.
    """

    def __init__(self, path, num_threads):
        torch.set_num_threads(num_threads)
        extra = dict(mmevit='')
        self.module = torch.jit.load(path, _extra_files=extra)
        self.metadata = json.loads(extra['mmevit'])

    @torch.no_grad()
    def __call__(self, *inputs):
        """Map input tensors to a tuple of tensors."""
        outputs = self.module(*inputs)
        return (outputs,) if isinstance(outputs, torch.Tensor) else outputs
