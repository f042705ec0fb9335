import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from mmevit.engine.hooks import ChannelsLastHook, CompileHook, InvalidLossHook, plot_curves
from mmevit.models import EfficientViT
from mmevit.utils.errors import ConfigError, UserError


@pytest.fixture
def model():
    """A model with a backbone that compiles fast."""
    arch = dict(embed_dims=(16,), depths=(1,), num_heads=(1,), kernel_sizes=(3,))
    backbone = EfficientViT(arch, window_sizes=(7,), out_indices=(0,))
    return nn.ModuleDict(dict(backbone=backbone, head=nn.Conv2d(16, 10, 1)))


def compile_parts(model, **options):
    """Compile as a run does, and return a counter of compilations."""
    torch._dynamo.reset()
    counter = CompileCounter()
    CompileHook(backend=counter, **options).before_train(SimpleNamespace(model=model))
    return counter


def loss_of(model, images):
    return model['head'](model['backbone'](images)[0]).square().sum()


def test_backbone_compiles_without_graph_breaks_and_keeps_names_and_results(model):
    images = torch.rand(2, 3, 128, 96)
    plain = copy.deepcopy(model)
    counter = compile_parts(model, fullgraph=True)
    torch.testing.assert_close(loss_of(model, images), loss_of(plain, images))
    assert counter.frame_count == 1
    assert list(model.state_dict()) == list(plain.state_dict())
    copy.deepcopy(model).load_state_dict(plain.state_dict())


def test_many_image_sizes_compile_at_most_twice(model):
    counter = compile_parts(model)
    for height, width in ((128, 160), (144, 176), (160, 128), (192, 224), (176, 176)):
        loss_of(model, torch.rand(2, 3, height, width)).backward()
    assert counter.frame_count <= 2


def test_named_parts_are_compiled_inside_a_distributed_wrapper(model):
    counter = compile_parts(nn.DataParallel(model), parts=('backbone.stem.0', 'backbone.stem.2'))
    device = model['head'].weight.device  # DataParallel moves it to a GPU, if there is one
    loss_of(model, torch.rand(2, 3, 64, 64, device=device))
    assert counter.frame_count == 2


def test_missing_part_raises_config_error(model):
    with pytest.raises(ConfigError, match='ModuleDict has no submodule .neck.'):
        compile_parts(model, parts='neck')


def test_channels_last_gives_the_same_losses_gradients_and_checkpoints(model):
    images = torch.rand(2, 3, 128, 96)
    plain = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ChannelsLastHook().before_train(SimpleNamespace(model=model))
    features = model['backbone'](images)[0]
    assert features.is_contiguous(memory_format=torch.channels_last)
    for one in (model, plain):
        loss_of(one, images).backward()
    torch.testing.assert_close(loss_of(model, images), loss_of(plain, images))
    for ours, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, wanted.grad, rtol=1e-3, atol=1e-4)
    before = model['head'].bias.detach().clone()
    optimizer.step()
    assert not torch.equal(model['head'].bias, before)  # it still has the model's parameters
    plain.load_state_dict(model.state_dict())
    for ours, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, wanted)


def lines(axes):
    return {line.get_label(): line.get_xydata().T.tolist() for line in axes.lines}


def test_losses_and_metrics_are_plotted():
    figure = plot_curves(
        {
            'train/loss': np.array([4.0, 3.0, 2.0]),
            'train/loss_cls': np.array([2.0, 1.0, 0.5]),
            'train/lr': np.array([0.1, 0.1, 0.1]),
            'val/coco/bbox_mAP': np.array([0.2, 0.4]),
            'val/coco/bbox_mAP_l': np.array([-1.0, -1.0]),
            'val/time': np.array([1.0, 1.0]),
            'curves/val_iter': np.array([2, 3]),
        }
    )
    losses, metrics = figure.axes
    assert lines(losses) == {
        'loss': [[1, 2, 3], [4, 3, 2]],
        'loss_cls': [[1, 2, 3], [2, 1, 0.5]],
    }
    assert lines(metrics) == {'coco/bbox_mAP': [[2, 3], [0.2, 0.4]]}


def test_losses_of_long_runs_are_averaged_over_windows():
    figure = plot_curves({'train/loss': np.arange(1000.0)})
    ((steps, means),) = lines(figure.axes[0]).values()
    assert steps == list(range(10, 1001, 10))
    assert means == [10 * window + 4.5 for window in range(100)]


@pytest.mark.parametrize(
    ('values', 'steps', 'plotted'),
    [
        ([7.0], [5, 10], {'accuracy/top1': [[10], [7]]}),
        # evaluated before the run had this hook
        ([6.0, 7.0], [10], {'accuracy/top1': [[10], [7]]}),
        ([6.0, 7.0], [], {}),
    ],
)
def test_metrics_of_a_resumed_run_are_plotted_at_the_last_evaluations(values, steps, plotted):
    steps = {'curves/val_iter': np.array(steps)} if steps else {}
    figure = plot_curves({'val/accuracy/top1': np.array(values), **steps})
    assert lines(figure.axes[1]) == plotted


def test_one_nan_loss_among_finite_ones_stops_training():
    runner = SimpleNamespace(
        iter=0,
        epoch=0,
        logger=SimpleNamespace(error=lambda message: None),
        message_hub=SimpleNamespace(runtime_info={}),
        optim_wrapper=None,
    )
    losses = dict(loss_cls=torch.tensor(1.0), loss_bbox=torch.tensor(float('nan')))
    with pytest.raises(UserError, match='loss_cls 1, loss_bbox nan'):
        InvalidLossHook().after_train_iter(runner, 0, {}, losses)
