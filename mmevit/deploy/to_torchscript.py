"""TorchScript files, which LibTorch runs too."""

import json

import torch

from .programs import InDtype, PyTorchSession

DTYPES = ('float32', 'bfloat16')
DYNAMIC = frozenset({'batch', 'size'})


def write(network, inputs, path, dynamic, dtype, metadata):
    """Write a trace, which any size may follow; see :func:`mmevit.deploy.export`."""
    trace = torch.jit.trace(InDtype(network, dtype).eval(), inputs)
    torch.jit.freeze(trace).save(str(path), _extra_files=dict(mmevit=metadata))


class Session(PyTorchSession):
    """A TorchScript file.

    Args:
        path (str): The file.
        num_threads (int): CPU threads, of all that PyTorch does.
    """

    def __init__(self, path, num_threads):
        extra = dict(mmevit='')
        super().__init__(torch.jit.load(path, _extra_files=extra), num_threads)
        self.metadata = json.loads(extra['mmevit'])
