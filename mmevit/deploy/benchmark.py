"""How fast networks are, side by side on one machine, in each of the forms that they can run in."""

import copy
import csv
import ctypes
import dataclasses
import itertools
import json
import platform
import random
import re
import tempfile
import time
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.model import BaseModel
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.utils.flop_counter import FlopCounterMode

from mmevit.deploy import TARGETS, export, fold, load_exported
from mmevit.deploy.exporting import largest_difference
from mmevit.engine.launch import build_model, read_config
from mmevit.errors import ConfigError
from mmevit.files import written_whole
from mmevit.models import EfficientViT


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all networks of a benchmark have in common.

    Args:
        batch_size (int): Images at a time; 1 gives latencies. Defaults to 16.
        threads (int): CPU threads. Defaults to 1.
        size (tuple[int, int], optional): Height and width of the images. Defaults to the size that
            each network's accuracy is published for, 224 x 224 where that is not known.
        dtype (str): ``'float32'`` or ``'bfloat16'``: what is computed in. Defaults to
            ``'float32'``.
        device (str): ``'cpu'`` or ``'cuda'``. Defaults to ``'cpu'``.
        channels_last (bool): Whether the eager and folded forms get images and weights with their
            channels last in memory. Compiled ones always do, traced ones never, but for our own
            weights, which are so once folded. Defaults to False.
        rounds (int): How often every network gets its turn. Defaults to 20.
        seconds (float): How long a turn is; one call is timed however long it takes.
            Defaults to 0.25.
        seed (int): Seed of weights, images and the order of the turns. Defaults to 0.
    """

    batch_size: int = 16
    threads: int = 1
    size: tuple[int, int] | None = None
    dtype: str = 'float32'
    device: str = 'cpu'
    channels_last: bool = False
    rounds: int = 20
    seconds: float = 0.25
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Model:
    """A network, and what is published about it.

    Args:
        label (str): What it is called in tables and pictures.
        name (str): What :func:`build` makes it of.
        options (dict): Settings of its config that are changed. Defaults to none.
        size (int): Height and width of the images that its accuracy is for. Defaults to 224.
        top1 (float, optional): Published accuracy on ImageNet-1k, in percent.
        params (float, optional): Published number of parameters, in millions.
        macs (float, optional): Published multiply-accumulates for an image, in millions.
        cpu_speed (float, optional): Images a second on one thread of a Xeon E5-2690 v4, batch 16,
            in the `EfficientViT paper <https://arxiv.org/abs/2305.07027>`_.
    """

    label: str
    name: str
    options: dict = dataclasses.field(default_factory=dict)
    size: int = 224
    top1: float | None = None
    params: float | None = None
    macs: float | None = None
    cpu_speed: float | None = None


@dataclasses.dataclass
class Entry:
    """What gets its turn in every round: a network in one form, or a matrix product.

    Args:
        model (str): Label of the network.
        form (str): A name of ``FORMS``.
        run (callable, optional): Computes one batch; None if the network has no such form.
        items (int): Images that it computes at a time.
        macs (int): Multiply-accumulates for each of them.
        facts (dict): What else is known, by the names of the columns.
        rounds (list[list[float]]): Seconds that each call took, round by round.
    """

    model: str
    form: str
    run: object = None
    items: int = 1
    macs: int = 0
    facts: dict = dataclasses.field(default_factory=dict)
    rounds: list = dataclasses.field(default_factory=list)

    def rates(self):
        """list[float]: Images a second in each round."""
        return [self.items * len(seconds) / sum(seconds) for seconds in self.rounds]


def benchmark(models, forms, setting=Setting(), baseline=None):
    """Time networks in several forms, in turns.

    In each round everything is run for a moment, in random order, so that whatever else the
    machine does hits all alike. Ratios are taken within a round, and their median is given with
    its quartiles. What the processor can do at best is measured in the same rounds, as the fastest
    of some products of square matrices.

    Weights are random, and so are the images. Batch norm has the statistics of such images.

    Args:
        models (Sequence[Model]): The networks, see :func:`find_model`.
        forms (Sequence[str]): Names of ``FORMS``.
        setting (Setting): How they are run.
        baseline (str, optional): ``'MODEL:FORM'`` that the ratios are to. Defaults to the first
            form of the first network.

    Returns:
        list[dict]: For each network and form a row: ``model`` and ``form``; ``speed`` in images a
        second, the median over the rounds, and ``speeds`` of each round; ``latency`` and
        ``latency95``, median and 95th percentile over all calls, in ms a batch; ``memory`` that a
        batch takes beyond the network's own, at its peak, in MiB; ``params`` of the network as it
        is trained and ``macs`` of the form, for an image, in millions; ``peak``, the share of the
        speed of a matrix product; ``ratio``, ``ratio_low`` and ``ratio_high``; ``difference``, the
        largest one from the outputs of the eager form in float32, relative to the largest output;
        the published ``top1``, ``published_params``, ``published_macs`` and ``cpu_speed``. A
        network that cannot be brought into a form has a sentence, ``problem``, instead.

    Raises:
        ConfigError: If a network, form, size or the baseline cannot be used.

    Example:
        >>> setting = Setting(batch_size=1, size=(64, 64), rounds=1, seconds=0)
        >>> rows = benchmark([find_model('efficientvit-m0')], ['eager', 'folded'], setting)
        >>> [(row['model'], row['form'], round(row['params'], 3)) for row in rows]
        [('efficientvit-m0', 'eager', 2.349), ('efficientvit-m0', 'folded', 2.349)]
    """
    check(models, forms, setting, baseline)
    with process_settings(setting), tempfile.TemporaryDirectory() as folder:
        entries = [
            entry
            for model in show_progress(models, 'Preparing')
            for entry in prepare(model, forms, setting, folder)
        ]
        reference = find_baseline(entries, baseline)
        peaks = list(matrix_products(setting))
        take_turns([entry for entry in entries if entry.run] + peaks, setting)
    best_products = best_of_each_round(peaks)
    return [summarise(entry, reference, best_products) for entry in entries]


def check(models, forms, setting, baseline):
    """Check all that can be checked before a network is built.

    Args:
        models (Sequence[Model]): The networks.
        forms (Sequence[str]): Names of forms.
        setting (Setting): How they are run.
        baseline (str | None): ``'MODEL:FORM'`` that the ratios are to.

    Raises:
        ConfigError: If any of it cannot be used.
    """
    unknown = [form for form in forms if form not in FORMS]
    if unknown or not forms:
        raise ConfigError(f'There is no form {", ".join(unknown)}: choose from {", ".join(FORMS)}.')
    if min(setting.batch_size, setting.threads, setting.rounds, *(setting.size or [1])) < 1:
        raise ConfigError('Batch size, threads, rounds and image size must be 1 or more.')
    if setting.device == 'cuda' and not torch.cuda.is_available():
        raise ConfigError('PyTorch finds no GPU here: leave --device at cpu.')
    names = [f'{model.label}:{form}' for model in models for form in forms]
    if baseline not in (None, *names):
        raise ConfigError(f'The baseline {baseline} is none of those run: {", ".join(names)}.')


@contextmanager
def process_settings(setting):
    """Set the threads of PyTorch and what compiling needs for the time of a benchmark."""
    threads = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    # Beyond some compiled networks, PyTorch would run further ones eagerly without a word.
    limits = dict(recompile_limit=1000, accumulated_recompile_limit=1000)
    try:
        with torch._dynamo.config.patch(limits), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        torch.set_num_threads(threads)


def show_progress(items, description):
    """Show on the error stream how far a loop is."""
    return track(items, description, console=Console(stderr=True), transient=True)


def prepare(model, forms, setting, folder):
    """Bring a network into each of some forms, and check what each gives.

    Args:
        model (Model): The network.
        forms (Sequence[str]): Names of ``FORMS``.
        setting (Setting): How it is run.
        folder (str): Where to write files.

    Yields:
        Entry: For each form, with all that is known before it is timed.

    Raises:
        ConfigError: If the network cannot be built, or not run at this size.
    """
    size = setting.size or (model.size, model.size)
    torch.manual_seed(setting.seed)
    network = Flat(build(model.name, model.options)).eval()
    images = torch.randn(setting.batch_size, 3, *size)
    try:
        calibrate(network, size)
        network, images = network.to(setting.device), images.to(setting.device)
        expected = network(images)
    # Networks refuse sizes in ways of their own.
    except Exception as error:
        message = f'{model.label} cannot be run on images of {size[0]} x {size[1]}'
        raise ConfigError(f'{message}: {one_line(error)}') from error
    folded = fold_all(network, images[:1])
    published = publications(model) if size == (model.size, model.size) else {}
    for form in forms:
        entry = Entry(model.label, form, items=setting.batch_size, facts=dict(published))
        entry.macs = count_macs(network if form == 'eager' else folded, images[:1])
        entry.facts['params'] = sum(weight.numel() for weight in network.parameters()) / 1e6
        entry.facts['macs'] = entry.macs / 1e6
        try:
            entry.run = FORMS[form](network, folded, images, setting, folder)
            outputs, entry.facts['memory'] = run_for_memory(entry.run, setting.device)
            entry.facts['difference'] = largest_difference(outputs, expected)
        # What a runtime cannot take is part of the result.
        except Exception as error:
            entry.run, entry.facts['problem'] = None, one_line(error)
        yield entry


def publications(model):
    """Collect what is published about a network, by the names of the columns."""
    return dict(
        top1=model.top1,
        published_params=model.params,
        published_macs=model.macs,
        cpu_speed=model.cpu_speed,
    )


def one_line(error):
    """Say in one line what an error is."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    reason = ' '.join(lines[0].split())[:200] if lines else ''
    return reason if isinstance(error, ConfigError) else f'{type(error).__name__}: {reason}'


