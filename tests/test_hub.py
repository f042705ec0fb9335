import json
import shutil
import subprocess
import sys
from pathlib import Path

import mmengine
import mmengine.hub
import mmpretrain
import pytest
import torch
import yaml
from mmcv.transforms import Compose
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.apis.model import ModelHub

from mmevit.apis import DetInferencer
from mmevit.models import EfficientViT
from mmevit.utils.configs import MIM_FOLDER
from mmevit.utils.errors import ConfigError

ROOT = Path(__file__).parents[1]
PUBLISHED = {
    **{
        f'efficientvit-m{index}_8xb256_in1k': accuracy
        for index, accuracy in enumerate((63.2, 68.4, 70.8, 73.4, 74.3, 77.1))
    },
    'efficientvit-m5_8xb64_in1k-384px': 79.8,
    'efficientvit-m5_8xb64_in1k-512px': 80.8,
    'efficientvit-m4_8xb256-distill-1000e_in1k': 77.1,
    'efficientvit-m5_8xb32_cifar10': 98.0,
    'efficientvit-m5_8xb32_cifar100': 86.4,
    'efficientvit-m5_8xb32_cars': 89.7,
    'efficientvit-m5_8xb32_flowers': 97.1,
    'efficientvit-m5_8xb32_pets': 92.0,
}


def test_exactly_the_published_classifiers_are_listed():
    assert set(mmpretrain.list_models('efficientvit*')) == set(PUBLISHED)
    task = mmpretrain.ImageClassificationInferencer.list_models('efficientvit*')
    assert set(task) == set(PUBLISHED)


@pytest.mark.parametrize('name', PUBLISHED)
def test_metafile_has_accuracy_and_parameters(name):
    meta = ModelHub.get(name)
    assert meta.results[0].metrics == {'Top 1 Accuracy': PUBLISHED[name]}
    model = mmpretrain.get_model(name)
    assert meta.metadata.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize('index', range(6))
def test_weights_are_the_released_ones(index):
    assert ModelHub.get(f'efficientvit-m{index}_8xb256_in1k').weights == f'evit://m{index}'


def test_classifier_is_loaded_by_name_with_weights(tmp_path):
    model = mmpretrain.get_model('efficientvit-m0_8xb256_in1k')
    torch.nn.init.normal_(model.head.head.linear.weight)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'm0.pth')
    image = torch.randint(256, (250, 300, 3), dtype=torch.uint8).numpy()
    classify = mmpretrain.ImageClassificationInferencer(
        'efficientvit-m0_8xb256_in1k', f'evit://{tmp_path}/m0.pth'
    )
    result = classify(image)[0]
    assert result['pred_class'] == classify.classes[result['pred_label']]
    loaded = mmpretrain.get_model('efficientvit-m0_8xb256_in1k', f'evit://{tmp_path}/m0.pth')
    assert mmpretrain.inference_model(loaded, image)['pred_label'] == result['pred_label']


def test_index_and_configs_agree():
    index = yaml.safe_load((MIM_FOLDER / 'model-index.yml').read_text())
    models = [
        model
        for path in index['Import']
        for model in yaml.safe_load((MIM_FOLDER / path).read_text())['Models']
    ]
    assert len(models) == len(PUBLISHED) + 2  # detectors
    for model in models:
        name = model['Config'].removeprefix('configs/')
        cfg = mmengine.hub.get_config(f'mmevit::{name}', pretrained='Weights' in model)
        assert cfg.get('model_path') == model.get('Weights')
        assert cfg.model.backbone.type == 'EfficientViT'


@pytest.mark.parametrize(
    'name',
    [
        'retinanet_efficientvit-m4_fpn_1x_coco',
        'mmevit::efficientvit/retinanet_evit_m4.py',
        'mmevit::efficientvit/retinanet_evit_m3.py',
        'atss_r50_fpn_1x_coco',
    ],
)
def test_inferencer_finds_models_of_mmevit_and_mmdet(name):
    cfg, weights = make_inferencer()._load_model_from_metafile(name)
    if name.startswith('atss'):
        assert cfg.model.type == 'ATSS' and weights.startswith('https://')
    else:
        assert cfg.model.backbone.arch == ('m3' if 'm3' in name else 'm4')
        assert weights == (None if 'm3' in name else 'evit://retinanet-m4')


