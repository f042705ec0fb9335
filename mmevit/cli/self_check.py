"""Print the installed versions, and check that they work: ``python -m mmevit``.

The exit status is 0 if all checks pass, else 1.
"""

import argparse
import importlib
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from mmengine.fileio import load
from mmengine.hub import get_config

import mmevit
from mmevit.utils.configs import MIM_FOLDER
from mmevit.utils.errors import UserError, one_line
from mmevit.utils.pytorch import cpu_capability
from mmevit.utils.versions import LIBRARIES, check_libraries, installed_distribution
from mmevit.version import __version__

# Other libraries whose versions are printed, by the distributions that may provide them.
OTHERS = (
    ('torchvision',),
    ('numpy',),
    ('opencv-python-headless', 'opencv-python', 'opencv-contrib-python'),
    ('pycocotools',),
    ('timm',),
    ('onnx',),
    ('onnxruntime', 'onnxruntime-gpu'),
    ('openvino',),
    ('litert-torch',),
    ('ai-edge-litert',),
    ('executorch',),
    ('pnnx',),
    ('ncnn',),
    ('coremltools',),
)
# A config that inherits from each library.
CONFIGS = dict(
    mmdet='retinanet_evit_m4.py', mmpretrain='evit_m4_in1k.py', mmseg='semantic-fpn_evit_m4.py'
)
# Shapes of the maps of m0 for one image of 224 x 224 pixels.
M0_SHAPES = [(1, 64, 14, 14), (1, 128, 7, 7), (1, 192, 4, 4)]
REINSTALL = 'Fix the failed checks above first, and reinstall mmevit if there are none'
# A check returns its result as text, or raises.
Check = Callable[[], str]
# The name of each check, its function, and what to do if a library fails in it.
CHECKS: list[tuple[str, Check, str]] = []


def main(argv: Sequence[str] | None = None) -> None:
    """Print the versions and a line for each check, and exit."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    print(f'mmevit {__version__}, Python {platform.python_version()}, {platform.platform()}')
    known = [(library.module, library.distributions) for library in LIBRARIES]
    for module, names in [*known, *((names[0], names) for names in OTHERS)]:
        distribution, version = installed_distribution(names)
        if version is not None:
            provider = f' ({distribution})' if distribution != module else ''
            print(f'{module} {version}{provider}')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of libraries when they are imported
        results = [is_ok(*each) for each in CHECKS]
    sys.exit(not all(results))


def is_ok(name: str, run: Check, advice: str) -> bool:
    """Run a check, print its result or error, and return whether it passed."""
    try:
        print(f'ok      {name}: {run()}', flush=True)
    # A broken library may raise anything.
    except Exception as error:
        problem = one_line(error)
        # A UserError says what to do.
        if not isinstance(error, UserError):
            problem = f'{problem.rstrip(".")}. {advice}.'
        print(f'failed  {name}: {problem}', flush=True)
        return False
    return True


def check(name: str, advice: str) -> Callable[[Check], Check]:
    """Add a function to :data:`CHECKS`."""
    return lambda run: CHECKS.append((name, run, advice)) or run


def device_types() -> list[str]:
    """List the device types that networks can run on."""
    return ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']


def find_installed(*modules: str) -> list[str]:
    """List those of some modules that are installed."""
    return [module for module in modules if find_spec(module)]


@check('libraries', 'Install the missing libraries with pip')
def check_versions() -> str:
    """Check that the versions of the libraries are supported."""
    try:
        check_libraries()
    except ImportError as error:
        raise UserError(str(error)) from error
    return 'all versions are supported'


@check('PyTorch', 'Install a build of torch for this processor and the driver of its GPU')
def check_devices() -> str:
    """Check that PyTorch computes on each type of device, and list the devices."""
    for device in device_types():
        torch.ones(2, 2, device=device).mm(torch.ones(2, 2, device=device)).cpu()
    devices = [
        ', '.join(filter(None, ['CPU', cpu_capability(), f'{torch.get_num_threads()} threads']))
    ]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        devices.append(f'GPU {index}, {gpu.name}, {gpu.total_memory / 2**30:.1f} GiB')
    return '; '.join(devices)


@check(
    "mmcv's operators",
    'Compile them for this PyTorch with pip install --force-reinstall --no-deps --no-cache-dir '
    '--no-build-isolation onedl-mmcv, for a GPU with its CUDA toolkit and FORCE_CUDA=1',
)
def check_operators() -> str:
    """Check that mmcv's compiled operators run, if they are needed."""
    if find_spec('mmcv._ext') is None:
        if users := find_installed('mmdet', 'mmseg'):
            raise UserError(
                f'mmcv has no compiled operators, which {" and ".join(users)} may need. Replace '
                'mmcv-lite by onedl-mmcv (or mmcv).'
            )
        return 'none in mmcv-lite; detection needs them, classification does not'
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    for device in device_types():
        _, kept = nms(boxes.to(device), scores.to(device), 0.5)
        if kept.tolist() != [0, 2]:
            raise ValueError(f'nms on {device} keeps the boxes {kept.tolist()}, not [0, 2]')
    return f'nms runs on {" and ".join(device_types())}'


@check('registry', REINSTALL)
def check_registry() -> str:
    """Check that each library finds the backbone by its name."""
    scopes = ['mmengine', *find_installed('mmdet', 'mmpretrain', 'mmseg')]
    for scope in scopes:
        found = importlib.import_module(f'{scope}.registry').MODELS.get('EfficientViT')
        if found is not mmevit.EfficientViT:
            raise UserError(
                f'EfficientViT is {found} in {scope}. Do not import other modules that register '
                'this name.'
            )
    return f'EfficientViT is registered for {", ".join(scopes)}'


@check('forward', REINSTALL)
def check_forward() -> str:
    """Check that a network returns finite maps of the right shapes."""
    for device in device_types():
        with torch.no_grad():
            maps = (
                mmevit.EfficientViT('m0')
                .eval()
                .to(device)(torch.rand(1, 3, 224, 224, device=device))
            )
        shapes = [tuple(map_.shape) for map_ in maps]
        if shapes != M0_SHAPES or not all(map_.isfinite().all() for map_ in maps):
            raise ValueError(
                f'm0 on {device} returns maps of {shapes}, or values that are not finite'
            )
    return f'm0 returns finite maps at strides 16, 32 and 64 on {" and ".join(device_types())}'


@check('configs', f'{REINSTALL}, from a wheel if the file system does not support symbolic links')
def check_configs() -> str:
    """Check that the model index and its configs exist."""
    metafiles = [load(MIM_FOLDER / path) for path in load(MIM_FOLDER / 'model-index.yml')['Import']]
    configs = [model['Config'] for metafile in metafiles for model in metafile['Models']]
    for config in configs:
        if not (MIM_FOLDER / config).is_file():
            raise FileNotFoundError(f'{MIM_FOLDER / config} is missing')
    names = [f'mmevit::efficientvit/{CONFIGS[library]}' for library in find_installed(*CONFIGS)]
    for name in names:
        get_config(name)
    return ', '.join([f'{len(configs)} models in the index', *names])


@check('pycocotools', 'Reinstall it with pip install --force-reinstall')
def check_pycocotools() -> str:
    """Check pycocotools, which evaluates detectors, if it is needed."""
    if not find_installed('pycocotools', 'mmdet'):
        return 'not installed; only detection needs it'
    import numpy as np
    from pycocotools import mask

    area = int(mask.area(mask.encode(np.ones((2, 3), np.uint8, order='F'))))
    if area != 6:
        raise ValueError(f'a mask of 6 pixels has an area of {area}')
    return 'encodes masks'
