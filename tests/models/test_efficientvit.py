import io
import math
import re
from copy import deepcopy

import pytest
import timm
import torch
from comparing import assert_near
from making_models import TINY
from mmengine.registry import MODELS
from needing import needs_dim
from torch import nn

from mmevit.checkpoint import convert_names, require_fit
from mmevit.models import EfficientViT
from mmevit.utils.errors import CheckpointError

ARCHS = ('m0', 'm1', 'm2', 'm3', 'm4', 'm5')
# One block and one subsampling, for what is slow for each layer.
SMALLEST = dict(
    arch=dict(embed_dims=(8, 16), depths=(1, 1), num_heads=(2, 1), kernel_sizes=(3, 5)),
    window_sizes=(7, 7),
    out_indices=(0, 1),
)
SIZES = ((32, 32), (33, 47), (192, 192), (320, 320), (224, 416), (400, 656), (800, 1344))


@pytest.mark.parametrize(
    ('arch', 'dtype'),
    [('m0', torch.float32), *((arch, torch.float64) for arch in ARCHS)],
    ids=lambda value: str(value).removeprefix('torch.'),
)
def test_maps_and_gradients_equal_timms(arch, dtype, randomised):
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    ours = randomised(arch, window_sizes=(7, 7, 4), out_stem=True).eval()
    reference = timm.create_model(f'efficientvit_{arch}', num_classes=0).eval()
    reference.load_state_dict(convert_names(ours.state_dict(), 'timm'))
    ours.to(dtype)
    reference.to(dtype)

    # Two images: of one, the gradients of timm differ from numeric ones (PyTorch 2.11).
    image = torch.rand(2, 3, 224, 224, dtype=dtype)
    maps = ours(image)
    expected = []
    with reference.patch_embed.relu3.register_forward_hook(lambda *args: expected.append(args[2])):
        x = reference.patch_embed(image)
    for stage in reference.stages:
        x = stage(x)
        expected.append(x)
    cotangents = [torch.randn_like(map_) for map_ in maps]
    for model_maps in (maps, expected):
        sum((m * c).sum() for m, c in zip(model_maps, cotangents, strict=True)).backward()

    assert_near(maps, expected, tolerance)
    gradients = dict(reference.named_parameters())
    parameters = convert_names(ours.state_dict(keep_vars=True), 'timm')
    for name, reference_parameter in gradients.items():
        parameter, wanted = parameters[name], reference_parameter.grad
        # A gradient that is a sum to zero, such as of a bias before batch norm, has no relative
        # error of its own: the largest of the model is the measure then.
        scale = max(wanted.abs().max(), 1e-3 * max(g.grad.abs().max() for g in gradients.values()))
        # In float32 the order shows in which so many values are summed.
        error = (parameter.grad - wanted).abs().max() / scale
        assert error < (tolerance if dtype == torch.float64 else 1e-4), name


@pytest.mark.parametrize(('arch', 'size'), zip(('m5', *ARCHS[::-1]), SIZES, strict=True), ids=str)
def test_any_input_size_gives_maps_of_strides_16_32_64_and_gradients(arch, size):
    model = EfficientViT(arch).train()
    # Batch norm cannot train on one value a channel, and stage 3 is 1x1 at the smallest sizes.
    image = torch.rand(2 if max(size) < 200 else 1, 3, *size)
    maps = model(image)
    for map_, channels, stride in zip(maps, model.embed_dims, (16, 32, 64), strict=True):
        expected = (channels, math.ceil(size[0] / stride), math.ceil(size[1] / stride))
        assert map_.shape[1:] == expected
        assert map_.isfinite().all()
    sum(map_.square().mean() for map_ in maps).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.stem[0].conv.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ('index', 'names'),
    [
        (0, ('depthwise0.norm', 'depthwise1.norm', 'branch.reduce.norm', 'proj.norm')),
        (1, ('branch.reduce.norm',)),
    ],
    ids=['block', 'subsample'],
)
def test_residual_branches_of_blocks_start_as_the_identity(index, names):
    layer = EfficientViT('m0').stages[index][0]
    for name, parameter in layer.named_parameters():
        if name.endswith('norm.weight'):
            starts_at_zero = any(part in name for part in names)
            assert (parameter == (0 if starts_at_zero else 1)).all(), name


