import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from making_models import TINY, save_model
from mmengine.registry import DefaultScope
from mmpretrain.models import ImageClassifier
from PIL import Image
from torch.nn.functional import interpolate

from mmevit.analysis import grad_cam, plot_grad_cams
from mmevit.cli.analysis import grad_cam as command
from mmevit.utils.errors import ConfigError


@pytest.fixture
def classifier(randomised):
    return (
        ImageClassifier(
            backbone=randomised(TINY, out_indices=(2,)),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='EfficientViTClsHead', num_classes=5, in_channels=32),
        )
        .double()
        .eval()
    )


def run_from(classifier, features, stage):
    """Run the rest of the network from the map at the end of a stage."""
    for later in classifier.backbone.stages[stage + 1 :]:
        for layer in later:
            features = layer(features)
    return classifier.head(classifier.neck((features,)))


@pytest.mark.parametrize('stage', [0, 1, 2])
def test_maps_match_the_formula_with_finite_difference_gradients(classifier, stage):
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    (maps,), logits = grad_cam(classifier, images, [stage])
    with torch.no_grad():
        torch.testing.assert_close(logits, classifier(images, mode='tensor'))
        features = classifier.backbone.stem(images)
        for earlier in classifier.backbone.stages[: stage + 1]:
            for layer in earlier:
                features = layer(features)
        rows, labels = torch.arange(2), logits.argmax(1)
        # The mean gradient of a channel, by raising all of its pixels a little.
        weights = torch.zeros(features.shape[:2], dtype=torch.float64)
        for channel in range(features.shape[1]):
            change = torch.zeros_like(features)
            change[:, channel] = 1e-6
            raised = run_from(classifier, features + change, stage)
            lowered = run_from(classifier, features - change, stage)
            weights[:, channel] = (raised - lowered)[rows, labels] / 2e-6
        weights /= features[0, 0].numel()
        wanted = (weights[..., None, None] * features).sum(1).relu()
        wanted = interpolate(wanted[:, None], (96, 64), mode='bilinear')[:, 0]
    assert wanted.amax((1, 2)).min() > 0
    wanted = wanted / wanted.amax((1, 2), keepdim=True)
    torch.testing.assert_close(maps, wanted, rtol=1e-4, atol=1e-4)


def test_maps_are_of_the_requested_classes_and_stages(classifier):
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    together, logits = grad_cam(classifier, images, [0, 1, 2])
    for stage, maps in enumerate(together):
        (same,), _ = grad_cam(classifier, images, [stage], logits.argmax(1))
        assert torch.equal(maps, same)
    (other,), _ = grad_cam(classifier, images, [0], (logits.argmax(1) + 1) % 5)
    assert not torch.allclose(together[0], other)


def test_frozen_weights_and_no_grad_are_supported_and_the_model_is_unchanged(classifier):
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    (wanted,), _ = grad_cam(classifier, images, [1])
    classifier.requires_grad_(False)
    with torch.no_grad():
        (maps,), _ = grad_cam(classifier, images, [1])
    assert torch.equal(maps, wanted) and not maps.requires_grad
    assert not images.requires_grad
    assert not any(module._forward_hooks for module in classifier.modules())
    assert all(weight.grad is None for weight in classifier.parameters())


def test_missing_library_raises_an_error(classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', None)
    with pytest.raises(ConfigError, match='requires pytorch_grad_cam.* Run pip install'):
        grad_cam(classifier, torch.randn(1, 3, 64, 64), [1])


def test_plot_has_a_row_per_image_and_a_column_per_stage():
    images, maps = torch.rand(2, 3, 32, 32), [torch.rand(2, 32, 32)] * 3
    figure = plot_grad_cams(images, maps, ['cat (90%)', 'dog (80%)'])
    assert len(figure.axes) == 2 * 4
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == ['cat (90%)', 'stage 1', 'stage 2', 'stage 3']
    shown = figure.axes[5].images[1].get_array()
    torch.testing.assert_close(torch.as_tensor(shown.data), maps[0][1])


@pytest.mark.parametrize(('channels', 'mode'), [(1, 'L'), (3, 'RGB'), (4, 'RGBA')])
def test_command_loads_images_with_any_number_of_channels_by_the_pipeline_of_the_config(
    channels, mode, tmp_path, monkeypatch, own_loading
):
    shape = (112, 112, channels)  # the size of the config, which resizes nothing then
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels.squeeze()).save(tmp_path / 'image.png')
    color_type = {1: 'grayscale', 3: 'color', 4: 'unchanged'}[channels]
    cfg = save_model(
        'evit_m0_digits',
        tmp_path / 'model.pth',
        model__backbone__arch=dict(TINY, _delete_=True),
        model__backbone__in_channels=channels,
        model__head__in_channels=32,
        data_preprocessor__mean=[100.0] * channels,
        data_preprocessor__std=[50.0] * channels,
        data_preprocessor__to_rgb=False,
        test_dataloader__dataset__pipeline=[
            dict(type='LoadImageFromFile', color_type=color_type),
            dict(type='Resize', scale=(112, 112)),
            dict(type='PackInputs'),
        ],
    )
    cfg.dump(tmp_path / 'config.py')
    monkeypatch.setattr(DefaultScope, '_instance_dict', OrderedDict())  # as in a new process
    seen = {}

    def spy(classifier, inputs, stages):
        seen.update(classifier=classifier, inputs=inputs)
        return grad_cam(classifier, inputs, stages)

    monkeypatch.setattr(command, 'grad_cam', spy)
    paths = [str(tmp_path / name) for name in ('config.py', 'model.pth', 'image.png')]
    command.main([*paths, '--out', str(tmp_path / 'maps.png')])
    assert (tmp_path / 'maps.png').is_file()

    # OpenCV has blue first, and alpha last.
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    images = torch.tensor(pixels[..., order]).permute(2, 0, 1)[None].float()
    torch.testing.assert_close(seen['inputs'], (images - 100) / 50)
    shown = command.plain_images(seen['classifier'], seen['inputs'])
    images = torch.tensor(pixels).permute(2, 0, 1)[None] / 255
    if channels != 3:
        images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(shown, images)
