import json
import shutil
import subprocess
import sys
import zipfile
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
IMAGENET = {
    f'efficientvit-m{index}_8xb256_in1k': accuracy
    for index, accuracy in enumerate((63.2, 68.4, 70.8, 73.4, 74.3, 77.1))
}
PUBLISHED = {
    **IMAGENET,
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
    task = mmpretrain.ImageClassificationInferencer.list_models('efficientvit*')
    assert set(mmpretrain.list_models('efficientvit*')) == set(task) == set(PUBLISHED)


@pytest.mark.parametrize('name', PUBLISHED)
def test_metafile_has_accuracy_weights_and_parameters(name):
    meta = ModelHub.get(name)
    assert meta.results[0].metrics == {'Top 1 Accuracy': PUBLISHED[name]}
    if name in IMAGENET:
        assert meta.weights == f'evit://{name[13:15]}'
    with torch.device('meta'):
        model = mmpretrain.get_model(name)
    assert meta.metadata.parameters == sum(p.numel() for p in model.parameters())


def test_classifier_is_loaded_by_name_with_weights(tmp_path):
    name, weights = 'efficientvit-m0_8xb256_in1k', f'evit://{tmp_path}/m0.pth'
    model = mmpretrain.get_model(name)
    torch.nn.init.normal_(model.head.head.linear.weight)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'm0.pth')
    image = torch.randint(256, (250, 300, 3), dtype=torch.uint8).numpy()
    classify = mmpretrain.ImageClassificationInferencer(name, weights)
    result = classify(image)[0]
    assert result['pred_class'] == classify.classes[result['pred_label']]
    for other in (model, mmpretrain.get_model(name, weights)):
        assert mmpretrain.inference_model(other, image)['pred_label'] == result['pred_label']


def test_index_and_configs_agree():
    index = yaml.safe_load((MIM_FOLDER / 'model-index.yml').read_text())
    models = [
        model
        for path in index['Import']
        for model in yaml.safe_load((MIM_FOLDER / path).read_text())['Models']
    ]
    assert len(models) == len(PUBLISHED) + 12  # detectors
    assert all((MIM_FOLDER / model['Config']).is_file() for model in models)
    for name, weights in (
        ('retinanet_evit_m4', 'evit://retinanet-m4'),
        ('evit_m0_in1k', 'evit://m0'),
        ('evit_m5_cars', None),
    ):
        config = f'mmevit::efficientvit/{name}.py'
        cfg = mmengine.hub.get_config(config, pretrained=weights is not None)
        assert cfg.get('model_path') == weights and cfg.model.backbone.type == 'EfficientViT'


def find_model(name):
    """Find a config and weights as an inferencer does, without building the model."""
    inferencer = object.__new__(DetInferencer)
    inferencer.scope = 'mmdet'
    return inferencer._load_model_from_metafile(name)


def test_inferencer_finds_models_of_mmevit_and_mmdet():
    for name, arch, released in (
        ('retinanet_efficientvit-m4_fpn_1x_coco', 'm4', 'evit://retinanet-m4'),
        ('mmevit::efficientvit/retinanet_evit_m4.py', 'm4', 'evit://retinanet-m4'),
        ('mmevit::efficientvit/retinanet_evit_m3.py', 'm3', None),
        ('rtmdet_efficientvit-m1_8xb32-300e_coco', 'm1', None),
    ):
        cfg, weights = find_model(name)
        assert (cfg.model.backbone.arch, weights) == (arch, released)
    cfg, weights = find_model('atss_r50_fpn_1x_coco')
    assert cfg.model.type == 'ATSS' and weights.startswith('https://')
    with pytest.raises(ConfigError, match='mmevit::efficientvit/no.py does not exist.*retinanet_'):
        find_model('mmevit::efficientvit/no.py')


@pytest.mark.parametrize('name', ['evit_m0_digits', 'semantic-fpn_evit_m4_digits'])
def test_model_and_pipelines_of_an_inherited_config_are_built(name, tmp_path):
    path = tmp_path / 'child.py'
    path.write_text(f"_base_ = 'mmevit::efficientvit/{name}.py'\n")
    cfg = mmengine.Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        assert type(MODELS.build(cfg.model).backbone) is EfficientViT
    for split in ('train', 'test'):
        pipeline = cfg[f'{split}_dataloader'].dataset.pipeline
        assert len(Compose(pipeline).transforms) == len(pipeline)


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


def test_wheel_has_configs_tools_and_types_and_works_without_a_checkout(tmp_path):
    pytest.importorskip('setuptools', '77')  # for pyproject.toml
    # Built from a copy, since it leaves files in the source tree, and without what setup.py adds.
    source, site = tmp_path / 'source', tmp_path / 'site'
    ignore = shutil.ignore_patterns('configs', 'tools', '__pycache__')
    for name in ('configs', 'mmevit', 'requirements', 'tools'):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ('LICENSE', 'MANIFEST.in', 'README.md', 'pyproject.toml', 'setup.py'):
        shutil.copy(ROOT / name, source)
    build = 'from setuptools.build_meta import build_wheel; build_wheel("..")'
    subprocess.run([sys.executable, '-c', build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob('*.whl')
    zipfile.ZipFile(wheel).extractall(site)

    def list_files(folder):
        files = (path for path in folder.rglob('*') if path.suffix in ('.py', '.yml', '.sh'))
        return {path.relative_to(folder) for path in files}

    assert (site / 'mmevit/py.typed').exists()
    assert list_files(site / 'mmevit/.mim/configs/efficientvit') == list_files(ROOT / 'configs')
    tools = {path for path in list_files(ROOT / 'tools') if path.parts[0] != 'dev'}
    assert list_files(site / 'mmevit/.mim/tools') == tools

    (tmp_path / 'child.py').write_text("_base_ = 'mmevit::efficientvit/evit_m2_in1k.py'\n")
    result = subprocess.run(
        [sys.executable, '-c', SCRIPT.format(site=str(site))],
        cwd=tmp_path,
        env={'PATH': ''},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found.pop('file').startswith(str(site))
    assert set(found.pop('models')) == set(PUBLISHED)
    assert found == dict(arch='m0', weights='evit://m3', child='m2', built='EfficientViT')