def find_baseline(entries, name):
    """Find what the ratios are to.

    Args:
        entries (list[Entry]): All that is run.
        name (str | None): ``'MODEL:FORM'`` of one of them.

    Returns:
        Entry: That one, or the first that can be run.

    Raises:
        ConfigError: If it cannot be run.
    """
    if name is None:
        return next((entry for entry in entries if entry.run), entries[0])
    found = next(entry for entry in entries if f'{entry.model}:{entry.form}' == name)
    if found.run is None:
        raise ConfigError(f'The baseline {name} cannot be run: {found.facts["problem"]}')
    return found


def take_turns(entries, setting):
    """Time all entries for a moment each, again and again.

    Args:
        entries (list[Entry]): What to run; the seconds go to ``rounds`` of each.
        setting (Setting): How long and how often.
    """
    generator = random.Random(setting.seed)
    time_call = {'cpu': time_on_cpu, 'cuda': time_on_gpu}[setting.device]
    turns = [
        entry for _ in range(setting.rounds) for entry in generator.sample(entries, k=len(entries))
    ]
    for entry in show_progress(turns, 'Timing'):
        entry.run()  # brings its weights back into the caches, and is not timed
        end = time.perf_counter() + setting.seconds
        seconds = [time_call(entry.run)]
        while time.perf_counter() < end:
            seconds.append(time_call(entry.run))
        entry.rounds.append(seconds)