def make_inferencer():
    """An inferencer without a model."""
    inferencer = object.__new__(DetInferencer)
    inferencer.scope = 'mmdet'
    return inferencer


def test_unknown_config_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match='mmevit::efficientvit/no.py does not exist.*retinanet_'):
        make_inferencer()._load_model_from_metafile('mmevit::efficientvit/no.py')


@pytest.mark.parametrize('name', ['evit_m0_digits', 'semantic-fpn_evit_m4_digits'])
def test_model_and_pipelines_of_an_inherited_config_are_built(name, tmp_path):
    path = tmp_path / 'child.py'
    path.write_text(f"_base_ = 'mmevit::efficientvit/{name}.py'\n")
    cfg = mmengine.Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    assert type(MODELS.build(cfg.model).backbone) is EfficientViT
    for split in ('train', 'test'):
        pipeline = cfg[f'{split}_dataloader'].dataset.pipeline
        assert len(Compose(pipeline).transforms) == len(pipeline)


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """The package as its wheel installs it, away from the checkout."""
    pytest.importorskip('setuptools', '77')  # for pyproject.toml
    folder = tmp_path_factory.mktemp('wheel')
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
    options = ['--no-deps', '--no-build-isolation', '--quiet']
    # Build from a copy: it leaves files in the source tree.
    source = folder / 'source'
    for name in ('configs', 'requirements', 'tools'):
        shutil.copytree(ROOT / name, source / name)
    # Without what setup.py adds to .mim.
    ignore = shutil.ignore_patterns('configs', 'tools')
    shutil.copytree(ROOT / 'mmevit', source / 'mmevit', ignore=ignore)
    for name in ('LICENSE', 'MANIFEST.in', 'README.md', 'pyproject.toml', 'setup.py'):
        shutil.copy(ROOT / name, source)
    subprocess.run([*pip, 'wheel', *options, '-w', folder, source], check=True)
    (wheel,) = folder.glob('*.whl')
    subprocess.run([*pip, 'install', *options, '--target', folder / 'site', wheel], check=True)
    return folder / 'site'


SCRIPT = """
import json, sys
sys.path.insert(0, {site!r})
import mmevit, mmengine.hub, mmpretrain
from mmengine.config import Config
Config.fromfile('child.py')
print(json.dumps(dict(
    file=mmevit.__file__,
    models=mmpretrain.list_models('efficientvit*'),
    arch=mmengine.hub.get_config('mmevit::efficientvit/evit_m0_pets.py').model.backbone.arch,
    weights=mmengine.hub.get_config('mmevit::efficientvit/evit_m3_in1k.py', True).model_path,
    child=Config.fromfile('child.py').model.backbone.arch,
    built=type(mmpretrain.get_model('efficientvit-m1_8xb256_in1k').backbone).__name__,
)))
"""


def test_wheel_has_models_and_configs_without_a_checkout(installed, tmp_path):
    (tmp_path / 'child.py').write_text("_base_ = 'mmevit::efficientvit/evit_m2_in1k.py'\n")
    result = subprocess.run(
        [sys.executable, '-c', SCRIPT.format(site=str(installed))],
        cwd=tmp_path,
        env={'PATH': ''},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found.pop('file').startswith(str(installed))
    assert set(found.pop('models')) == set(PUBLISHED)
    assert found == dict(arch='m0', weights='evit://m3', child='m2', built='EfficientViT')


def test_wheel_has_every_config_and_tool_and_is_typed(installed):
    assert (installed / 'mmevit/py.typed').exists()
    mim = installed / 'mmevit/.mim'
    for folder, inside in (('configs', 'configs/efficientvit'), ('tools', 'tools')):
        wanted = {
            path.relative_to(ROOT / folder)
            for path in (ROOT / folder).rglob('*')
            if path.suffix in ('.py', '.yml', '.sh')
        }
        assert wanted == {
            path.relative_to(mim / inside)
            for path in (mim / inside).rglob('*')
            if path.suffix in ('.py', '.yml', '.sh')
        }
