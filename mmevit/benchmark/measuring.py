"""Interleaved speed measurements of networks."""

import contextlib
import ctypes
import dataclasses
import itertools
import random
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmevit.deploy.networks import count_input_channels, is_dense_model
from mmevit.deploy.programs import pytorch_threads
from mmevit.utils.errors import ConfigError, one_line
from mmevit.utils.progress import show_progress
from mmevit.utils.pytorch import attention_as_products
from mmevit.utils.tables import Rows

from .forms import DTYPES, FORMS, Setting, Workload, split_form
from .models import FlatOutputs, Model, Predictions, build, calibrate, fold_all

T = TypeVar('T')


@dataclasses.dataclass
class Entry:
    """A network in one form, or a matrix product, measured in every round."""

    model: str
    form: str
    run: Callable[[], Any] | None = None  # computes a batch; None if the form is not supported
    items: int = 1  # images per batch
    macs: int = 0  # per image
    details: dict[str, Any] = dataclasses.field(default_factory=dict)  # further values by column
    rounds: list[list[float]] = dataclasses.field(default_factory=list)  # seconds of each call

    def rates(self) -> list[float]:
        """Return the images per second in each round."""
        return [self.items * len(seconds) / sum(seconds) for seconds in self.rounds]


def benchmark(
    models: Sequence[Model],
    forms: Sequence[str],
    setting: Setting | None = None,
    baseline: str | None = None,
) -> list[dict[str, Any]]:
    """Measure the speed of networks in several forms, interleaved.

    In each round everything is measured once, in random order, so that other load of the machine
    affects all alike. Ratios are taken within a round; their median and quartiles are reported. The
    peak of the processor, measured in the same rounds, is the fastest of several products of square
    matrices. Weights and images are random, batch norm has the statistics of random images.

    Args:
        models: The networks, see :func:`find_model`.
        forms: ``'eager'``, ``'folded'``, ``'compiled'``, ``'cudagraph'`` (folded, as one CUDA
            graph), ``'traced'``, ``'torchscript'`` (a trace fused by oneDNN), ``'aoti'``,
            ``'onnxruntime'``, ``'openvino'``, ``'litert'``, ``'executorch'``, ``'ncnn'`` or
            ``'training'`` (forward and backward), followed by a hyphen and the dtype if that is
            not float32, such as ``'aoti-bfloat16'``.
        setting: Batch size, image size, number of rounds and so on.
        baseline: ``'MODEL:FORM'`` that ratios refer to. Defaults to the first one that runs.

    Returns:
        A row per network and form: ``model`` and ``form``; ``speed``, the median over the rounds in
        images/s, and ``speeds`` by round; ``latency`` and ``latency95``, median and 95th percentile
        over all calls, in ms per batch; ``memory``, the peak of a batch without the weights, in
        MiB; ``params`` of the network before folding and ``macs`` of the form per image, in
        millions; ``peak``, the fraction of the speed of a matrix product of that dtype; ``ratio``,
        ``ratio_low`` and ``ratio_high``; ``difference``, the largest one from the outputs of the
        eager form in float32, relative to the largest output; the published ``top1``, ``box_ap``,
        ``published_params``, ``published_macs`` and ``cpu_speed``, which belong to the size. If a
        network does not support a form, the row has the reason, ``problem``, instead.

    Raises:
        ConfigError: If a network, form, size or the baseline is invalid.

    Example:
        >>> from mmevit.benchmark import find_model
        >>> setting = Setting(batch_size=1, size=(64, 64), rounds=1, seconds=0)
        >>> rows = benchmark([find_model('efficientvit-m0')], ['eager', 'folded'], setting)
        >>> [(row['form'], round(row['params'], 3)) for row in rows]
        [('eager', 2.349), ('folded', 2.349)]
    """
    setting = setting or Setting()
    check_setting(setting)
    check_forms(models, forms, baseline)
    with process_settings(setting), tempfile.TemporaryDirectory() as folder:
        entries = [
            entry
            for model in show_progress(models, 'Preparing')
            for entry in prepare_entries(model, forms, setting, folder)
        ]
        reference = find_baseline(entries, baseline)
        products = {
            dtype: list(matrix_products(dtype, setting.device))
            for dtype in {split_form(form)[1] for form in forms} - {'int8'}
        }
        if setting.keep_memory:
            keep_freed_memory()
        measure([*entries, *itertools.chain(*products.values())], setting)
    peaks = {dtype: best_of_each_round(products[dtype]) for dtype in products}
    return [summarise(entry, reference, peaks.get(split_form(entry.form)[1])) for entry in entries]


