"""Tell what is installed, and check that it works: ``python -m mmevit``.

Ends with 0 if all works, with 1 if something does not.
"""

import importlib
import platform
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec

import mmevit
from mmevit.utils.configs import MIM_FOLDER
from mmevit.utils.errors import UserError, one_line
from mmevit.utils.versions import (
    LIBRARIES,
    Library,
    check_libraries,
    cpu_capability,
    installed_distribution,
)
from mmevit.version import __version__

# What else is worth telling, by the distributions that may provide it.
OTHERS = [
    Library(names[0], names, minimum='', below='', required=False)
    for names in (
        ('torchvision',),
        ('numpy',),
        ('opencv-python-headless', 'opencv-python', 'opencv-contrib-python'),
        ('pycocotools',),
        ('timm',),
        ('onnx',),
        ('onnxruntime', 'onnxruntime-gpu'),
        ('openvino',),
        ('coremltools',),
    )
]
# For each library a config that inherits from it.
CONFIGS = dict(
    mmdet='retinanet_evit_m4.py', mmpretrain='evit_m4_in1k.py', mmseg='semantic-fpn_evit_m4.py'
)
# Shapes of the maps of m0 for one image of 224 x 224 pixels.
M0_SHAPES = [(1, 64, 14, 14), (1, 128, 7, 7), (1, 192, 4, 4)]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the versions and a line for each check, and exit."""
    print(f'mmevit {__version__}, Python {platform.python_version()}, {platform.platform()}')
    for line in list_versions():
        print(line)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of what libraries import
        # A list, since one failure is no reason to leave the other checks out.
        results = [is_ok(*check) for check in CHECKS]
    sys.exit(not all(results))


def list_versions():
    """List the libraries that are installed.

    Returns:
        list[str]: For each its name, its version and, if the name is another one, what provides it.
    """
    lines = []
    for library in (*LIBRARIES, *OTHERS):
        distribution, version = installed_distribution(library)
        if version is not None:
            provider = f' ({distribution})' if distribution != library.module else ''
            lines.append(f'{library.module} {version}{provider}')
    return lines


def is_ok(name, check, advice):
    """Run a check, and print how it ends.

    Args:
        name (str): What it is of.
        check (Callable[[], str]): Gives what was found, and raises if that is wrong.
        advice (str): What to do if a library fails; a :class:`UserError` says that itself.

    Returns:
        bool: Whether all is well.
    """
    try:
        print(f'ok      {name}: {check()}', flush=True)
    # What a library raises that is broken is anything.
    except Exception as error:
        told = one_line(error)
        sentence = told if isinstance(error, UserError) else f'{told.rstrip(".")}: {advice}.'
        print(f'failed  {name}: {sentence}', flush=True)
        return False
    return True


def check_versions():
    """Check that the versions of the libraries fit."""
    try:
        check_libraries()
    except ImportError as error:
        raise UserError(str(error)) from error
    return 'each is of a version that fits'


def check_devices():
    """Check that PyTorch computes on each kind of device, and list the devices."""
    import torch

    for device in kinds_of_devices():
        torch.ones(2, 2, device=device).mm(torch.ones(2, 2, device=device)).cpu()
    devices = [
        ', '.join(filter(None, ['CPU', cpu_capability(), f'{torch.get_num_threads()} threads']))
    ]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        devices.append(f'GPU {index}, {gpu.name}, {gpu.total_memory / 2**30:.1f} GiB')
    return '; '.join(devices)


def check_operators():
    """Check that mmcv's compiled operators run; classification needs none."""
    if find_spec('mmcv._ext') is None:
        if users := find_installed('mmdet', 'mmseg'):
            raise UserError(
                f'mmcv has none here, and {" and ".join(users)} may need them: install onedl-mmcv '
                '(or mmcv) in the place of mmcv-lite.'
            )
        return 'mmcv has none here, as mmcv-lite; classification needs none, detection does'
    import torch
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    for device in kinds_of_devices():
        _, kept = nms(boxes.to(device), scores.to(device), 0.5)
        if kept.tolist() != [0, 2]:
            raise ValueError(f'nms on {device} keeps the boxes {kept.tolist()}, not [0, 2]')
    return f'nms runs on {" and ".join(kinds_of_devices())}'