def time_on_cpu(run):
    """Time a call, in seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def time_on_gpu(run):
    """Time a call from an idle GPU to an idle GPU, in seconds."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def matrix_products(setting):
    """Make the matrix products of which the fastest is what the processor can do.

    Args:
        setting (Setting): Type and device.

    Yields:
        Entry: For each size of square matrices.
    """
    for size in {'cpu': (512, 1024, 2048), 'cuda': (4096, 8192)}[setting.device]:
        matrix = torch.randn(size, size, device=setting.device).to(getattr(torch, setting.dtype))
        yield Entry('matrix product', str(size), partial(torch.mm, matrix, matrix), macs=size**3)


def best_of_each_round(products):
    """Find the multiply-accumulates a second of the fastest matrix product in each round."""
    speeds = [[rate * product.macs for rate in product.rates()] for product in products]
    return [max(round_) for round_ in zip(*speeds, strict=True)]


def summarise(entry, reference, best_products):
    """Make a row of what was measured.

    Args:
        entry (Entry): What was run.
        reference (Entry): What the ratio is to.
        best_products (list[float]): Multiply-accumulates a second at best, round by round.

    Returns:
        dict: The row, see :func:`benchmark`.

    Example:
        >>> fast = Entry('a', 'eager', items=2, macs=10, rounds=[[0.1, 0.1], [0.2]])
        >>> slow = Entry('b', 'eager', items=2, macs=10, rounds=[[0.2], [0.4]])
        >>> row = summarise(fast, slow, best_products=[400, 200])
        >>> row['speed'], row['latency'], row['ratio'], row['peak']
        (15.0, 100.0, 2.0, 0.5)
    """
    row = dict(model=entry.model, form=entry.form, **entry.facts)
    if entry.run is None and not entry.rounds:
        return row
    rates = np.array(entry.rates())
    milliseconds = 1000 * np.array([*itertools.chain(*entry.rounds)])
    low, ratio, high = np.percentile(rates / np.array(reference.rates()), [25, 50, 75])
    peak = np.median(rates * entry.macs / np.array(best_products))
    numbers = dict(
        speed=np.median(rates),
        latency=np.median(milliseconds),
        latency95=np.percentile(milliseconds, 95),
        peak=peak,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
    )
    row.update({name: float(number) for name, number in numbers.items()}, speeds=rates.tolist())
    return row


def best_forms(rows):
    """Keep of each network the form that is fastest.

    Args:
        rows (list[dict]): As :func:`benchmark` gives them.

    Returns:
        list[dict]: One for each network, in their order.

    Example:
        >>> best_forms([dict(model='a', form='eager', speed=1.0),
        ...             dict(model='a', form='traced', speed=2.0)])
        [{'model': 'a', 'form': 'traced', 'speed': 2.0}]
    """
    best = {}
    for row in rows:
        if row.get('speed', 0) > best.get(row['model'], {}).get('speed', -1):
            best[row['model']] = row
    return list(best.values())


class Flat(nn.Module):
    """Any network as a map from images to a flat tuple of tensors.

    Args:
        model (nn.Module): A network of PyTorch's or of OpenMMLab's; of the latter it gives what
            ``mode='tensor'`` does, before any decoding.

    Example:
        >>> network = Flat(EfficientViT('m0')).eval()
        >>> [feature.shape[1] for feature in network(torch.rand(1, 3, 64, 64))]
        [64, 128, 192]
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        """Map images (N, 3, H, W) to a tuple of tensors."""
        arguments = {}
        if isinstance(self.model, BaseModel):
            arguments['mode'] = 'tensor'
        if getattr(self.model, 'with_rpn', False):
            arguments['data_samples'] = describe_images(images)
        return tuple(flatten(self.model(images, **arguments)))


def flatten(outputs):
    """List the tensors of nested tuples, lists and dicts in order."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for value in values for tensor in flatten(value)]


