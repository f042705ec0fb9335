from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from comparing import assert_near
from making_models import build_model, save_model
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODELS, init_default_scope

from mmevit.deploy import FoldHook, fold
from mmevit.models import EfficientViTClsHead, EfficientViTFPN
from mmevit.models.attention import put_channels_first

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


def randomise_norms(model):
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            for value in (module.weight, module.running_var):
                torch.nn.init.uniform_(value, 0.5, 1.5)
            for value in (module.bias, module.running_mean):
                torch.nn.init.normal_(value, std=0.5)
    return model.eval()


@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize('distillation', [False, True], ids=['one-head', 'two-heads'])
def test_folded_head_is_one_linear_layer_and_loads_into_the_deploy_form(distillation, dtype):
    settings = dict(in_channels=192, num_classes=10, distillation=distillation)
    head = randomise_norms(EfficientViTClsHead(**settings)).to(dtype)
    features = (torch.randn(5, 192, dtype=dtype),)
    expected = head(features)
    head.switch_to_deploy()
    head.switch_to_deploy()  # a second time is harmless
    assert_near(head(features), expected, TOLERANCES[dtype])
    assert sum(p.numel() for p in head.parameters()) == 192 * 10 + 10

    loaded = EfficientViTClsHead(**settings, deploy=True).to(dtype)
    loaded.load_state_dict(head.state_dict())
    assert_near(loaded(features), expected, TOLERANCES[dtype])


@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
def test_folded_neck_has_no_norm_and_loads_into_the_deploy_form(dtype):
    settings = dict(
        in_channels=[64, 128, 192],
        out_channels=32,
        num_outs=5,
        num_upsample_levels=2,
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='ReLU'),
    )
    neck = randomise_norms(EfficientViTFPN(**settings)).to(dtype)
    maps = [torch.randn(2, c, s, s, dtype=dtype) for c, s in ((64, 8), (128, 4), (192, 2))]
    expected = neck(maps)
    neck.switch_to_deploy()
    assert not any('norm' in type(module).__name__.lower() for module in neck.modules())

    loaded = EfficientViTFPN(**settings, deploy=True).to(dtype).eval()
    loaded.load_state_dict(neck.state_dict())
    for model in (neck, loaded):
        assert_near(model(maps), expected, TOLERANCES[dtype])


def test_a_neck_whose_norm_cannot_be_folded_is_refused():
    neck = EfficientViTFPN([64, 128], 32, num_outs=3, norm_cfg=dict(type='GN', num_groups=4))
    with pytest.raises(ValueError, match='GroupNorm cannot be folded'):
        neck.switch_to_deploy()


@pytest.mark.parametrize('config', ['evit_m0_digits', 'retinanet_evit_m4_digits'])
def test_a_folded_model_predicts_the_same(config):
    model = build_model(Config.fromfile(f'configs/{config}.py')).eval()
    images = torch.rand(2, 3, 112, 112)
    with torch.no_grad():
        expected = model(images, mode='tensor')
        folded = fold(model)(images, mode='tensor')
    if not config.startswith('evit'):
        folded, expected = ([*scores, *boxes] for scores, boxes in (folded, expected))
    assert_near(folded, expected)
    assert model.backbone.deploy
    assert not any(
        isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules()
    )


@pytest.fixture
def process_group(tmp_path):
    """Distributed training with one process."""
    torch.distributed.init_process_group('gloo', f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('wrap', [lambda model: model, MMDistributedDataParallel])
def test_the_hook_evaluates_a_folded_copy_and_gives_the_model_back(wrap, process_group):
    init_default_scope('mmpretrain')
    model = MODELS.build(Config.fromfile('configs/evit_m0_digits.py').model)
    before, model = deepcopy(model.state_dict()), wrap(model)
    runner, hook = SimpleNamespace(model=model), FoldHook()
    hook.before_test_epoch(runner)
    assert runner.model.backbone.deploy
    hook.after_test_epoch(runner)
    assert runner.model is model
    model = getattr(model, 'module', model)
    assert not model.backbone.deploy
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_folded_maps_have_their_channels_last_whatever_the_images_have(randomised):
    backbone = fold(randomised('m0'))
    for map_ in backbone(torch.rand(2, 3, 128, 192)):
        assert map_.is_contiguous(memory_format=torch.channels_last)


def test_mmpretrains_reparameterisation_tool_folds_our_classifier(tmp_path, run_tool):
    import mmpretrain

    cfg = save_model('evit_m0_digits', tmp_path / 'model.pth')
    tool = f'{mmpretrain.__path__[0]}/.mim/tools/model_converters/reparameterize_model.py'
    run_tool(tool, 'configs/evit_m0_digits.py', tmp_path / 'model.pth', tmp_path / 'folded.pth')

    init_default_scope('mmpretrain')
    models = []
    for name, deploy in (('model', False), ('folded', True)):
        cfg.model.backbone.deploy = deploy
        model = MODELS.build(cfg.model).eval()
        model.load_state_dict(torch.load(tmp_path / f'{name}.pth')['state_dict'])
        models.append(model)
    images = torch.rand(2, 3, 112, 112)
    with torch.no_grad():
        expected, actual = (model(images, mode='tensor') for model in models)
    assert_near(actual, expected)


@pytest.mark.parametrize('size', [(96, 96), (112, 240), (33, 470)], ids=str)
@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
def test_the_attention_with_channels_first_gives_the_same(dtype, size, randomised):
    backbone = fold(randomised('m1', window_sizes=(6, 3, 4)).to(dtype))
    images = torch.rand(2, 3, *size, dtype=dtype)
    with torch.no_grad():
        expected = backbone(images)
        copy = deepcopy(backbone).apply(put_channels_first)
        actual = copy.apply(put_channels_first)(images)  # the second call changes nothing
    assert_near(actual, expected, TOLERANCES[dtype])


def test_the_attention_is_left_as_it_is_where_it_is_not_folded(randomised):
    backbone = randomised('m0')
    names = [name for name, _ in backbone.apply(put_channels_first).named_modules()]
    assert names == [name for name, _ in randomised('m0').named_modules()]
