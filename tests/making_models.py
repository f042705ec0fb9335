"""Checkpoints of models of random weights that nevertheless find something."""

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope

# The arch of a backbone for tests that any backbone will do for.
TINY = dict(embed_dims=(16, 24, 32), depths=(1, 1, 1), num_heads=(2, 3, 2), kernel_sizes=(5, 3, 3))
# Three windows and a part of one in each direction of its first stage, and one in the last.
IMAGES = torch.rand(2, 3, 352, 400, generator=torch.Generator().manual_seed(0))
METADATA = dict(task='features', input=dict(mean=[1.5, 2.0, 3.0]))


def build_model(cfg):
    """Build the model of a config, its classes told apart by chance."""
    init_default_scope(cfg.default_scope)
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    cfg.model.backbone.init_cfg = None  # the released weights are not here
    model = MODELS.build(cfg.model)
    model.init_weights()
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith(('norm.weight', 'bn.weight', 'running_var')):
            torch.nn.init.uniform_(value, 0.5, 1.5)
        elif name.endswith('linear.weight'):
            torch.nn.init.normal_(value, std=30)  # features of random weights hardly differ
        elif name.endswith(('retina_cls.weight', 'fc_cls.weight')):
            torch.nn.init.normal_(value, std=0.1)
        elif name.endswith(('retina_cls.bias', 'conv_seg.bias')):
            torch.nn.init.zeros_(value)
        elif name.endswith('conv_seg.weight'):
            torch.nn.init.normal_(value)
    return model


def save_model(config, path, **options):
    """Save a checkpoint as training leaves it.

    Args:
        config (str): Name of a config.
        path (Path): The checkpoint.
        **options: Settings of the config by their names, with ``__`` for the dots.

    Returns:
        Config: The config, with the options.
    """
    cfg = Config.fromfile(f'configs/{config}.py')
    cfg.merge_from_dict({name.replace('__', '.'): value for name, value in options.items()})
    model = build_model(cfg)
    dataset = DATASETS.build({**cfg.test_dataloader.dataset, 'lazy_init': True})
    meta = dict(dataset_meta=dict(dataset.metainfo))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), path)
    return cfg


def read_optimizer(model, optim_wrapper):
    """The learning rate and the weight decay of every parameter of a model."""
    groups = build_optim_wrapper(model, optim_wrapper).optimizer.param_groups
    settings = {
        parameter: (group['lr'], group['weight_decay'])
        for group in groups
        for parameter in group['params']
    }
    return {name: settings[parameter] for name, parameter in model.named_parameters()}