def describe_images(images):
    """Tell a detector with proposals that the images fill the whole batch."""
    from mmdet.structures import DetDataSample

    size = tuple(images.shape[2:])
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size)
    return [DetDataSample(metainfo=dict(meta, scale_factor=(1.0, 1.0))) for _ in images]


def build(name, options={}):
    """Build a network by its name, with random weights.

    Args:
        name (str): ``'efficientvit-m4'`` or another model of mmevit or mmpretrain, with or without
            ``mmpretrain::`` before it; ``'timm::NAME'``; ``'backbone::m4'``; or a config, such as
            ``'configs/retinanet_evit_m4.py'`` or
            ``'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'``.
        options (dict): Settings of ``model`` in its config that are changed. Defaults to none.

    Returns:
        nn.Module: The network.

    Raises:
        ConfigError: If there is none of that name, or what it needs is not installed.

    Example:
        >>> type(build('backbone::m0')).__name__
        'EfficientViT'
    """
    library, _, rest = name.rpartition('::')
    try:
        if name.endswith('.py'):
            return build_from_config(name, options)
        if library == 'backbone':
            return EfficientViT(rest)
        if library == 'timm':
            import timm

            return timm.create_model(rest, pretrained=False, **options)
        if library in ('', 'mmpretrain'):
            return build_from_mmpretrain(rest, options)
    except ConfigError:
        raise
    # Libraries refuse names and settings in ways of their own.
    except Exception as error:
        raise ConfigError(f'The model {name} cannot be built: {one_line(error)}') from error
    raise ConfigError(
        f'The model {name} is of no known library: give NAME of mmevit or mmpretrain, timm::NAME, '
        'backbone::ARCH or a config.'
    )


def build_from_mmpretrain(name, options):
    """Build a classifier by its name in mmpretrain, which knows ours too."""
    import mmpretrain

    if re.fullmatch('efficientvit-m[0-5]', name):
        name += '_8xb256_in1k'
    if name not in mmpretrain.list_models():
        raise ConfigError(
            f'mmpretrain knows no model {name}, nor does mmevit: mmpretrain.list_models() lists '
            'them, and those of timm are timm::NAME.'
        )
    return mmpretrain.get_model(name, pretrained=False, **options)


def build_from_config(path, options):
    """Build the network of a config file of any OpenMMLab library."""
    cfg = read_config(path, {f'model.{key}': value for key, value in options.items()})
    if 'model' not in cfg:
        raise ConfigError(f'{path} is no whole config: it has no model.')
    return build_model(cfg)


