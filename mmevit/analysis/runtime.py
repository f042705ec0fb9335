"""Runtime profile of a network: memory-bound and compute-bound operators (Section 2.1).

As in Figure 2 of the paper, reshape and copy, element-wise operators, normalization, softmax and
pooling are memory-bound; convolution and matmul are compute-bound.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.autograd.profiler import record_function
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmevit.utils.errors import ConfigError
from mmevit.utils.pytorch import attention_as_products

Row = dict[str, Any]
Place = tuple[str, str]  # an operator and a module

COMPUTE_BOUND = ('convolution', 'matmul')
MEMORY_BOUND = ('reshape and copy', 'element-wise', 'normalization', 'softmax', 'pooling and sums')
# Python, the dispatch of operators, and operators that are in neither list.
OTHER = 'other'


def profile_runtime(network: nn.Module, images: Tensor, rounds: int = 5) -> list[Row]:
    """Measure the time, memory traffic and FLOPs of each operator in each module.

    Attention runs as matrix products and softmax, since a fused kernel hides its parts.

    Args:
        network: The network, in evaluation mode.
        images: A batch, (N, 3, H, W). Its device decides whether CPU or GPU time is measured.
        rounds: Number of runs to average over.

    Returns:
        For each ``kind``, ``operator`` and ``module`` (see :func:`short_path`) the ``seconds``,
        the ``bytes`` read and written, and the ``flops`` of one run, most time first. A
        multiply-accumulate is two FLOPs.

    Raises:
        ConfigError: If PyTorch is older than 2.5.

    Example:
        >>> from torch import nn
        >>> rows = profile_runtime(nn.Sequential(nn.Linear(64, 64), nn.ReLU()), torch.rand(8, 64))
        >>> sorted({row['operator'] for row in rows if row['kind'] != OTHER})
        ['copy', 'linear', 'relu', 'view']
    """
    # PyTorch 2.1 rounds times to microseconds and then nests short operators wrongly. Its profiler
    # has acc_events since 2.5.
    if Version(torch.__version__) < Version('2.5'):
        raise ConfigError(
            f'PyTorch {torch.__version__} is too old for runtime profiles. Install 2.5 or newer.'
        )
    with torch.no_grad(), attention_as_products():
        with running_modules(network) as paths, CostCounter(paths) as costs:
            network(images)
        seconds = measure_times(network, images, rounds)
    rows = [
        dict(
            kind=KINDS.get(operator, OTHER),
            operator=operator,
            module=module,
            seconds=seconds[operator, module],
            bytes=costs.bytes[operator, module],
            flops=costs.flops[operator, module],
        )
        for operator, module in seconds.keys() | costs.bytes.keys()
    ]
    return sorted(rows, key=lambda row: -row['seconds'])


def sum_rows(rows: Sequence[Row], key: str) -> list[Row]:
    """Sum the rows of a profile by ``'kind'``, ``'operator'`` or ``'module'``.

    Returns:
        For each value of ``key`` the sums, the ``share`` of the total time, and the ``intensity``
        in FLOPs per byte; most time first.

    Example:
        >>> rows = [dict(kind=kind, seconds=1.0, bytes=4, flops=8) for kind in ('a', 'b', 'a')]
        >>> [(row['kind'], row['flops'], f'{row["share"]:.2f}') for row in sum_rows(rows, 'kind')]
        [('a', 16, '0.67'), ('b', 8, '0.33')]
    """
    total_seconds = sum(row['seconds'] for row in rows)
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        sums[row[key]].update({name: row[name] for name in ('seconds', 'bytes', 'flops')})
    summed = [
        {
            key: value,
            **total,
            'share': total['seconds'] / total_seconds,
            'intensity': total['flops'] / total['bytes'] if total['bytes'] else 0.0,
        }
        for value, total in sums.items()
    ]
    return sorted(summed, key=lambda row: -row['seconds'])


def memory_bound_share(rows: Sequence[Row]) -> float:
    """Compute the share of memory-bound operators in the time, from 0 to 1.

    Only the time in known operators counts: the rest includes the overhead of the profiler.
    """
    return sum(share for kind, share in kind_shares(rows).items() if kind in MEMORY_BOUND)


def kind_shares(rows: Sequence[Row]) -> dict[str, float]:
    """Compute the share of each kind of operator in the time of all known operators."""
    known = [row for row in rows if row['kind'] != OTHER]
    return {row['kind']: row['share'] for row in sum_rows(known, 'kind')}


def measure_times(network: nn.Module, images: Tensor, rounds: int) -> Counter[Place]:
    """Measure the seconds of one run by operator and module."""
    activities = [ProfilerActivity.CPU]
    if images.is_cuda:
        activities.append(ProfilerActivity.CUDA)
    for _ in range(3):
        network(images)
    ranges = running_modules(network, lambda path: record_function(RANGE_PREFIX + path))
    with ranges, profile(activities=activities, acc_events=True) as profiler:
        for _ in range(rounds):
            network(images)
    seconds = Counter()
    for event in profiler.events() or ():
        # GPU kernels are separate events, and also counted in the operators that launch them.
        if event.device_type == DeviceType.CPU:
            time = event.self_device_time_total if images.is_cuda else event.self_cpu_time_total
            seconds[find_operator_and_module(event)] += time / 1e6 / rounds
    return seconds


RANGE_PREFIX = 'mmevit module '


def find_operator_and_module(event: FunctionEvent) -> Place:
    """Find the operator that a profiler event is part of, and the module that calls it."""
    operator, parent = None, event
    while parent is not None and not parent.name.startswith(RANGE_PREFIX):
        outer = operator_name(parent.name)
        if operator is None or is_part_of(operator, outer):
            operator = outer
        parent = parent.cpu_parent
    module = short_path(parent.name.removeprefix(RANGE_PREFIX)) if parent else ''
    return operator or OTHER, module


def is_part_of(inner: str, outer: str | None) -> bool:
    """Return whether an operator counts as part of the one that calls it.

    Everything that softmax and normalization call is part of them. Other operators only include
    those of their own kind: relu includes clamp, but a view does not include a copy.
    """
    kind = KINDS.get(outer or '')
    return kind in ('normalization', 'softmax') or (outer != 'view' and kind == KINDS[inner])


class CostCounter(TorchDispatchMode):
    """Counts the bytes and FLOPs of operators by the module that runs, the last of ``paths``."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__()
        self.paths = paths
        self.bytes: Counter[Place] = Counter()
        self.flops: Counter[Place] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator and count its costs."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        operator = operator_name(func.overloadpacket.__name__) or OTHER
        place = operator, short_path(self.paths[-1])
        # Views move no data.
        values = [] if operator == 'view' else tree_flatten((args, kwargs, output))[0]
        self.bytes[place] += sum(value.nbytes for value in values if isinstance(value, Tensor))
        if count := flop_counter.flop_registry.get(func.overloadpacket):
            self.flops[place] += count(*args, **kwargs, out_val=output)
        return output


