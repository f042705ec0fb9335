"""Where the time of a network goes: what memory bounds, and what computation bounds (Section 2.1).

Operators that mostly move bytes (reshape and copy, element-wise, normalisation, softmax, pooling)
are told from those that mostly compute (convolution, matmul), as in Figure 2 of the paper.
"""

import re
from collections import Counter
from contextlib import ExitStack, contextmanager

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmevit.utils.errors import ConfigError
from mmevit.utils.pytorch import attention_as_products

COMPUTE_BOUND = ('convolution', 'matmul')
MEMORY_BOUND = ('reshape and copy', 'element-wise', 'normalisation', 'softmax', 'pooling and sums')
# Python, the dispatch of operators, and what is in no list below.
OTHER = 'other'


def profile_runtime(network, images, rounds=5):
    """Measure the time, the bytes and the operations of each operator in each module.

    Attention is run as matrix products and softmax, since a fused kernel shows no parts.

    Args:
        network (nn.Module): The network, in evaluation mode. Time is that of its CPU thread, or of
            the GPU that the images are on.
        images (Tensor): A batch, (N, 3, H, W).
        rounds (int): Runs to take the mean of. Defaults to 5.

    Returns:
        list[dict]: For each ``kind``, ``operator`` and ``module`` (see :func:`short_path`) the
        ``seconds`` of a run, its ``bytes`` read and written, and its ``flops``, two for each
        multiply-accumulate.

    Raises:
        ConfigError: If this PyTorch is too old.

    Example:
        >>> from torch import nn
        >>> rows = profile_runtime(nn.Sequential(nn.Linear(64, 64), nn.ReLU()), torch.rand(8, 64))
        >>> sorted({row['operator'] for row in rows if row['kind'] != OTHER})
        ['copy', 'linear', 'relu', 'view']
    """
    if not hasattr(flop_counter, 'flop_registry'):
        raise ConfigError(
            f'PyTorch {torch.__version__} is too old to count the operations of single operators: '
            'install 2.3 or newer.'
        )
    with torch.no_grad(), attention_as_products():
        costs = count_costs(network, images)
        seconds = measure_times(network, images, rounds)
    rows = []
    for operator, module in seconds.keys() | costs.keys():
        bytes_, flops = costs.get((operator, module), (0, 0))
        rows.append(
            dict(
                kind=KINDS.get(operator, OTHER),
                operator=operator,
                module=module,
                seconds=seconds[operator, module],
                bytes=bytes_,
                flops=flops,
            )
        )
    return sorted(rows, key=lambda row: -row['seconds'])


def sum_rows(rows, key):
    """Sum rows that have something in common.

    Args:
        rows (list[dict]): As :func:`profile_runtime` gives them.
        key (str): ``'kind'``, ``'operator'`` or ``'module'``.

    Returns:
        list[dict]: For each value of ``key`` the sums, the ``share`` of the whole time, and the
        ``intensity``, operations for a byte; most time first.

    Example:
        >>> rows = [dict(kind=kind, seconds=1.0, bytes=4, flops=8) for kind in ('a', 'b', 'a')]
        >>> [(row['kind'], row['flops'], f'{row["share"]:.2f}') for row in sum_rows(rows, 'kind')]
        [('a', 16, '0.67'), ('b', 8, '0.33')]
    """
    whole = sum(row['seconds'] for row in rows)
    sums = {}
    for row in rows:
        total = sums.setdefault(row[key], Counter())
        total.update({name: row[name] for name in ('seconds', 'bytes', 'flops')})
    summed = [
        {
            key: value,
            **total,
            'share': total['seconds'] / whole,
            'intensity': total['flops'] / total['bytes'] if total['bytes'] else 0.0,
        }
        for value, total in sums.items()
    ]
    return sorted(summed, key=lambda row: -row['seconds'])


def memory_bound_share(rows):
    """Tell the share of the time that operators bound by memory take.

    Args:
        rows (list[dict]): As :func:`profile_runtime` gives them.

    Returns:
        float: From 0 to 1, of the time in known operators. What is beside them grows with the
        profiler's own work.
    """
    shares = kind_shares(rows)
    return sum(shares.get(kind, 0.0) for kind in MEMORY_BOUND)


