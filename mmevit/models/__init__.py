"""The network: backbone, necks and heads, each imported when it is asked for."""

from importlib import import_module

from mmengine.registry import MODELS

from mmevit.extending import modules_by_name

_modules = {
    name: module
    for name, module in modules_by_name(MODELS).items()
    if module.startswith(f'{__name__}.')
}

__all__ = [*_modules]


def __dir__():
    return sorted({*globals(), *__all__})


def __getattr__(name):
    if name in _modules:
        return getattr(import_module(_modules[name]), name)
    if f'{__name__}.{name}' in _modules.values():
        return import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