@contextmanager
def running_modules(
    network: nn.Module, enter: Callable[[str], AbstractContextManager] = nullcontext
) -> Iterator[Sequence[str]]:
    """Yield the names of the modules whose forward pass is running, the innermost last.

    ``enter`` makes a context for the forward pass of a module from its name.
    """
    paths: list[str] = []
    contexts: list[AbstractContextManager] = []

    def before(path: str, module: nn.Module, args: Any) -> None:
        paths.append(path)
        contexts.append(enter(path))
        contexts[-1].__enter__()

    def after(module: nn.Module, args: Any, output: Any) -> None:
        paths.pop()
        contexts.pop().__exit__(None, None, None)

    with ExitStack() as handles:
        for path, module in network.named_modules():
            handles.enter_context(module.register_forward_pre_hook(partial(before, path)))
            handles.enter_context(module.register_forward_hook(after, always_call=True))
        yield paths


def short_path(path: str) -> str:
    """Shorten the name of a module to the part of a block that it belongs to.

    Numbers become stars, so that all blocks share the name; what follows the first name after the
    last number is dropped.

    Example:
        >>> short_path('backbone.stages.2.1.ffn0.branch.expand.conv')
        'backbone.stages.*.*.ffn0'
        >>> short_path('head.fc')
        'head.fc'
    """
    path = re.sub(r'\.\d+(?=\.|$)', '.*', path)
    return re.sub(r'(\.\*\.(?!\w+\.\*)\w+)\..*', r'\1', path)


