"""One-stage instance segmentation: exported files against the library's own predictions."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from dense_models import SIZES, check_boxes, check_image_masks, make_model, predict
from marking import slow_but

from mmevit.deploy import export, load_exported
from mmevit.deploy.networks import make_exportable

# Means and standard deviations of the outputs of layers, over the pixels of structured images.
CLASSES, SIDES, FEATURES = (-4, 1.5), (4, 1), (0, 1)
MODELS = {
    'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py': dict(
        rtm_cls=CLASSES, rtm_reg=SIDES, rtm_kernel=(0, 0.5), projection=FEATURES
    ),
    'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py': dict(
        conv_cls=CLASSES, conv_reg=SIDES, controller=(0, 0.5), conv_pred=FEATURES
    ),
    'mmdet::yolact/yolact_r50_1xb8-55e_coco.py': dict(
        conv_cls=(0, 2.5), conv_reg=(0, 1), conv_coeff=(0, 1)
    ),
    'mmdet::solov2/solov2_r50_fpn_1x_coco.py': dict(conv_cls=(-7, 1.5), conv_kernel=(0, 0.1)),
}
# What saves time in a head.
SMALLER = {'solov2_r50_fpn_1x_coco': dict(model__mask_head__feat_channels=64)}


@torch.no_grad()
def spread_outputs(model, images, statistics):
    """Set the mean and the standard deviation of what layers return, for each channel."""

    def rescale(layer, inputs, output, mean, std):
        values = (output - layer.bias[:, None, None]).transpose(0, 1).flatten(1)
        # To spread channels that hardly vary would amplify rounding.
        spread = torch.maximum(values.std(dim=1), values.mean(dim=1).abs() / 1e3)
        layer.weight.mul_((std / spread)[:, None, None, None])
        layer.bias.copy_(mean - values.mean(dim=1) * std / spread)
        hooks.pop(layer).remove()  # Other levels share it.
        return layer.forward(*inputs)

    hooks = {}
    for name, layer in model.named_modules():
        for part in set(name.split('.')) & set(statistics):
            if isinstance(layer, torch.nn.Conv2d):
                mean, std = statistics[part]
                hooks[layer] = layer.register_forward_hook(
                    lambda *results, mean=mean, std=std: rescale(*results, mean, std)
                )
    assert hooks
    predict(model, images, [images.shape[2:]] * len(images))
    assert not hooks


def make_images(count, height, width):
    """Make squares of noise, whose features differ more than those of pixels of noise."""
    images = F.interpolate(torch.randn(count, 3, height // 16, width // 16), (height, width))
    return images + 0.2 * torch.randn(count, 3, height, width)


@pytest.mark.parametrize(
    'name', slow_but(list(MODELS)[:1], MODELS), ids=lambda name: Path(name).stem
)
def test_exported_masks_match_the_librarys_predictions(name, tmp_path):
    model = make_model(name, tmp_path, **SMALLER.get(Path(name).stem, {}))
    images, sizes = make_images(2, 160, 224), torch.tensor(SIZES).float()
    spread_outputs(model, images, MODELS[name])
    network = make_exportable(model)
    assert network.metadata['masks']['kind'] == 'image'
    threshold = network.metadata['masks']['threshold']

    def check(outputs, expected, shape):
        check_boxes(outputs, expected)
        check_image_masks(outputs, expected, threshold, shape)

    expected = predict(model, images, SIZES)
    with torch.no_grad():
        check(network(images, sizes), expected, (160, 224))

    example = torch.rand(1, 3, 64, 64), torch.tensor([[64.0, 64.0]])
    path = tmp_path / 'model.onnx'
    export(network, example, path, 'onnx', ('batch', 'size'))
    session = load_exported(path)
    check(session(images, sizes), expected, (160, 224))
    images = make_images(1, 96, 128)
    expected = predict(model, images, [(96, 120)])
    check(session(images, torch.tensor([[96.0, 120.0]])), expected, (96, 128))