def calibrate(network, size):
    """Give batch norm random scales, and the statistics of random images.

    Without, the values of a deep network of random weights grow or vanish from layer to layer, and
    processors are slow on the tiniest numbers.

    Args:
        network (nn.Module): The network, which is changed.
        size (tuple[int, int]): Height and width of the images.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
        norm.momentum = 1.0
        norm.train()
    network(torch.randn(2, 3, *size))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
        if norm.track_running_stats:
            # Attention and pooling leave hardly any variance of noise, and to blow it up to 1 would
            # blow up rounding too.
            norm.running_var.clamp_(min=0.1)


def count_macs(network, images):
    """Count the multiply-accumulates of convolutions, linear layers and matrix products.

    Args:
        network (nn.Module): The network.
        images (Tensor): One image, (1, 3, H, W).

    Returns:
        int: The multiply-accumulates.
    """
    # As matrix products, since attention in one kernel is not counted on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops() // 2


def fold_all(network, images):
    """Fold all that can be folded, of whatever library: a copy for inference.

    First what the network itself knows to fold, by our :func:`mmevit.deploy.fold` or timm's
    function, then every batch norm that follows a convolution or linear layer.

    Args:
        network (Flat): The network.
        images (Tensor): One image, (1, 3, H, W), to find out what follows what.

    Returns:
        Flat: The folded copy.
    """
    folded = copy.deepcopy(network)
    if type(folded.model).__module__.startswith('timm.'):
        from timm.utils.model import reparameterize_model

        reparameterize_model(folded, inplace=True)
    else:
        fold(folded)
    fold_batch_norms(folded, images)
    return folded


def fold_batch_norms(network, images):
    """Fold each batch norm into the convolution or linear layer whose output it takes.

    Args:
        network (nn.Module): The network, which is changed.
        images (Tensor): One image, (1, 3, H, W).

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> fold_batch_norms(network, torch.rand(1, 3, 8, 8))
        >>> [type(layer).__name__ for layer in network]
        ['Conv2d', 'Identity', 'ReLU']
    """
    parents = {
        child: (parent, name)
        for parent in network.modules()
        for name, child in parent.named_children()
    }
    for layer, norm in find_pairs(network, images):
        fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        layer.weight, layer.bias = fuse(layer.weight, layer.bias, *statistics)
        parent, name = parents[norm]
        # timm's have the activation in them.
        rest = nn.Sequential(norm.drop, norm.act) if hasattr(norm, 'act') else nn.Identity()
        setattr(parent, name, rest.eval())


def find_pairs(network, images):
    """Find the batch norms that take the output of a convolution or linear layer.

    Args:
        network (nn.Module): The network.
        images (Tensor): One image, (1, 3, H, W).

    Returns:
        list[tuple[nn.Module, nn.Module]]: Layers and batch norms, each of which is in one pair.
    """
    makers, pairs = {}, []

    def note_output(layer, args, output):
        # Keeping the output keeps its id from being given to another.
        makers[id(output)] = (layer, output)

    def note_input(norm, args):
        if id(args[0]) in makers:
            pairs.append((makers[id(args[0])][0], norm))

    handles = []
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            handles.append(module.register_forward_hook(note_output))
        elif isinstance(module, _BatchNorm) and module.affine and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(note_input))
    network(images)
    for handle in handles:
        handle.remove()
    # Not what is shared.
    modules = [module for pair in pairs for module in pair]
    return [pair for pair in pairs if all(modules.count(module) == 1 for module in pair)]


def run_for_memory(run, device):
    """Run once, and find how much memory that takes at its peak.

    On a GPU it is what PyTorch allocates. On a CPU it is by how much the process grows, as the
    kernel counts it, since only that covers all runtimes and what their libraries allocate; before,
    memory that was freed is given back, so that all that the run touches is new. The network and
    what was kept from loading it are not in it. This works on Linux.

    Args:
        run (callable): Computes a batch. A runtime that keeps its memory does it for the first
            time.
        device (str): ``'cpu'`` or ``'cuda'``.

    Returns:
        tuple[object, float | None]: What it gives, and the memory in MiB.
    """
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outputs = run()
        torch.cuda.synchronize()
        return outputs, (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # the peak starts again from what it is now
        before = resident_memory('VmHWM')
    except (AttributeError, OSError):
        return run(), None
    outputs = run()
    return outputs, (resident_memory('VmHWM') - before) / 2**10


def resident_memory(name):
    """Read one of the figures that Linux keeps of this process, in KiB."""
    return int(re.search(rf'{name}:\s*(\d+)', Path('/proc/self/status').read_text())[1])


def make_eager(network, folded, images, setting, folder):
    """Run a network as it is trained.

    Args:
        network (Flat): The network.
        folded (Flat): The same, folded.
        images (Tensor): A batch, (N, 3, H, W).
        setting (Setting): How it is run.
        folder (str): Where to write files.

    Returns:
        callable: Computes the batch and gives a tuple of tensors. All functions in ``FORMS`` take
        and return the same.
    """
    return warm(partial(*convert(network, images, setting, setting.channels_last)))


def make_folded(network, folded, images, setting, folder):
    """Run the folded network; see :func:`make_eager`."""
    return warm(partial(*convert(folded, images, setting, setting.channels_last)))


def make_compiled(network, folded, images, setting, folder):
    """Compile the folded network with constant weights, channels last; see :func:`make_eager`."""
    folded, images = convert(folded, images, setting, channels_last=True)
    return warm(partial(torch.compile(folded, options=dict(freezing=True)), images))


def make_traced(network, folded, images, setting, folder):
    """Trace the folded network, as the released speed test does; see :func:`make_eager`."""
    folded, images = convert(folded, images, setting, channels_last=False)
    return warm(partial(torch.jit.trace(folded, images, check_trace=False), images))


def make_exported(target, network, folded, images, setting, folder):
    """Export the folded network, and run the file; see :func:`make_eager`."""
    if images.is_cuda and target != 'aoti':
        raise ConfigError(f'{target} runs on the CPU here.')
    path = Path(tempfile.mkdtemp(dir=folder), 'network' + TARGETS[target])
    export(folded, images, path, target, dynamic=(), dtype=setting.dtype)
    return partial(load_exported(path, setting.threads), images)


def convert(network, images, setting, channels_last):
    """Copy a network and images into the type and layout that they are run in."""
    layout = torch.channels_last if channels_last else torch.preserve_format
    dtype = getattr(torch, setting.dtype)
    network = copy.deepcopy(network).to(dtype=dtype)
    if channels_last:
        network = network.to(memory_format=layout)
    return network, images.to(dtype=dtype, memory_format=layout)


def warm(run):
    """Run until nothing more is compiled, nor kept for later runs."""
    for _ in range(3):
        run()
    return run


# For each name a function with the arguments and result of make_eager().
FORMS = dict(
    eager=make_eager,
    folded=make_folded,
    compiled=make_compiled,
    traced=make_traced,
    onnxruntime=partial(make_exported, 'onnx'),
    openvino=partial(make_exported, 'openvino'),
    aoti=partial(make_exported, 'aoti'),
)


def write_table(rows, setting, path):
    """Write rows to a file.

    Args:
        rows (list[dict]): As :func:`benchmark` gives them.
        setting (Setting): How they were measured.
        path (str | Path): A file that ends in .md, .csv or .json. JSON holds every round and the
            setting too.

    Raises:
        ConfigError: If it ends otherwise, or cannot be written.
    """
    check_ending(path, WRITERS)
    try:
        with written_whole(path) as unfinished, unfinished.open('w', newline='') as file:
            WRITERS[Path(path).suffix](rows, setting, file)
    except OSError as error:
        raise ConfigError(f'{path} cannot be written ({error}).') from error


def check_ending(path, endings):
    """Check the ending of a file to write.

    Args:
        path (str | Path): The file.
        endings (Collection[str]): What it may end in.

    Raises:
        ConfigError: If it ends otherwise.
    """
    if Path(path).suffix not in endings:
        raise ConfigError(f'{path} must end in {" or ".join(endings)}.')


def write_markdown(rows, setting, file):
    """Write rows as a Markdown table under a line that says how they were measured."""
    print(f'{describe(setting)}\n\n{format_table(rows)}', file=file)


def write_csv(rows, setting, file):
    """Write the numbers of the table, unrounded."""
    names = ['model', 'form', *COLUMNS, 'ratio_low', 'ratio_high', 'problem']
    writer = csv.DictWriter(file, dict.fromkeys(names), extrasaction='ignore')
    writer.writeheader()
    writer.writerows(rows)


def write_json(rows, setting, file):
    """Write all that was measured."""
    content = dict(setting=dataclasses.asdict(setting), machine=describe(setting), rows=rows)
    json.dump(content, file, indent=1)


WRITERS = {'.md': write_markdown, '.csv': write_csv, '.json': write_json}

# The numbers of the table: their headings and how they are printed.
COLUMNS = dict(
    speed=('images/s', '{:.1f}'),
    ratio=('ratio (quartiles)', '{:.2f}'),
    latency=('median ms', '{:.1f}'),
    latency95=('95 % ms', '{:.1f}'),
    peak=('of matmul peak', '{:.0%}'),
    memory=('memory MiB', '{:.0f}'),
    params=('params M', '{:.2f}'),
    macs=('MACs M', '{:.1f}'),
    difference=('difference', '{:.0e}'),
    top1=('published top-1', '{:.1f}'),
    published_params=('published params M', '{:.1f}'),
    published_macs=('published MACs M', '{:.0f}'),
    cpu_speed=('paper images/s', '{:.1f}'),
)


def format_table(rows):
    """Format rows as a Markdown table.

    Args:
        rows (list[dict]): As :func:`benchmark` gives them.

    Returns:
        str: The table, with the columns that have any number.

    Example:
        >>> print(format_table([dict(model='a', form='eager', speed=12.34, ratio=1,
        ...                          ratio_low=0.9, ratio_high=1.1),
        ...                     dict(model='a', form='aoti', problem='No compiler.')]))
        | model | form | images/s | ratio (quartiles) |
        |---|---|---:|---:|
        | a | eager | 12.3 | 1.00 (0.90 to 1.10) |
        | a | aoti | No compiler. |  |
    """
    names = [name for name in COLUMNS if any(is_known(row, name) for row in rows)] or ['speed']
    headings = ['model', 'form', *(COLUMNS[name][0] for name in names)]
    lines = [headings, *(format_row(row, names) for row in rows)]
    table = ['| ' + ' | '.join(cells) + ' |' for cells in lines]
    table.insert(1, '|---|---' + '|---:' * len(names) + '|')
    return '\n'.join(table)


def is_known(row, name):
    """Tell whether a row has a number, but not those of networks that were not run."""
    return row.get(name) is not None and 'problem' not in row


def format_row(row, names):
    """Format one row as cells."""
    if 'problem' in row:
        problem = row['problem'].replace('|', '/')
        return [row['model'], row['form'], *[problem, *[''] * len(names)][: len(names)]]
    cells = [COLUMNS[name][1].format(row[name]) if is_known(row, name) else '' for name in names]
    if 'ratio' in names:
        cells[names.index('ratio')] += ' ({ratio_low:.2f} to {ratio_high:.2f})'.format(**row)
    return [row['model'], row['form'], *cells]


def describe(setting):
    """Say in one line what was measured on and how.

    Args:
        setting (Setting): How.

    Returns:
        str: The line.
    """
    size = ' x '.join(map(str, setting.size)) if setting.size else 'their published size'
    return (
        f'{processor(setting.device)}, PyTorch {torch.__version__}: batch {setting.batch_size}, '
        f'{setting.threads} thread{"s" * (setting.threads > 1)}, images of {size}, '
        f'{setting.dtype}, {setting.rounds} round{"s" * (setting.rounds > 1)}.'
    )


def processor(device):
    """Name the processor."""
    if device == 'cuda':
        return torch.cuda.get_device_name()
    try:
        name = re.search('model name\\s*: (.*)', Path('/proc/cpuinfo').read_text())[1]
    except (OSError, TypeError):
        name = platform.processor() or platform.machine()
    return f'{name} ({torch.backends.cpu.get_cpu_capability()})'


def write_plot(rows, setting, path):
    """Write a picture of speed against published accuracy, like Figure 1 of the paper.

    Args:
        rows (list[dict]): As :func:`benchmark` gives them. Of each network the fastest form is
            shown, if its accuracy is known.
        setting (Setting): How they were measured.
        path (str | Path): A .png, .svg or .pdf file.

    Raises:
        ConfigError: If no accuracy is known, it ends otherwise, or cannot be written.
    """
    check_ending(path, PICTURES)
    rows = [row for row in best_forms(rows) if row.get('top1') is not None]
    if not rows:
        raise ConfigError('No published accuracy is known of what was run: nothing can be drawn.')
    figure = plot(rows, setting)
    try:
        with written_whole(path) as unfinished:
            figure.savefig(unfinished, dpi=150)
    except OSError as error:
        raise ConfigError(f'{path} cannot be written ({error}).') from error


PICTURES = ('.png', '.svg', '.pdf')


def plot(rows, setting):
    """Draw speed against accuracy.

    Args:
        rows (list[dict]): One for each network, all with ``top1``.
        setting (Setting): How they were measured.

    Returns:
        matplotlib.figure.Figure: A line through ours, and a named point for each other.
    """
    # Not at the top: the smallest build of mmengine comes without matplotlib.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, ScalarFormatter

    figure = Figure(figsize=(9, 6), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale('log')
    is_ours = [re.match('EfficientViT-M', row['model'], re.IGNORECASE) for row in rows]
    ours = sorted(itertools.compress(rows, is_ours), key=lambda row: row['top1'])
    others = [row for row in rows if row not in ours]
    axes.plot(*points(others), 'o', color='tab:gray', markersize=6)
    axes.plot(*points(ours), 'o-', color='tab:red', markersize=7, label='EfficientViT', zorder=3)
    axes.set_xlabel('images/s, measured')
    axes.set_ylabel('ImageNet-1k top-1 (%), published')
    axes.set_title(describe(setting), fontsize=8, parse_math=False)
    axes.grid(alpha=0.25, which='both')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter('')
    axes.margins(0.12, 0.08)
    place_names(figure, axes, rows, [('tab:red' if own else '0.25') for own in is_ours])
    return figure


def points(rows):
    """List the coordinates of some networks."""
    return [row['speed'] for row in rows], [row['top1'] for row in rows]


def place_names(figure, axes, rows, colors):
    """Write a name beside each point, where there is nothing yet.

    Args:
        figure (matplotlib.figure.Figure): The picture.
        axes (matplotlib.axes.Axes): Its axes, with all points.
        rows (list[dict]): What the points are.
        colors (list[str]): Colour of each name.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    pixels = axes.transData.transform(np.transpose(points(rows)))
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in pixels]
    for line in axes.lines[1:]:  # the line through ours is kept free as well
        ends = axes.transData.transform(line.get_xydata())
        steps = np.linspace(0, 1, 30)[:, None]
        for start, end in itertools.pairwise(ends):
            taken += [Bbox.from_bounds(x, y, 1, 1) for x, y in start + (end - start) * steps]
    for row, color in zip(rows, colors, strict=True):
        place_name(axes, row, color, taken)


