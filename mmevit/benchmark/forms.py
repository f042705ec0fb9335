"""The forms that a network can run in."""

import copy
import tempfile
from functools import partial
from pathlib import Path

import torch

from mmevit.deploy import TARGETS, export, load_exported
from mmevit.utils.errors import ConfigError


def split_form(form):
    """Split the name of a form, such as ``'aoti-bfloat16'``, into what runs it and the type.

    Args:
        form (str): A name of ``FORMS``, and after a hyphen the type if that is not float32.

    Returns:
        tuple[str, str]: The name and the type.

    Example:
        >>> split_form('aoti-bfloat16'), split_form('eager')
        (('aoti', 'bfloat16'), ('eager', 'float32'))
    """
    name, _, dtype = form.partition('-')
    return name, dtype or 'float32'


def is_form(form):
    """Tell whether there is a form of that name."""
    name, dtype = split_form(form)
    return name in FORMS and dtype in ('float32', 'bfloat16', 'float16', 'int8')


def make(form, network, folded, images, setting, folder):
    """Bring a network into a form.

    Args:
        form (str): See :func:`split_form`.
        network (Flat): The network.
        folded (Flat): The same, folded.
        images (Tensor): A batch, (N, C, H, W).
        setting (Setting): How it is run.
        folder (str): Where to write files.

    Returns:
        callable: Computes the batch and gives a tuple of tensors, or None in training.
    """
    name, dtype = split_form(form)
    return FORMS[name](network, folded, images, dtype, setting, folder)


def make_eager(network, folded, images, dtype, setting, folder):
    """Run a network as it is trained."""
    return warm(partial(*convert(network, images, dtype, setting.channels_last)))


def make_folded(network, folded, images, dtype, setting, folder):
    """Run the folded network."""
    return warm(partial(*convert(folded, images, dtype, setting.channels_last)))


def make_compiled(network, folded, images, dtype, setting, folder):
    """Compile the folded network with constant weights, channels last."""
    folded, images = convert(folded, images, dtype, channels_last=True)
    return warm(partial(torch.compile(folded, options=dict(freezing=True)), images))


def make_traced(network, folded, images, dtype, setting, folder):
    """Trace the folded network, as the released speed test does."""
    folded, images = convert(folded, images, dtype, channels_last=False)
    return warm(partial(torch.jit.trace(folded, images, check_trace=False), images))


def make_training(network, folded, images, dtype, setting, folder):
    """Take training steps without an optimizer: outputs, in mixed precision, and gradients."""
    network, images = convert(network, images, 'float32', setting.channels_last)
    network.train()
    precision = torch.autocast(images.device.type, getattr(torch, dtype), dtype != 'float32')

    def step():
        network.zero_grad()
        with torch.enable_grad():
            with precision:
                outputs = network(images)
            sum(output.float().square().mean() for output in outputs).backward()

    return warm(step)


def make_exported(target, network, folded, images, dtype, setting, folder):
    """Export the folded network, and run the file."""
    if images.is_cuda and target != 'aoti':
        raise ConfigError(f'{target} runs on the CPU here.')
    path = Path(tempfile.mkdtemp(dir=folder), 'network' + TARGETS[target])
    export(folded, images, path, target, dynamic=(), dtype=dtype, batches=[(images,)])
    return partial(load_exported(path, setting.threads, trust=True), images)


def convert(network, images, dtype, channels_last):
    """Copy a network and images into the type and layout that they are run in."""
    if dtype == 'int8':
        raise ConfigError('int8 is for onnxruntime and openvino.')
    layout = torch.channels_last if channels_last else torch.preserve_format
    kind = dict(dtype=getattr(torch, dtype), memory_format=layout)
    return copy.deepcopy(network).to(**kind), images.to(**kind)


def warm(run):
    """Run until nothing more is compiled, nor kept for later runs."""
    for _ in range(3):
        run()
    return run


# For each name a function that does what make() says.
FORMS = dict(
    eager=make_eager,
    folded=make_folded,
    compiled=make_compiled,
    traced=make_traced,
    onnxruntime=partial(make_exported, 'onnx'),
    openvino=partial(make_exported, 'openvino'),
    torchscript=partial(make_exported, 'torchscript'),
    aoti=partial(make_exported, 'aoti'),
    training=make_training,
)