def check_registry():
    """Check that each library finds the backbone by its name."""
    scopes = ['mmengine', *find_installed('mmdet', 'mmpretrain', 'mmseg')]
    for scope in scopes:
        found = importlib.import_module(f'{scope}.registry').MODELS.get('EfficientViT')
        if found is not mmevit.EfficientViT:
            raise UserError(
                f'{scope} takes {found} for EfficientViT: leave out what else registers that name.'
            )
    return f'EfficientViT is found from {", ".join(scopes)}'


def check_forward():
    """Check that a network of random weights gives finite maps of the right shapes."""
    import torch

    from mmevit.models import EfficientViT

    for device in kinds_of_devices():
        with torch.no_grad():
            maps = EfficientViT('m0').eval().to(device)(torch.rand(1, 3, 224, 224, device=device))
        shapes = [tuple(map_.shape) for map_ in maps]
        if shapes != M0_SHAPES or not all(map_.isfinite().all() for map_ in maps):
            raise ValueError(f'm0 on {device} gives maps of {shapes}, or some that are not finite')
    return f'm0 gives finite maps at strides 16, 32 and 64 on {" and ".join(kinds_of_devices())}'


def check_configs():
    """Check that the model index and the configs are found."""
    from mmengine.fileio import load
    from mmengine.hub import get_config

    metafiles = [load(MIM_FOLDER / path) for path in load(MIM_FOLDER / 'model-index.yml')['Import']]
    configs = [model['Config'] for metafile in metafiles for model in metafile['Models']]
    for config in configs:
        if not (MIM_FOLDER / config).is_file():
            raise FileNotFoundError(f'{MIM_FOLDER / config} is missing')
    names = [f'mmevit::efficientvit/{CONFIGS[library]}' for library in find_installed(*CONFIGS)]
    for name in names:
        get_config(name)
    return ', '.join([f'{len(configs)} models in the index', *names])


def check_pycocotools():
    """Check that pycocotools, by which detectors are evaluated, works where it is needed."""
    if not find_installed('pycocotools', 'mmdet'):
        return 'not installed; only detection needs it'
    import numpy as np
    from pycocotools import mask

    area = int(mask.area(mask.encode(np.ones((2, 3), np.uint8, order='F'))))
    if area != 6:
        raise ValueError(f'a mask of 6 pixels has an area of {area}')
    return 'masks are encoded'


def kinds_of_devices():
    """list[str]: What networks run on here."""
    import torch

    return ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']


def find_installed(*modules):
    """list[str]: Those of some modules that are installed."""
    return [module for module in modules if find_spec(module)]


ABOVE = 'mend what failed above first, and install mmevit again if nothing did'
# For each check its name, what it does, and what to do if a library fails in it.
CHECKS = (
    ('libraries', check_versions, 'install what is missing with pip'),
    (
        'PyTorch',
        check_devices,
        'install a build of torch that fits this processor and the driver of its GPU',
    ),
    (
        "mmcv's operators",
        check_operators,
        'compile them for this PyTorch with pip install --force-reinstall --no-deps --no-cache-dir '
        '--no-build-isolation onedl-mmcv, for a GPU with its CUDA toolkit and FORCE_CUDA=1',
    ),
    ('registry', check_registry, ABOVE),
    ('forward', check_forward, ABOVE),
    (
        'configs',
        check_configs,
        f'{ABOVE}, from a wheel where the file system knows no symbolic links',
    ),
    ('pycocotools', check_pycocotools, 'install it again with pip install --force-reinstall'),
)