def place_name(axes, row, color, taken):
    """Write one name, at the nearest free place, or beside the point if there is none."""
    for distance, (x, y) in itertools.product((7, 13, 20, 28), PLACES):
        name = axes.annotate(
            row['model'],
            (row['speed'], row['top1']),
            xytext=(distance * x, distance * y),
            textcoords='offset points',
            ha={1: 'left', 0: 'center', -1: 'right'}[np.sign(x)],
            va={1: 'bottom', 0: 'center', -1: 'top'}[np.sign(y)],
            fontsize=8,
            color=color,
            parse_math=False,
            arrowprops=dict(arrowstyle='-', color='0.7', lw=0.6) if distance > 7 else None,
        )
        box = name.get_window_extent()
        if box.count_overlaps(taken) == 0 and axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1:
            break
        name.set_visible(False)
    name.set_visible(True)
    taken.append(box)


# Directions from a point to its name, the best first.
PLACES = [(1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7)]


def find_model(name):
    """Find what is published about a network.

    Args:
        name (str): A name for :func:`build`, or the label of one in ``PAPER_MODELS``.

    Returns:
        Model: The network, labelled as it was named.

    Example:
        >>> find_model('timm::mobilenetv2_100').top1
        72.0
    """
    short = name.removeprefix('mmpretrain::').removesuffix('_8xb256_in1k')
    for model in PAPER_MODELS:
        if {name, short, name.removeprefix('mmpretrain::')} & names_of(model):
            return dataclasses.replace(model, label=name)
    return Model(label=name, name=name)