def operator_name(name: str) -> str | None:
    """Map the name of a PyTorch operator, at any level, to ours; None if it is unknown."""
    return OPERATORS.get(name.removeprefix('aten::').strip('_'))


ELEMENT_WISE = (
    'add sub rsub mul div relu relu6 gelu silu sigmoid hardswish hardsigmoid hardtanh clamp '
    'clamp_min clamp_max tanh exp log pow sqrt rsqrt erf neg abs maximum minimum where '
    'masked_fill addcmul addcdiv lerp leaky_relu elu mish prelu threshold softplus floor '
    'eq ne lt le gt ge logical_not square reciprocal floor_divide remainder dropout '
    'feature_dropout bernoulli'
)
# For each kind its operators by our name, with PyTorch's other names for them at any level of the
# dispatcher, without leading and trailing underscores.
NAMES = {
    'convolution': {
        'convolution': 'conv1d conv2d conv3d conv_transpose2d convolution_overrideable '
        'mkldnn_convolution cudnn_convolution cudnn_convolution_relu cudnn_convolution_add_relu '
        'cudnn_convolution_transpose slow_conv2d_forward slow_conv_dilated2d thnn_conv2d '
        'conv_depthwise2d nnpack_spatial_convolution'
    },
    'matmul': {
        'linear': 'addmm mm addmv mv mkldnn_linear addmm_activation',
        'matmul': 'bmm baddbmm einsum scaled_dot_product_attention '
        'scaled_dot_product_attention_math',
    },
    'reshape and copy': {
        'view': 'reshape permute transpose t expand as_strided slice select split chunk unbind '
        'narrow flatten unflatten squeeze unsqueeze reshape_alias unsafe_view alias detach movedim '
        'swapaxes numpy_T expand_as view_as split_with_sizes unfold lift_fresh',
        'copy': 'clone contiguous to to_copy repeat repeat_interleave',
        'cat': 'stack concat',
        'roll': '',
        'pad': 'constant_pad_nd reflection_pad2d replication_pad2d',
        'index': 'index_select gather embedding index_put scatter take take_along_dim',
        'im2col': 'col2im pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle '
        'upsample_nearest2d upsample_bilinear2d upsample_bicubic2d',
        'fill': 'zero zeros ones full new_zeros new_full arange empty_like zeros_like ones_like',
    },
    'element-wise': dict.fromkeys(ELEMENT_WISE.split(), ''),
    'normalization': {
        'batch norm': 'batch_norm native_batch_norm batch_norm_impl_index cudnn_batch_norm '
        'native_batch_norm_legit native_batch_norm_legit_no_training batch_norm_with_update',
        'layer norm': 'layer_norm native_layer_norm',
        'group norm': 'group_norm native_group_norm instance_norm',
        'l2 norm': 'linalg_vector_norm norm normalize',
    },
    'softmax': {'softmax': 'log_softmax safe_softmax'},
    'pooling and sums': {
        'pool': 'max_pool2d max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d '
        'adaptive_max_pool2d mkldnn_max_pool2d',
        'sum': 'mean amax amin max min var var_mean std std_mean any all cumsum prod topk sort',
    },
}
KINDS = {operator: kind for kind, operators in NAMES.items() for operator in operators}
OPERATORS = {
    name: operator
    for operators in NAMES.values()
    for operator, others in operators.items()
    for name in (operator, *others.split())
}
