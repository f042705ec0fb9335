"""What differs between PyTorch versions, processors and model wrappers."""

import re
from contextlib import AbstractContextManager
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside a distributed wrapper, or the model itself."""
    wrapped: Any = model
    return wrapped.module if is_model_wrapper(model) else model


def attention_as_products() -> AbstractContextManager:
    """Compute attention as matrix products, which PyTorch counts on a CPU."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # before PyTorch 2.3
        from torch.backends.cuda import sdp_kernel

        return sdp_kernel(enable_flash=False, enable_mem_efficient=False)
    return sdpa_kernel(SDPBackend.MATH)


def cpu_capability() -> str:
    """Return the CPU instructions that PyTorch uses, such as ``AVX512``."""
    # torch.backends.cpu.get_cpu_capability() is missing before PyTorch 2.1.
    return ' '.join(re.findall('CPU capability usage: (.+)', torch.__config__.show()))
