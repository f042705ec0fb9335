"""Plot Grad-CAM maps of a classifier on some images, stage by stage."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import cv2
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope

from mmevit.analysis import grad_cam, plot_grad_cams
from mmevit.apis.inference import load_classifier
from mmevit.checkpoint.loader import check_checkpoint
from mmevit.cli.arguments import add_config_arguments, argument, command, ends_in
from mmevit.datasets.sampling import find_test_pipeline
from mmevit.utils.configs import read_config, type_name
from mmevit.utils.errors import ConfigError
from mmevit.utils.files import PICTURES, atomic_write


@command(
    argument('config', 'config file of a classifier'),
    argument('checkpoint', 'checkpoint file'),
    argument('images', 'image files', nargs='+', metavar='IMAGE'),
    argument('--out', 'picture to write', type=ends_in(*PICTURES), default='grad_cam.png'),
    add_config_arguments,
)
def main(args: Namespace) -> None:
    """Plot one row per image."""
    check_checkpoint(args.checkpoint)
    cfg = read_config(args.config, args.cfg_options)
    backbone = cfg.get('model', {}).get('backbone', {})
    if type_name(backbone) != 'EfficientViT' or cfg.get('default_scope') != 'mmpretrain':
        raise ConfigError(
            f'{args.config} is not an EfficientViT classifier. '
            'Pass a config such as evit_m0_in1k.py.'
        )
    inferencer = load_classifier(cfg, args.checkpoint)
    classifier = inferencer.model
    # The pipeline of the config, since that of the inferencer always loads three channels.
    init_default_scope('mmpretrain')
    pipeline = Compose(find_test_pipeline(cfg))
    inputs = torch.cat([preprocess(pipeline, classifier, image) for image in args.images])
    maps, logits = grad_cam(classifier, inputs, range(len(classifier.backbone.stages)))
    titles = [describe(inferencer.classes, image_logits) for image_logits in logits]
    figure = plot_grad_cams(plain_images(classifier, inputs), maps, titles)
    with atomic_write(args.out) as path:
        figure.savefig(path, dpi=120)
    print(f'Grad-CAM maps of {len(inputs)} images: {args.out}')


def preprocess(pipeline: Compose, classifier: Any, image: str) -> torch.Tensor:
    """Load and preprocess an image file, (1, C, H, W)."""
    try:
        data = pipeline(dict(img_path=image))
    # mmcv asserts that OpenCV has decoded an image.
    except (OSError, ValueError, AssertionError, cv2.error) as error:
        raise ConfigError(f'Cannot read the image {image} ({type(error).__name__}).') from error
    return classifier.data_preprocessor(pseudo_collate([data]))['inputs']


def describe(classes: Sequence[str] | None, logits: torch.Tensor) -> str:
    """Format the predicted class and its probability."""
    probability, label = logits.softmax(0).max(0)
    return f'{classes[int(label)] if classes else int(label)} ({probability:.0%})'


def plain_images(classifier: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Undo the normalization: RGB from 0 to 1, (N, 3, H, W); gray unless there are 3 channels."""
    preprocessor = classifier.data_preprocessor
    # A preprocessor without normalization has neither.
    std, mean = getattr(preprocessor, 'std', 1), getattr(preprocessor, 'mean', 0)
    images = (inputs * std + mean) / 255
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return images if preprocessor.to_rgb else images.flip(1)
