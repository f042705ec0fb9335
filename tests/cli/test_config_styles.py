"""Configs in Python style, JSON and YAML, and settings that are removed."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.registry import DATASETS, DefaultScope

from mmevit.apis.inference import infer
from mmevit.cli.errors import report_errors
from mmevit.deploy.networks import make_exportable
from mmevit.utils.configs import build_model, convert_sizes, read_config
from mmevit.utils.errors import ConfigError

PYTHON_CONFIG = Path(__file__).parent / 'python_config'


@pytest.fixture
def python_config(tmp_path, digits):
    """A config of RetinaNet for the digits, with `read_base` and classes in place of strings."""
    for path in PYTHON_CONFIG.glob('*.py'):
        (tmp_path / path.name).write_text(path.read_text().replace('DIGITS', str(digits)))
    return tmp_path / 'retinanet.py'


@pytest.fixture
def checkpoint(python_config, tmp_path):
    model = build_model(read_config(python_config, None))
    torch.nn.init.zeros_(model.bbox_head.retina_cls.bias)  # so that it finds something
    meta = dict(dataset_meta=dict(classes=tuple('0123456789')))
    path = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return path


def dumped(path, tmp_path):
    """The config that a work directory keeps."""
    Config.fromfile(path).dump(tmp_path / 'kept.py')
    return tmp_path / 'kept.py'


@pytest.mark.parametrize('is_dumped', [False, True])
def test_images_are_predicted_by_a_config_in_python_style(
    python_config, checkpoint, tmp_path, digits, is_dumped
):
    path = dumped(python_config, tmp_path) if is_dumped else python_config
    image = sorted((digits / 'val').iterdir())[0]
    cfg = read_config(path, None)
    assert infer(cfg, str(checkpoint), [str(image)], tmp_path / 'out') == (1, 0)
    prediction = json.loads((tmp_path / f'out/preds/{image.stem}.json').read_text())
    assert len(prediction['scores']) == 100


def test_detector_of_a_python_style_config_is_exportable(python_config):
    network = make_exportable(build_model(read_config(python_config, None)).eval())
    assert 'boxes' in network.output_names


def test_python_style_config_can_be_saved_and_read(python_config, tmp_path):
    cfg = read_config(python_config, None)
    kept = read_config(dumped(python_config, tmp_path), None)
    assert cfg.to_dict() == kept.to_dict()
    assert cfg.default_scope == 'mmdet'


@pytest.mark.slow
def test_every_command_accepts_a_python_style_config(python_config, tmp_path, run_tool, digits):
    work_dir = tmp_path / 'work'
    weights = work_dir / 'epoch_1.pth'
    commands = [
        ('tools/train.py', python_config, '--work-dir', work_dir),
        ('tools/test.py', python_config, weights, '--work-dir', work_dir),
        ('tools/test.py', work_dir / 'retinanet.py', weights, '--work-dir', work_dir),
        ('tools/export.py', python_config, weights, '--out', tmp_path / 'model.onnx'),
        ('tools/infer.py', python_config, weights, digits / 'val', '--out-dir', tmp_path / 'out'),
        ('tools/check_dataset.py', python_config),
    ]
    for command in commands:
        result = run_tool(*command)
        assert result.returncode == 0, result.stdout


def test_import_error_of_a_python_style_config_names_the_import(python_config):
    python_config.write_text(python_config.read_text().replace('FocalLoss', 'NoLoss'))
    with pytest.raises(ConfigError, match='Failed to import NoLoss from mmdet.models'):
        read_config(python_config, None)


@pytest.mark.parametrize('ending', ['json', 'yaml', 'py'])
def test_sizes_are_tuples_in_configs_of_each_format(tmp_path, digits, ending):
    path = tmp_path / f'config.{ending}'
    cfg = Config.fromfile('configs/retinanet_evit_m4_digits.py')
    cfg.train_dataloader.dataset.data_root = f'{digits}/'
    Config(json.loads(json.dumps(cfg.to_dict()))).dump(path)
    cfg = read_config(path, None)
    resize = cfg.train_dataloader.dataset.pipeline[2]
    assert resize.scale == (192, 192)
    with DefaultScope.overwrite_default_scope('mmdet'):
        sample = DATASETS.build(cfg.train_dataloader.dataset)[0]
    assert max(sample['inputs'].shape) == 192


def test_a_size_on_the_command_line_is_a_tuple():
    key = 'test_dataloader.dataset.pipeline.1.scale'
    options = {key: DictAction._parse_iterable('[64,96]')}
    cfg = read_config('configs/retinanet_evit_m4_digits.py', options)
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (64, 96)


def test_only_sizes_in_pipelines_become_tuples():
    flip = dict(type='RandomFlip', prob=[0.3, 0.3], direction=['horizontal', 'vertical'])
    cfg = dict(
        model=dict(strides=[8, 16]),
        train_pipeline=[
            flip,
            dict(scales=[[480, 1333], [512, 1333]], crop=[True, False], none=[]),
            dict(scales=[640, 704]),  # two sizes to choose from
        ],
    )
    convert_sizes(cfg)
    assert cfg['model'] == dict(strides=[8, 16])
    assert cfg['train_pipeline'] == [
        dict(type='RandomFlip', prob=[0.3, 0.3], direction=['horizontal', 'vertical']),
        dict(scales=[(480, 1333), (512, 1333)], crop=[True, False], none=[]),
        dict(scales=[640, 704]),
    ]


def test_characters_that_the_console_does_not_support_are_escaped(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding='cp1252')
    monkeypatch.setattr(sys, 'stdout', console)
    with report_errors():
        print('\u732b', flush=True)
    assert console.buffer.getvalue() == b'\\u732b\n'