def check_setting(setting: Setting) -> None:
    """Raise ConfigError if a setting is invalid on this machine."""
    if min(setting.batch_size, setting.threads, setting.rounds, *(setting.size or [1])) < 1:
        raise ConfigError('Batch size, threads, rounds and image size must be 1 or more.')
    if setting.device == 'cuda' and not torch.cuda.is_available():
        raise ConfigError('PyTorch finds no GPU. Use --device cpu.')


def check_forms(models: Sequence[Model], forms: Sequence[str], baseline: str | None) -> None:
    """Raise ConfigError if a form or the baseline of :func:`benchmark` is unknown."""
    known = {*itertools.product(FORMS, DTYPES)}
    unknown = [form for form in forms if split_form(form) not in known]
    if unknown or not forms:
        raise ConfigError(
            f'Unknown form {", ".join(unknown)}. Choose from {", ".join(FORMS)}, and append '
            '-bfloat16, -float16 or -int8 for another dtype.'
        )
    names = [f'{model.label}:{form}' for model in models for form in forms]
    if baseline not in (None, *names):
        raise ConfigError(f'Unknown baseline {baseline}. Choose from {", ".join(names)}.')


@contextlib.contextmanager
def process_settings(setting: Setting) -> Iterator[None]:
    """Set PyTorch's threads and the limits of torch.compile in the block, without gradients."""
    # torch.compile silently runs further networks eagerly beyond these limits, for which PyTorch
    # has no other setting.
    config: Any = torch._dynamo.config
    names = ['recompile_limit', 'accumulated_recompile_limit']
    if not hasattr(config, names[0]):
        names = ['cache_size_limit']  # its name before PyTorch 2.6
    with (
        pytorch_threads(setting.threads),
        config.patch(dict.fromkeys(names, 1000)),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')
        yield


def prepare_entries(
    model: Model, forms: Sequence[str], setting: Setting, folder: str
) -> Iterator[Entry]:
    """Bring a network into each form, and compare the outputs with those of the eager network."""
    network, images = prepare_network(model, setting)
    folded = fold_all(network, images[:1])
    workload = Workload(network, folded, images, setting, folder)
    eager_macs, folded_macs = (count_macs(each, images[:1]) for each in (network, folded))
    details: dict[str, Any] = dict(
        params=sum(weight.numel() for weight in network.parameters()) / 1e6
    )
    if images.shape[2:] == (model.size, model.size):
        details |= dict(
            top1=model.top1,
            box_ap=model.box_ap,
            published_params=model.params,
            published_macs=model.macs,
            cpu_speed=model.cpu_speed,
        )
    for form in forms:
        name, dtype = split_form(form)
        macs = eager_macs if name in ('eager', 'training') else folded_macs
        row = details | dict(macs=macs / 1e6)
        entry = Entry(model.label, form, items=setting.batch_size, macs=macs, details=row)
        try:
            entry.run = FORMS[name](workload, dtype)
            outputs, row['memory'] = run_for_memory(entry.run, setting.device)
            if outputs is not None:
                row['difference'] = workload.measure_difference(outputs)
        # Each runtime raises errors of its own for unsupported networks.
        except Exception as error:
            entry.run, row['problem'] = None, one_line(error)
        yield entry


def prepare_network(model: Model, setting: Setting) -> tuple[FlatOutputs, Tensor]:
    """Build a calibrated network with random weights, and random images (N, C, H, W)."""
    size = setting.size or (model.size, model.size)
    torch.manual_seed(setting.seed)
    built = build(model.name, model.options)
    network = (Predictions if is_dense_model(built) else FlatOutputs)(built).eval()
    images = torch.randn(setting.batch_size, count_input_channels(network), *size)
    try:
        with torch.no_grad():
            calibrate(network, size)
            network, images = network.to(setting.device), images.to(setting.device)
            network(images)
    # Each network raises errors of its own for unsupported sizes.
    except Exception as error:
        message = f'{model.label} cannot be run on images of {size[0]} x {size[1]}'
        raise ConfigError(f'{message}: {one_line(error)}') from error
    return network, images


def find_baseline(entries: Sequence[Entry], name: str | None) -> Entry:
    """Return the entry ``'MODEL:FORM'``, or the first one that runs."""
    if name is None:
        return next((entry for entry in entries if entry.run), entries[0])
    found = next(entry for entry in entries if f'{entry.model}:{entry.form}' == name)
    if found.run is None:
        raise ConfigError(
            f'The baseline {name} cannot be run: {found.details["problem"]}. Choose another one.'
        )
    return found


@torch.no_grad()
def count_macs(network: nn.Module, images: Tensor) -> int:
    """Count the multiply-accumulates of convolutions, linear layers and matrix products."""
    with attention_as_products(), FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops() // 2


def run_for_memory(run: Callable[[], T], device: str) -> tuple[T, float | None]:
    """Run once, and return the outputs and the peak memory in MiB.

    On a GPU, this is the memory that PyTorch allocates. On a CPU, it is the growth of the process
    on Linux, which includes the memory of all runtimes and libraries. Freed memory is given back
    before, so that the run allocates all that it uses. Weights and memory kept since loading are
    not included. A runtime that keeps its memory must not have been run before.
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
        Path('/proc/self/clear_refs').write_text('5')  # resets the peak
        before = peak_memory()
    except (AttributeError, OSError):
        return run(), None
    outputs = run()
    return outputs, (peak_memory() - before) / 2**10


def peak_memory() -> int:
    """Return the peak resident memory of this process in KiB, on Linux."""
    return int(re.findall(r'VmHWM:\s*(\d+)', Path('/proc/self/status').read_text())[0])


def keep_freed_memory() -> None:
    """Make the allocator of a Linux process keep freed memory, for the rest of the process.

    By default, glibc may return freed memory to the system after each call, depending on the layout
    of the heap. PyTorch is then up to 25 % slower.
    """
    trim_threshold, mmap_max = -1, -4  # constants of malloc.h
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


def measure(entries: Sequence[Entry], setting: Setting) -> None:
    """Measure the entries that run, in random order in each round; fills their ``rounds``."""
    generator = random.Random(setting.seed)
    time_call = {'cpu': time_on_cpu, 'cuda': time_on_gpu}[setting.device]
    runnable = [(entry, entry.run) for entry in entries if entry.run]
    schedule = [
        turn for _ in range(setting.rounds) for turn in generator.sample(runnable, k=len(runnable))
    ]
    for entry, run in show_progress(schedule, 'Timing'):
        run()  # brings the weights back into the caches, and is not timed
        end = time.perf_counter() + setting.seconds
        seconds = [time_call(run)]
        while time.perf_counter() < end:
            seconds.append(time_call(run))
        entry.rounds.append(seconds)


def time_on_cpu(run: Callable[[], Any]) -> float:
    """Time a call, in seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def time_on_gpu(run: Callable[[], Any]) -> float:
    """Time a call on an idle GPU, in seconds."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


# Heights of square matrices, the fastest product of which is the peak of the processor.
PRODUCT_SIZES = dict(cpu=(512, 1024, 2048), cuda=(4096, 8192))


def matrix_products(dtype: str, device: str) -> Iterator[Entry]:
    """Yield the products of square matrices that are measured."""
    for size in PRODUCT_SIZES[device]:
        matrix = torch.randn(size, size, device=device).to(getattr(torch, dtype))
        yield Entry('matrix product', str(size), partial(torch.mm, matrix, matrix), macs=size**3)


def best_of_each_round(products: Sequence[Entry]) -> list[float]:
    """Return the multiply-accumulates/s of the fastest matrix product in each round."""
    speeds = [[rate * product.macs for rate in product.rates()] for product in products]
    return [max(round_) for round_ in zip(*speeds, strict=True)]


def summarise(entry: Entry, reference: Entry, peaks: Sequence[float] | None) -> dict[str, Any]:
    """Make the row of an entry, see :func:`benchmark`, with the peak MACs/s of each round.

    Example:
        >>> fast = Entry('a', 'eager', items=2, macs=10, rounds=[[0.1, 0.1], [0.2]])
        >>> slow = Entry('b', 'eager', items=2, macs=10, rounds=[[0.2], [0.4]])
        >>> row = summarise(fast, slow, peaks=[400, 200])
        >>> row['speed'], row['latency'], row['ratio'], row['peak']
        (15.0, 100.0, 2.0, 0.5)
    """
    row: dict[str, Any] = dict(model=entry.model, form=entry.form, **entry.details)
    if not entry.rounds:
        return row
    rates = np.array(entry.rates())
    milliseconds = 1000 * np.concatenate(entry.rounds)
    low, ratio, high = np.percentile(rates / np.array(reference.rates()), [25, 50, 75])
    numbers = dict(
        speed=np.median(rates),
        latency=np.median(milliseconds),
        latency95=np.percentile(milliseconds, 95),
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
    )
    # The operations of the backward pass are not counted.
    if peaks and not entry.form.startswith('training'):
        numbers['peak'] = np.median(rates * entry.macs / np.array(peaks))
    row.update({name: float(number) for name, number in numbers.items()}, speeds=rates.tolist())
    return row


def best_forms(rows: Rows) -> list[Mapping[str, Any]]:
    """Keep the fastest form of each network in the rows of :func:`benchmark`.

    Example:
        >>> best_forms([dict(model='a', form='eager', speed=1.0),
        ...             dict(model='a', form='traced', speed=2.0)])
        [{'model': 'a', 'form': 'traced', 'speed': 2.0}]
    """
    best: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row.get('speed', 0) > best.get(row['model'], {}).get('speed', -1):
            best[row['model']] = row
    return list(best.values())
