"""What tests need of PyTorch that the one of the original OpenMMLab lacks."""

import pytest
import torch
from packaging.version import Version


def needs(is_there, what):
    """Mark a test that is skipped where something is not there."""
    reason = f'PyTorch {torch.__version__} is too old: it lacks {what}'
    return pytest.mark.skipif(not is_there, reason=reason)


needs_dim = needs(hasattr(torch.export, 'Dim'), 'dimensions with a name in torch.export')
needs_scaler = needs(hasattr(torch.amp, 'GradScaler'), 'the scaling of gradients on CPUs')
needs_nanoseconds = needs(
    hasattr(torch._C._autograd._KinetoEvent, 'start_ns'), 'the order of what is allocated'
)
needs_profiler = needs(
    Version(torch.__version__) >= Version('2.5'), 'times of operators in nanoseconds'
)
needs_safe_globals = needs(
    hasattr(torch.serialization, 'safe_globals'), 'the list of safe globals of a process'
)
needs_compiled_gradients = needs(
    Version(torch.__version__) >= Version('2.5'), 'compiled gradients that equal those of eager'
)
# 2.1 fuses them, and those between were not tried.
needs_refusal = needs(
    Version(torch.__version__) >= Version('2.11'), 'the refusal to fuse maps of one pixel'
)