def kind_shares(rows):
    """Tell the share of each kind of operator in the time of all known ones."""
    known = [row for row in rows if row['kind'] != OTHER]
    return {row['kind']: row['share'] for row in sum_rows(known, 'kind')}


def measure_times(network, images, rounds):
    """Measure the seconds of a run by operator and module.

    Args:
        network (nn.Module): The network.
        images (Tensor): A batch.
        rounds (int): Runs.

    Returns:
        Counter[tuple[str, str], float]: Seconds.
    """
    activities = [ProfilerActivity.CPU]
    if images.is_cuda:
        activities.append(ProfilerActivity.CUDA)
    for _ in range(3):
        network(images)
    named = in_modules(network, lambda path: record_function(RANGE + path))
    with named, profile(activities=activities, acc_events=True) as profiler:
        for _ in range(rounds):
            network(images)
    seconds = Counter()
    for event in profiler.events():
        # The kernels of a GPU are events too, and part of those that start them.
        if event.device_type != DeviceType.CPU:
            continue
        time = event.self_device_time_total if images.is_cuda else event.self_cpu_time_total
        seconds[locate(event)] += time / 1e6 / rounds
    return seconds


# What the profiler's events of modules start with.
RANGE = 'mmevit module '


def locate(event):
    """Tell the operator and the module of a profiler's event.

    Args:
        event (torch.autograd.profiler_util.FunctionEvent): The event.

    Returns:
        tuple[str, str]: The operator that it is a part of, and its module.
    """
    operator = None
    while event is not None and not event.name.startswith(RANGE):
        outer = find_operator(event.name)
        if operator is None or contains(outer, operator):
            operator = outer
        event = event.cpu_parent
    return operator or OTHER, short_path(event.name.removeprefix(RANGE)) if event else ''


def contains(outer, inner):
    """Tell whether an operator that another one calls is a part of that, and not one of its own.

    So it is for those of one kind, since relu calls clamp, but not for the copy that a view calls;
    and for all that softmax and normalisation call.
    """
    kind = KINDS.get(outer)
    return kind in ('normalisation', 'softmax') or (outer != 'view' and kind == KINDS[inner])


def count_costs(network, images):
    """Count the bytes and the operations of a run by operator and module.

    Args:
        network (nn.Module): The network.
        images (Tensor): A batch.

    Returns:
        dict[tuple[str, str], tuple[int, int]]: Bytes read and written, and operations.
    """
    with in_modules(network, CostCounter.inside) as _, CostCounter() as counter:
        network(images)
    return {place: (counter.bytes[place], counter.flops[place]) for place in counter.bytes}


class CostCounter(TorchDispatchMode):
    """Counts the bytes and the operations of every operator that is run."""

    path = ''

    def __init__(self):
        super().__init__()
        self.bytes, self.flops = Counter(), Counter()

    @classmethod
    @contextmanager
    def inside(cls, path):
        """Count for a module."""
        outer, cls.path = cls.path, path
        try:
            yield
        finally:
            cls.path = outer

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operator, and count it."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        operator = find_operator(func.overloadpacket.__name__) or OTHER
        place = operator, short_path(self.path)
        # Views move nothing.
        tensors = [] if operator == 'view' else tree_flatten((args, kwargs, output))[0]
        self.bytes[place] += sum(
            tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor)
        )
        if count := flop_counter.flop_registry.get(func.overloadpacket):
            self.flops[place] += count(*args, **kwargs, out_val=output)
        return output


@contextmanager
def in_modules(network, enter):
    """Enter a context around the forward pass of every module.

    Args:
        network (nn.Module): The network.
        enter (Callable[[str], ContextManager]): Makes the context of the module of that name.

    Yields:
        None: For as long as it is so.
    """
    contexts, handles = [], ExitStack()

    def before(path):
        def hook(module, args):
            contexts.append(enter(path))
            contexts[-1].__enter__()

        return hook

    def after(module, args, output):
        contexts.pop().__exit__(None, None, None)

    with handles:
        for path, module in network.named_modules():
            handles.enter_context(module.register_forward_pre_hook(before(path)))
            handles.enter_context(module.register_forward_hook(after, always_call=True))
        yield


