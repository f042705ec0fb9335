"""TorchScript files, which LibTorch runs too."""

import json
from contextlib import contextmanager

import torch

from .programs import InDtype, PyTorchSession

DTYPES = ('float32', 'bfloat16')
DYNAMIC = frozenset({'batch', 'size'})
PRODUCT = """graph(%a, %b):
    %product = aten::{}(%a, %b)
    return (%product)"""


def write(network, inputs, path, dynamic, dtype, metadata):
    """Write a trace, which any size may follow; see :func:`mmevit.deploy.export`."""
    trace = torch.jit.freeze(torch.jit.trace(InDtype(network, dtype).eval(), inputs))
    # PyTorch 2.11 fails to fuse a constant that is added to what aten::bmm gives.
    torch._C._jit_pass_custom_pattern_based_rewrite_graph(
        PRODUCT.format('bmm'), PRODUCT.format('matmul'), trace.graph
    )
    fixed = None if dynamic else shapes_of(inputs)
    extra = dict(mmevit=metadata, fixed_shapes=json.dumps(fixed))
    trace.save(str(path), _extra_files=extra)


def shapes_of(tensors):
    """Give the shapes of tensors as JSON has them."""
    return [list(tensor.shape) for tensor in tensors]


class Session(PyTorchSession):
    """A TorchScript file, of which oneDNN fuses what it can if it was written for one shape.

    Convolutions that follow each other then pass on their results in oneDNN's own layout. PyTorch
    2.11 compiles wrongly for the shapes of a file that takes several, up to a crash.

    Args:
        path (str): The file.
        num_threads (int): CPU threads to run on.
    """

    def __init__(self, path, num_threads):
        extra = dict(mmevit='', fixed_shapes='')
        super().__init__(torch.jit.load(path, _extra_files=extra), num_threads)
        self.metadata = json.loads(extra['mmevit'])
        self.path = path
        self.fused_shapes = json.loads(extra['fixed_shapes'] or 'null')
        self.is_compiled = False

    def __call__(self, *inputs):
        """Map input tensors to a tuple of tensors."""
        if self.fused_shapes:
            try:
                if shapes_of(inputs) == self.fused_shapes:
                    return self.run_fused(*inputs)
            except RuntimeError:
                pass  # oneDNN refuses maps of one pixel
            # What is compiled for other shapes, or half compiled, must not run again.
            self.module, self.fused_shapes = torch.jit.load(self.path), None
        return super().__call__(*inputs)

    def run_fused(self, *inputs):
        """Run what oneDNN has fused; that is compiled in the second run only."""
        with onednn_fusion():
            if not self.is_compiled:
                super().__call__(*inputs)
                self.is_compiled = True
            return super().__call__(*inputs)


@contextmanager
def onednn_fusion():
    """Have PyTorch fuse what it compiles inside, and leave its setting as it was."""
    before = torch.jit.onednn_fusion_enabled()
    torch.jit.enable_onednn_fusion(True)
    try:
        yield
    finally:
        torch.jit.enable_onednn_fusion(before)
