"""Measuring networks side by side, in turns."""

import ctypes
import dataclasses
import itertools
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
from rich.console import Console
from rich.progress import track
from torch.utils.flop_counter import FlopCounterMode

from mmevit.deploy.exporting import largest_difference
from mmevit.deploy.networks import count_input_channels
from mmevit.deploy.programs import pytorch_threads
from mmevit.utils.errors import ConfigError, one_line
from mmevit.utils.pytorch import attention_as_products

from .folding import fold_all
from .forms import FORMS, is_form, make, split_form
from .models import Flat, build, calibrate


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all networks of a benchmark have in common.

    Args:
        batch_size (int): Images at a time; 1 gives latencies. Defaults to 16.
        threads (int): CPU threads. Defaults to 1.
        size (tuple[int, int], optional): Height and width of the images. Defaults to the size that
            each network's accuracy is published for, 224 x 224 where that is not known.
        device (str): ``'cpu'`` or ``'cuda'``. Defaults to ``'cpu'``.
        channels_last (bool): Whether the eager and folded forms get images and weights with their
            channels last in memory. Compiled ones always do, traced ones never, but for our own
            weights, which are so once folded. Defaults to False.
        rounds (int): How often every network gets its turn. Defaults to 20.
        seconds (float): How long a turn is; one call is timed however long it takes.
            Defaults to 0.25.
        seed (int): Seed of weights, images and the order of the turns. Defaults to 0.
        keep_memory (bool): Whether the process keeps the memory that it frees, which is steadier.
            This changes the allocator for the rest of the process. Defaults to False.
    """

    batch_size: int = 16
    threads: int = 1
    size: tuple[int, int] | None = None
    device: str = 'cpu'
    channels_last: bool = False
    rounds: int = 20
    seconds: float = 0.25
    seed: int = 0
    keep_memory: bool = False


@dataclasses.dataclass
class Entry:
    """What gets its turn in every round: a network in one form, or a matrix product.

    Args:
        model (str): Label of the network.
        form (str): What it runs in, see :func:`mmevit.benchmark.forms.split_form`.
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
        forms (Sequence[str]): ``'eager'``, ``'folded'``, ``'compiled'``, ``'traced'``,
            ``'torchscript'`` (a trace that oneDNN fuses), ``'aoti'``, ``'onnxruntime'``,
            ``'openvino'``, ``'training'`` (a step forward and back), and after a hyphen the type
            if that is not float32, such as ``'aoti-bfloat16'``.
        setting (Setting): How they are run.
        baseline (str, optional): ``'MODEL:FORM'`` that the ratios are to. Defaults to the first
            form of the first network.

    Returns:
        list[dict]: For each network and form a row: ``model`` and ``form``; ``speed`` in images a
        second, the median over the rounds, and ``speeds`` of each round; ``latency`` and
        ``latency95``, median and 95th percentile over all calls, in ms a batch; ``memory`` that a
        batch takes beyond the network's own, at its peak, in MiB; ``params`` of the network as it
        is trained and ``macs`` of the form, for an image, in millions; ``peak``, the share of the
        speed of a matrix product in that type; ``ratio``, ``ratio_low`` and ``ratio_high``;
        ``difference``, the largest one from the outputs of the eager form in float32, relative to
        the largest output; the published ``top1``, ``published_params``, ``published_macs`` and
        ``cpu_speed``. A network that cannot be brought into a form has a sentence, ``problem``,
        instead.

    Raises:
        ConfigError: If a network, form, size or the baseline cannot be used.

    Example:
        >>> from mmevit.benchmark import find_model
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
        products = {
            dtype: list(matrix_products(dtype, setting.device))
            for dtype in {split_form(form)[1] for form in forms} - {'int8'}
        }
        runnable = [entry for entry in entries if entry.run]
        if setting.keep_memory:
            keep_freed_memory()
        take_turns([*runnable, *itertools.chain(*products.values())], setting)
    peaks = {dtype: best_of_each_round(products[dtype]) for dtype in products}
    return [summarise(entry, reference, peaks.get(split_form(entry.form)[1])) for entry in entries]


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
    unknown = [form for form in forms if not is_form(form)]
    if unknown or not forms:
        raise ConfigError(
            f'There is no form {", ".join(unknown)}: choose from {", ".join(FORMS)}, and for other '
            'types than float32 add -bfloat16, -float16 or -int8.'
        )
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
    # Beyond some compiled networks, PyTorch would run further ones eagerly without a word.
    dynamo = torch._dynamo.config
    names = ['recompile_limit', 'accumulated_recompile_limit']
    if not hasattr(dynamo, names[0]):
        names = ['cache_size_limit']  # its name before PyTorch 2.6
    limits = dict.fromkeys(names, 1000)
    with (
        pytorch_threads(setting.threads),
        dynamo.patch(limits),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')
        yield


def show_progress(items, description):
    """Show on the error stream how far a loop is."""
    return track(items, description, console=Console(stderr=True), transient=True)


def prepare(model, forms, setting, folder):
    """Bring a network into each of some forms, and check what each gives.

    Args:
        model (Model): The network.
        forms (Sequence[str]): Names of forms.
        setting (Setting): How it is run.
        folder (str): Where to write files.

    Yields:
        Entry: For each form, with all that is known before it is timed.
    """
    network, images = make_ready(model, setting)
    expected = network(images)
    folded = fold_all(network, images[:1])
    macs = dict(eager=count_macs(network, images[:1]), folded=count_macs(folded, images[:1]))
    is_published_size = images.shape[2:] == (model.size, model.size)
    published = publications(model) if is_published_size else {}
    for form in forms:
        entry = Entry(model.label, form, items=setting.batch_size, facts=dict(published))
        entry.macs = macs['eager' if form.startswith(('eager', 'training')) else 'folded']
        entry.facts['params'] = sum(weight.numel() for weight in network.parameters()) / 1e6
        entry.facts['macs'] = entry.macs / 1e6
        try:
            entry.run = make(form, network, folded, images, setting, folder)
            outputs, entry.facts['memory'] = run_for_memory(entry.run, setting.device)
            if outputs is not None:
                entry.facts['difference'] = largest_difference(outputs, expected)
        # What a runtime cannot take is part of the result.
        except Exception as error:
            entry.run, entry.facts['problem'] = None, one_line(error)
        yield entry


def make_ready(model, setting):
    """Build a network of random weights and run it once.

    Args:
        model (Model): The network.
        setting (Setting): How it is run.

    Returns:
        tuple[Flat, Tensor]: The network, in evaluation mode, and random images, (N, C, H, W).

    Raises:
        ConfigError: If the network cannot be built, or not run at this size.
    """
    size = setting.size or (model.size, model.size)
    torch.manual_seed(setting.seed)
    network = Flat(build(model.name, model.options)).eval()
    images = torch.randn(setting.batch_size, count_input_channels(network), *size)
    try:
        with torch.no_grad():
            calibrate(network, size)
            network, images = network.to(setting.device), images.to(setting.device)
            network(images)
    # Networks refuse sizes in ways of their own.
    except Exception as error:
        message = f'{model.label} cannot be run on images of {size[0]} x {size[1]}'
        raise ConfigError(f'{message}: {one_line(error)}') from error
    return network, images


def publications(model):
    """Collect what is published about a network, by the names of the columns."""
    return dict(
        top1=model.top1,
        published_params=model.params,
        published_macs=model.macs,
        cpu_speed=model.cpu_speed,
    )


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


def count_macs(network, images):
    """Count the multiply-accumulates of convolutions, linear layers and matrix products.

    Args:
        network (nn.Module): The network.
        images (Tensor): One image, (1, C, H, W).

    Returns:
        int: The multiply-accumulates.
    """
    with attention_as_products(), FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops() // 2


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


def keep_freed_memory():
    """Have the allocator of a Linux process keep what is freed, for the rest of the process.

    Otherwise whether it is given back after each call, and fetched again page by page, depends on
    what lies on top of the heap by chance, and makes PyTorch's forms up to a quarter slower.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    trim_threshold, mmap_max = -1, -4  # as malloc.h names them
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)


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


def matrix_products(dtype, device):
    """Make the matrix products of which the fastest is what the processor can do.

    Args:
        dtype (str): What is multiplied.
        device (str): ``'cpu'`` or ``'cuda'``.

    Yields:
        Entry: For each size of square matrices.
    """
    for size in {'cpu': (512, 1024, 2048), 'cuda': (4096, 8192)}[device]:
        matrix = torch.randn(size, size, device=device).to(getattr(torch, dtype))
        yield Entry('matrix product', str(size), partial(torch.mm, matrix, matrix), macs=size**3)


def best_of_each_round(products):
    """Find the multiply-accumulates a second of the fastest matrix product in each round."""
    speeds = [[rate * product.macs for rate in product.rates()] for product in products]
    return [max(round_) for round_ in zip(*speeds, strict=True)]


def summarise(entry, reference, peaks=None):
    """Make a row of what was measured.

    Args:
        entry (Entry): What was run.
        reference (Entry): What the ratio is to.
        peaks (list[float], optional): Multiply-accumulates a second at best, round by round.

    Returns:
        dict: The row, see :func:`benchmark`.

    Example:
        >>> fast = Entry('a', 'eager', items=2, macs=10, rounds=[[0.1, 0.1], [0.2]])
        >>> slow = Entry('b', 'eager', items=2, macs=10, rounds=[[0.2], [0.4]])
        >>> row = summarise(fast, slow, peaks=[400, 200])
        >>> row['speed'], row['latency'], row['ratio'], row['peak']
        (15.0, 100.0, 2.0, 0.5)
    """
    row = dict(model=entry.model, form=entry.form, **entry.facts)
    if entry.run is None and not entry.rounds:
        return row
    rates = np.array(entry.rates())
    milliseconds = 1000 * np.array([*itertools.chain(*entry.rounds)])
    low, ratio, high = np.percentile(rates / np.array(reference.rates()), [25, 50, 75])
    numbers = dict(
        speed=np.median(rates),
        latency=np.median(milliseconds),
        latency95=np.percentile(milliseconds, 95),
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
    )
    # A training step has more operations than those that were counted.
    if peaks and not entry.form.startswith('training'):
        numbers['peak'] = np.median(rates * entry.macs / np.array(peaks))
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