def test_out_indices_select_maps_and_later_stages_are_not_built():
    model = EfficientViT(TINY, out_indices=(1,))
    (map_,) = model(torch.rand(2, 3, 64, 64))
    assert map_.shape == (2, 24, 2, 2)
    assert model.out_channels == (24,)
    assert len(model.stages) == 2


def test_stem_map_has_stride_8_and_comes_first():
    model = EfficientViT(TINY, out_stem=True, out_indices=(0, 2))
    maps = model(torch.rand(2, 3, 64, 100))
    assert [tuple(map_.shape[2:]) for map_ in maps] == [(8, 13), (4, 7), (1, 2)]
    assert model.out_channels == tuple(map_.shape[1] for map_ in maps)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 3])
def test_frozen_stages_train_neither_parameters_nor_statistics(frozen_stages):
    model = EfficientViT(TINY, frozen_stages=frozen_stages).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad] or [nn.Parameter(torch.zeros(1))], lr=1.0
    )
    maps = model(torch.rand(2, 3, 128, 128))
    if frozen_stages < 3:
        sum(map_.square().sum() for map_ in maps).backward()
    optimizer.step()
    frozen = ['stem'] * (frozen_stages >= 0) + [f'stages.{i}' for i in range(frozen_stages)]
    after = model.state_dict()
    changed = {
        name.split('.norm')[0].split('.conv')[0]
        for name in before
        if not before[name].equal(after[name])
    }
    assert not [name for name in changed if name.startswith(tuple(frozen) or ('none',))]
    trained = {name for name in ('stem', 'stages.0', 'stages.1', 'stages.2') if name not in frozen}
    assert {name for name in trained if any(c.startswith(name) for c in changed)} == trained


def test_norm_eval_keeps_statistics_but_trains_weights():
    model = EfficientViT(TINY, norm_eval=True).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    sum(map_.sum() for map_ in model(torch.rand(2, 3, 64, 64))).backward()
    assert all(value.equal(before[name]) for name, value in model.named_buffers())
    assert model.stem[0].norm.weight.grad is not None
    assert model.training


def test_drop_path_grows_linearly_and_acts_only_in_training(randomised):
    model = randomised('m0', drop_path_rate=0.5)
    rates = [
        stage_layer.ffn0.drop_path.drop_prob
        for stage in model.stages
        for stage_layer in stage
        if hasattr(stage_layer, 'attention')
    ]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    image = torch.rand(2, 3, 64, 64)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert not model(image)[2].equal(model(image)[2])
    model.eval()
    assert model(image)[2].equal(model(image)[2])


def test_gradient_checkpointing_keeps_gradients_and_saves_memory(randomised):
    plain = randomised(TINY, norm_eval=True).train()
    checkpointed = EfficientViT(TINY, norm_eval=True, with_cp=True).train()
    checkpointed.load_state_dict(plain.state_dict())
    image = torch.rand(2, 3, 96, 96)
    kept = []
    for model in (plain, checkpointed):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            loss = sum(map_.square().sum() for map_ in model(image))
        kept.append(sum(sizes))
        loss.backward()
    assert kept[1] < kept[0] / 2
    for one, other in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(
    'norm_cfg',
    [
        dict(type='GN', num_groups=2),
        dict(type='IN', affine=True),
        dict(type='SyncBN'),
        dict(type='BN', eps=1e-3, requires_grad=False),
    ],
    ids=lambda cfg: cfg['type'],
)
def test_other_norm_layers_replace_every_batch_norm(norm_cfg):
    model = EfficientViT(TINY, norm_cfg=norm_cfg)
    norms = [module for name, module in model.named_modules() if name.endswith('norm')]
    assert len({type(norm) for norm in norms}) == 1
    assert not any(type(m) is nn.BatchNorm2d for m in model.modules()) or norm_cfg['type'] == 'BN'
    if norm_cfg['type'] == 'BN':
        assert norms[0].eps == 1e-3 and not norms[0].weight.requires_grad
    if norm_cfg['type'] != 'SyncBN':  # which trains on GPUs alone
        model(torch.rand(2, 3, 128, 128))[2].sum().backward()


