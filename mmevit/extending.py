"""Extends OpenMMLab without importing more of it than is used.

Importing mmdet, mmpretrain and PyTorch's optimizers takes seconds. So a module of ours is imported
when a registry is asked for something in it, and another library is extended when it is imported.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

from mmengine.registry import (
    HOOKS,
    MODEL_WRAPPERS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    TRANSFORMS,
)

# What configs may name: the registry, the module in this package, what it has there, and the
# libraries of which it needs one.
REGISTERED = (
    (MODELS, 'models.efficientvit', ('EfficientViT', 'SandwichBlock'), ()),
    (MODELS, 'models.attention', ('CascadedGroupAttention',), ()),
    (MODELS, 'models.fpn', ('EfficientViTFPN',), ('mmdet', 'mmseg')),
    (MODELS, 'models.retina_head', ('SyncedRetinaHead',), ('mmdet',)),
    (MODELS, 'models.cls_head', ('EfficientViTClsHead',), ('mmpretrain',)),
    (MODELS, 'models.distillation', ('DistilledImageClassifier',), ('mmpretrain',)),
    (MODELS, 'models.swin_parts', ('PlainWindowAttention', 'SwinLayoutBlock'), ('mmpretrain',)),
    (MODELS, 'deploy.evaluation', ('ExportedClassifier', 'ExportedDetector'), ()),
    (MODEL_WRAPPERS, 'engine.cpu_processes', ('CPUDistributedDataParallel',), ()),
    (TRANSFORMS, 'datasets.loading', ('LoadReadableImage',), ()),
    (HOOKS, 'engine.checkpointing', ('SafeCheckpointHook',), ()),
    (HOOKS, 'engine.data_hooks', ('InvalidLabelsHook', 'UnreadableImagesHook'), ()),
    (HOOKS, 'engine.randomness', ('ResumableRandomnessHook',), ()),
    (HOOKS, 'engine.schedule', ('ConfigScheduleHook',), ()),
    (
        HOOKS,
        'engine.hooks',
        (
            'ChannelsLastHook',
            'CompileHook',
            'InvalidLossHook',
            'TrainingCurveHook',
            'TrainingWeightsHook',
            'WholeCheckpointHook',
        ),
        (),
    ),
    (HOOKS, 'engine.det_visualization', ('IntervalDetVisualizationHook',), ('mmdet',)),
    (HOOKS, 'engine.seg_visualization', ('IntervalSegVisualizationHook',), ('mmseg',)),
    (HOOKS, 'deploy.folding', ('FoldHook',), ()),
    (
        OPTIM_WRAPPERS,
        'engine.adaptive_clipping',
        (
            'AdaptiveClipAmpOptimWrapper',
            'AdaptiveClipBfloat16OptimWrapper',
            'AdaptiveClipOptimWrapper',
        ),
        (),
    ),
    (OPTIM_WRAPPERS, 'engine.mixed_precision', ('Bfloat16OptimWrapper',), ()),
    (
        OPTIM_WRAPPER_CONSTRUCTORS,
        'engine.layer_decay',
        ('LayerDecayOptimWrapperConstructor',),
        (),
    ),
)


def register_all():
    """Have OpenMMLab's registries find what is in :data:`REGISTERED`."""
    for registry in {row[0] for row in REGISTERED}:
        # mmengine has locations that a registry imports, but only for lookups that begin in it,
        # not for those that begin in mmdet's or mmpretrain's and end here.
        registry._module_dict = ImportingDict(registry._module_dict, modules_by_name(registry))


def modules_by_name(registry):
    """Tell where what a registry is to find is.

    Args:
        registry (Registry): One of mmengine's root registries.

    Returns:
        dict[str, str]: By name the module that has it, without what lacks its library.

    Example:
        >>> modules_by_name(TRANSFORMS)
        {'LoadReadableImage': 'mmevit.datasets.loading'}
    """
    return {
        name: f'mmevit.{module}'
        for owner, module, names, libraries in REGISTERED
        if owner is registry and (not libraries or any(map(find_spec, libraries)))
        for name in names
    }


class ImportingDict(dict):
    """What a registry holds; some of it is imported, and so registered, when it is sought.

    Args:
        held (dict[str, type]): What is registered already.
        modules (dict[str, str]): For what is not, the module that registers it.
    """

    def __init__(self, held, modules):
        super().__init__(held)
        self.modules = modules

    def __contains__(self, name):
        if name in self.modules:
            import_module(self.modules[name])
        return super().__contains__(name)

    def __missing__(self, name):
        if name in self:
            return self[name]
        raise KeyError(name)

    def __setitem__(self, name, value):
        # Ours is registered first, so that what overrides it stays.
        _ = name in self
        super().__setitem__(name, value)


# What waits for the import of a module, by the module's name.
_waiting = {}


def when_imported(module, extend):
    """Have a function called as soon as a module is imported, at once if it already is.

    Args:
        module (str): Full name of the module. It need not be installed.
        extend (callable): What is called, without arguments.

    Example:
        >>> when_imported('sys', lambda: print('sys is there'))
        sys is there
    """
    if module in sys.modules:
        extend()
    else:
        _waiting.setdefault(module, []).append(extend)


class ExtendingFinder(MetaPathFinder):
    """Lets the other finders find a module, and what waits for it follow its import."""

    def find_spec(self, name, path=None, target=None):
        """Find a module that something waits for, as Python's import asks it to."""
        if name not in _waiting:
            return None
        specs = (
            finder.find_spec(name, path, target)
            for finder in sys.meta_path
            if finder is not self and hasattr(finder, 'find_spec')
        )
        spec = next(filter(None, specs), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = followed_by_extensions(spec.loader.exec_module)
        return spec


def followed_by_extensions(exec_module):
    """Wrap the execution of a module.

    Args:
        exec_module (callable): Executes a module.

    Returns:
        callable: The same, and then what waits for that module.
    """

    def exec_and_extend(module):
        exec_module(module)
        for extend in _waiting.pop(module.__name__, ()):
            extend()

    return exec_and_extend


sys.meta_path.insert(0, ExtendingFinder())
