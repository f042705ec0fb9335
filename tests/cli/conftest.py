import logging
from importlib import import_module

import pytest
import torch
from making_models import save_model
from mmengine.config import Config
from running_tools import ROOT

TINY_ARCH = dict(
    _delete_=True,
    embed_dims=(16, 32, 48),
    depths=(1, 1, 1),
    num_heads=(2, 2, 2),
    kernel_sizes=(5, 3),
)


@pytest.fixture
def refuse(own_loading, monkeypatch, capsys):
    """Run a command in this process, which must end with one line; returns this line."""
    # The logger of an earlier test writes to the stream of that test, which is closed.
    monkeypatch.setattr(logging, 'raiseExceptions', False)

    def run(command, *arguments):
        monkeypatch.setenv('LOCAL_RANK', '0')  # Commands set it.
        with pytest.raises(SystemExit) as caught:
            import_module(f'mmevit.cli.{command}').main([*map(str, arguments)])
        printed = capsys.readouterr().err
        assert 'Traceback' not in printed
        # argparse prints its errors and exits with 2.
        sentence = printed.splitlines()[-1] if caught.value.code == 2 else caught.value.code
        assert 'error: ' in sentence
        return sentence

    return run


@pytest.fixture(scope='session')
def classifier(digits, tmp_path_factory):
    """The config of a tiny classifier on few digits, and its checkpoint of random weights."""
    folder = tmp_path_factory.mktemp('classifier')
    options = dict(model__backbone__arch=TINY_ARCH, model__head__in_channels=48)
    for split, part in dict(train='train', val='val', test='val').items():
        options[f'{split}_dataloader__dataset__data_root'] = f'{digits}/classification/{part}'
        # Sorted by class: one of each.
        options[f'{split}_dataloader__dataset__indices'] = list(range(5, 360, 36))
        options[f'{split}_dataloader__num_workers'] = 0
        options[f'{split}_dataloader__persistent_workers'] = False
    torch.manual_seed(0)
    config, checkpoint = folder / 'digits.py', folder / 'model.pth'
    save_model('evit_m0_digits', checkpoint, **options).dump(config)
    content = torch.load(checkpoint)
    # So that the scores of most classes are not 0.
    content['state_dict']['head.head.linear.weight'] /= 30
    torch.save(content, checkpoint)
    return config, checkpoint


@pytest.fixture(scope='session')
def detector_config(digits, tmp_path_factory):
    """The config of a small detector on few digits."""
    options = {
        'model.backbone.arch': 'm0',
        'model.neck.in_channels': [64, 128, 192],
        'model.neck.out_channels': 32,
        'model.bbox_head.in_channels': 32,
        'model.bbox_head.feat_channels': 32,
        'model.bbox_head.norm_cfg.num_groups': 8,
        'model.test_cfg.score_thr': 0.01,
        'train_dataloader.batch_size': 4,
        'train_dataloader.dataset.pipeline.2.scale': (96, 96),
    }
    for split in ('train', 'val', 'test'):
        options[f'{split}_dataloader.dataset.data_root'] = str(digits)
        options[f'{split}_dataloader.num_workers'] = 0
        options[f'{split}_dataloader.persistent_workers'] = False
    for split in ('val', 'test'):
        options[f'{split}_evaluator.ann_file'] = f'{digits}/annotations/instances_val.json'
    cfg = Config.fromfile(ROOT / 'configs/retinanet_evit_m4_digits.py')
    cfg.merge_from_dict(options)
    path = tmp_path_factory.mktemp('detector') / 'detector.py'
    cfg.dump(path)
    return path