def test_channels_last_gives_the_same_maps_and_gradients(randomised):
    model = randomised(TINY).eval()
    image = torch.rand(2, 3, 100, 130)
    expected = model(image)
    sum(map_.sum() for map_ in expected).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    maps = model.to(memory_format=torch.channels_last)(
        image.contiguous(memory_format=torch.channels_last)
    )
    sum(map_.sum() for map_ in maps).backward()
    assert_near(maps, expected)
    for parameter, wanted in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(
            parameter.grad, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item()
        )


def test_other_activation_replaces_every_relu():
    model = EfficientViT(TINY, act_cfg=dict(type='HSwish'))
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())
    model(torch.rand(2, 3, 64, 64))[2].sum().backward()


def test_backbone_is_found_by_name_from_mmdet_and_mmpretrain():
    import mmdet.registry
    import mmpretrain.registry

    for registry in (MODELS, mmdet.registry.MODELS, mmpretrain.registry.MODELS):
        assert isinstance(registry.build(dict(type='EfficientViT', arch=TINY)), EfficientViT)


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (dict(arch='m6'), "Unknown EfficientViT arch 'm6'. Choose from m0, m1"),
        (
            dict(arch=dict(embed_dims=(8,))),
            "arch has the keys ['embed_dims']. Pass embed_dims, depths",
        ),
        (
            dict(arch=TINY | dict(depths=(1, 1))),
            'depths=(1, 1) has 2 values, but embed_dims has 3 stages',
        ),
        (dict(arch=TINY | dict(num_heads=(3, 3, 2))), '16 channels do not split into 3 heads'),
        (dict(arch=TINY | dict(embed_dims=(20, 24, 32))), 'multiple of 8'),
        (dict(arch=TINY | dict(kernel_sizes=(5, 3))), 'one odd size for each of the 3 heads'),
        (dict(arch=TINY | dict(kernel_sizes=(5, 4, 3))), 'one odd size'),
        (dict(window_sizes=(7, 0, 7)), 'none below 1'),
        (dict(window_sizes=(7, 7)), 'Pass 3 integers'),
        (dict(window_sizes=7), 'Pass 3 integers'),
        (dict(arch=['m0']), "Unknown EfficientViT arch ['m0']"),
        (dict(arch=TINY | dict(kernel_sizes=(5, 3, -1))), 'one odd size'),
        (dict(drop_path_rate=1.0), 'below 1'),
        (dict(out_indices=(3,)), 'stages 0 to 2'),
        (dict(out_indices=(2, 0)), 'each once and in order'),
        (dict(out_indices=(1, 1)), 'each once and in order'),
        (dict(out_indices=2), 'at least one'),
        (dict(out_indices=()), 'at least one'),
        (dict(frozen_stages=4), 'frozen_stages=4'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_arguments_raise(arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        EfficientViT(**arguments)


@pytest.mark.parametrize('arch', ARCHS)
def test_folded_backbone_equals_the_unfolded_and_loads_into_the_deploy_form(arch, randomised):
    model = randomised(arch, out_stem=True).double().eval()
    image = torch.rand(2, 3, 100, 130, dtype=torch.float64)
    with torch.no_grad():
        expected = model(image)
        model.switch_to_deploy()
        model.switch_to_deploy()  # a second time is harmless
        folded = model(image)
        loaded = EfficientViT(arch, deploy=True, out_stem=True).double().eval()
        loaded.load_state_dict(model.state_dict())
        assert_near(folded, expected, 1e-10)
        for actual, from_file in zip(folded, loaded(image), strict=True):
            assert actual.equal(from_file)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_folding_group_norm_raises():
    model = EfficientViT(TINY, norm_cfg=dict(type='GN', num_groups=2))
    with pytest.raises(ValueError, match='GroupNorm cannot be folded'):
        model.switch_to_deploy()


def test_compile_captures_the_whole_graph(randomised):
    torch._dynamo.reset()
    model = randomised(**SMALLEST).eval()
    image = torch.rand(2, 3, 64, 96)
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    assert_near(compiled(image), model(image))


@pytest.mark.parametrize(
    'deploy',
    [pytest.param(False, id='unfolded', marks=pytest.mark.slow), pytest.param(True, id='folded')],
)
def test_one_compiled_graph_serves_all_sizes(deploy, randomised):
    torch._dynamo.reset()
    model = randomised(**SMALLEST).eval()
    if deploy:
        model.switch_to_deploy()
    compiled = torch.compile(model, fullgraph=True, backend='eager', dynamic=True)
    for size in ((64, 96), (130, 70)):
        image = torch.rand(2, 3, *size)
        assert_near(compiled(image), model(image))


@pytest.mark.slow
def test_compiled_with_the_default_backend_agrees_with_eager(randomised):
    torch._dynamo.reset()
    model = randomised(TINY).eval()
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)(image)
        assert_near(compiled, model(image))


@pytest.mark.parametrize('with_cp', [False, True], ids=['plain', 'with_cp'])
def test_compiled_training_gives_the_gradients_of_eager(with_cp, randomised):
    torch._dynamo.reset()
    model = randomised(**SMALLEST, norm_eval=True, with_cp=with_cp).train()
    image = torch.rand(2, 3, 64, 96)
    gradients = []
    for forward in (model, torch.compile(model, fullgraph=True, backend='aot_eager')):
        model.zero_grad()
        sum(map_.square().sum() for map_ in forward(image)).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for actual, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


@needs_dim
@pytest.mark.parametrize('arch', [TINY, pytest.param('m5', marks=pytest.mark.slow)], ids=str)
def test_export_with_dynamic_batch_height_and_width_agrees_at_every_size(arch, randomised):
    from torch.export import Dim
    from torch.fx.experimental import _config as symbolic_shapes

    model = randomised(arch).eval()
    sides = {2: Dim('height', min=32, max=2048), 3: Dim('width', min=32, max=2048)}
    # Without this, torch.export takes a dimension that can be 1, as maps of stride 64 have from
    # 32 pixels on, for one that cannot. A plain stack of stride-2 convolutions needs it too.
    with symbolic_shapes.patch(backed_size_oblivious=True):
        program = torch.export.export(
            model,
            (torch.rand(2, 3, 192, 224),),
            dynamic_shapes=dict(x={0: Dim('batch', max=64), **sides}),
        )
    for shape in ((1, 3, 32, 32), (3, 3, 33, 47), (1, 3, 320, 320), (2, 3, 400, 656)):
        image = torch.rand(shape)
        assert_near(program.module()(image), model(image))


@needs_dim
def test_export_by_public_options_is_dynamic_where_every_stage_has_several_windows(randomised):
    from torch.export import Dim

    model = randomised(**SMALLEST).eval()
    sides = {2: Dim('height', min=449, max=2048), 3: Dim('width', min=449, max=2048)}
    program = torch.export.export(
        model,
        (torch.rand(1, 3, 480, 656),),
        dynamic_shapes=dict(x=sides),
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    image = torch.rand(1, 3, 800, 1344)
    assert_near(program.module()(image), model(image))


def test_copied_and_unpickled_backbones_resize_tables_and_refuse_other_weights():
    backbone, file = EfficientViT('m0'), io.BytesIO()
    torch.save(backbone, file)
    file.seek(0)
    other_windows = EfficientViT('m0', window_sizes=(4, 4, 4)).state_dict()
    other_arch = require_fit(EfficientViT('m1').state_dict())
    for copied in (deepcopy(backbone), torch.load(file, weights_only=False)):
        copied.load_state_dict(other_windows)
        with pytest.raises(CheckpointError, match="fit arch='m1'"):
            copied.load_state_dict(other_arch)


def test_traced_model_takes_other_sizes(randomised):
    model = randomised(TINY).eval()
    traced = torch.jit.trace(model, torch.rand(1, 3, 192, 224))
    for shape in ((2, 3, 33, 47), (1, 3, 320, 200)):
        image = torch.rand(shape)
        for actual, wanted in zip(traced(image), model(image), strict=True):
            assert actual.equal(wanted)