def names_of(model):
    """Collect what a network is called: its label, and the name if that alone makes it."""
    return {model.label} if model.options else {model.label, model.name}


def select_paper_models(names):
    """Select networks of the paper's Tables 2 and 3.

    Args:
        names (Sequence[str]): Their names or labels; none for all.

    Returns:
        list[Model]: The networks.

    Raises:
        ConfigError: If one is not there.

    Example:
        >>> [model.label for model in select_paper_models(['efficientvit-m1', 'Swin-T'])]
        ['Swin-T', 'EfficientViT-M1']
    """
    if unknown := sorted(set(names).difference(*map(names_of, PAPER_MODELS))):
        labels = ', '.join(model.label for model in PAPER_MODELS)
        raise ConfigError(f'{", ".join(unknown)} is none of {labels}.')
    return [model for model in PAPER_MODELS if not names or names_of(model) & set(names)]


T2T_7 = {
    'backbone': dict(
        embed_dims=256,
        num_layers=7,
        layer_cfgs=dict(num_heads=4, feedforward_channels=512),
    ),
    'head': dict(in_channels=256),
}
SHUFFLENET_2X = {'backbone': dict(widen_factor=2.0), 'head': dict(in_channels=2048)}

# The networks of Tables 2 and 3 that can be had here, with the accuracy, the parameters and the
# multiply-accumulates that their own papers give. Speeds of the paper are given where they are
# certain. MobileViT takes images of 256 pixels, there as here. Of T2T-ViT-7 neither library has the
# performer that makes its tokens: full attention does it here, which takes more operations.
PAPER_MODELS = [
    Model('MobileNetV3-Small', 'timm::mobilenetv3_small_100', {}, 224, 67.4, 2.5, 57),
    Model('MobileViT-XXS', 'timm::mobilevit_xxs', {}, 256, 69.0, 1.3, 410),
    Model('ShuffleNetV2 1x', 'shufflenet-v2-1x_16xb64_in1k', {}, 224, 69.4, 2.3, 146),
    Model('MobileViTv2-0.5', 'timm::mobilevitv2_050', {}, 256, 70.2, 1.4, 466),
    Model('PVTv2-B0', 'timm::pvt_v2_b0', {}, 224, 70.5, 3.4, 600),
    Model('MobileOne-S0', 'timm::mobileone_s0', {}, 224, 71.4, 2.1, 275),
    Model('T2T-ViT-7, no performer', 't2t-vit-t-14_8xb64_in1k', T2T_7, 224, 71.7, 4.3, 1100),
    Model('MobileNetV2 1.0', 'timm::mobilenetv2_100', {}, 224, 72.0, 3.4, 300),
    Model('DeiT-T', 'timm::deit_tiny_patch16_224', {}, 224, 72.2, 5.7, 1300),
    Model('GhostNet', 'timm::ghostnet_100', {}, 224, 73.9, 5.2, 141),
    Model('MobileViT-XS', 'timm::mobilevit_xs', {}, 256, 74.8, 2.3, 986),
    Model('ShuffleNetV2 2x', 'shufflenet-v2-1x_16xb64_in1k', SHUFFLENET_2X, 224, 74.9, 7.4, 591),
    Model('MobileNetV3-Large', 'timm::mobilenetv3_large_100', {}, 224, 75.2, 5.4, 219, 39.1),
    Model('MobileViTv2-0.75', 'timm::mobilevitv2_075', {}, 256, 75.6, 2.9, 1030),
    Model('MobileOne-S1', 'timm::mobileone_s1', {}, 224, 75.9, 4.8, 825),
    Model('LeViT-128S', 'timm::levit_128s', {}, 224, 76.6, 7.8, 305),
    Model('EfficientNet-B0', 'timm::efficientnet_b0', {}, 224, 77.1, 5.3, 390),
    Model('PoolFormer-S12', 'timm::poolformer_s12', {}, 224, 77.2, 12, 1800),
    Model('EfficientFormer-L1', 'timm::efficientformer_l1', {}, 224, 79.2, 12.3, 1300),
    Model('Swin-T', 'timm::swin_tiny_patch4_window7_224', {}, 224, 81.3, 29, 4500),
    Model('EfficientViT-M0', 'efficientvit-m0', {}, 224, 63.2, 2.3, 79),
    Model('EfficientViT-M1', 'efficientvit-m1', {}, 224, 68.4, 3.0, 167),
    Model('EfficientViT-M2', 'efficientvit-m2', {}, 224, 70.8, 4.2, 201),
    Model('EfficientViT-M3', 'efficientvit-m3', {}, 224, 73.4, 6.9, 263),
    Model('EfficientViT-M4', 'efficientvit-m4', {}, 224, 74.3, 8.8, 299),
    Model('EfficientViT-M5', 'efficientvit-m5', {}, 224, 77.1, 12.4, 522, 56.8),
]