def short_path(path):
    """Name the part of a block that a module belongs to, the same in all blocks.

    Args:
        path (str): Name of the module in the network.

    Returns:
        str: Stars for numbers, and what comes after the last of them as far as the first name.

    Example:
        >>> short_path('backbone.stages.1.blocks.0.attn.w_msa.qkv')
        'backbone.stages.*.blocks.*.attn'
        >>> short_path('backbone.stages.2.1.ffn0.branch.expand.conv')
        'backbone.stages.*.*.ffn0'
        >>> short_path('head.fc')
        'head.fc'
    """
    path = re.sub(r'\.\d+(?=\.|$)', '.*', path)
    return re.sub(r'(\.\*\.(?!\w+\.\*)\w+)\..*', r'\1', path)


def find_operator(name):
    """Tell what an operator of PyTorch's is called here.

    Args:
        name (str): Its name, of whatever level.

    Returns:
        str | None: The name, of ``KINDS``; None if it is unknown.

    Example:
        >>> find_operator('aten::mkldnn_convolution'), find_operator('add_'), find_operator('foo')
        ('convolution', 'add', None)
    """
    return OPERATORS.get(name.removeprefix('aten::').strip('_'))


ELEMENT_WISE = (
    'add sub rsub mul div relu relu6 gelu silu sigmoid hardswish hardsigmoid hardtanh clamp '
    'clamp_min clamp_max tanh exp log pow sqrt rsqrt erf neg abs maximum minimum where '
    'masked_fill addcmul addcdiv lerp leaky_relu elu mish prelu threshold softplus floor '
    'eq ne lt le gt ge logical_not square reciprocal floor_divide remainder dropout '
    'feature_dropout bernoulli'
)
# The operators: for each kind, what they are called here, and what else PyTorch calls them, above
# and below. Leading and trailing underscores are left out.
NAMES = {
    'convolution': {
        'convolution': 'conv1d conv2d conv3d conv_transpose2d convolution_overrideable '
        'mkldnn_convolution cudnn_convolution cudnn_convolution_relu cudnn_convolution_add_relu '
        'cudnn_convolution_transpose slow_conv2d_forward slow_conv_dilated2d thnn_conv2d '
        'conv_depthwise2d nnpack_spatial_convolution',
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
    'normalisation': {
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


def plot_shares(profiles):
    """Draw the share of each kind of operator, as in Figure 2 of the paper.

    Args:
        profiles (dict[str, list[dict]]): For each network's name what :func:`profile_runtime` gave.

    Returns:
        matplotlib.figure.Figure: A bar for each network.
    """
    # Not at the top: the smallest build of mmengine comes without matplotlib.
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.6 + 0.5 * len(profiles)), layout='constrained')
    axes = figure.subplots()
    reds, blues = colormaps['Reds'], colormaps['Blues']
    shades = {
        **{kind: reds(0.75 - 0.13 * index) for index, kind in enumerate(MEMORY_BOUND)},
        **{kind: blues(0.45 + 0.3 * index) for index, kind in enumerate(COMPUTE_BOUND)},
    }
    shares = {name: kind_shares(rows) for name, rows in profiles.items()}
    starts = dict.fromkeys(profiles, 0.0)
    for kind, shade in shades.items():
        widths = [100 * shares[name].get(kind, 0.0) for name in profiles]
        bars = axes.barh(
            list(profiles), widths, left=list(starts.values()), color=shade, label=kind
        )
        labels = [f'{width:.0f}' if width >= 3 else '' for width in widths]
        axes.bar_label(bars, labels, label_type='center', fontsize=8)
        starts = {name: starts[name] + width for name, width in zip(starts, widths, strict=True)}
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel('share of the time in operators, %: bound by memory red, by computation blue')
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.tick_params(left=False)
    figure.legend(loc='outside upper center', ncols=4, fontsize=8, frameon=False)
    return figure
