import pickle
import re
from pathlib import Path

import pytest
import timm
import torch
from making_datasets import ORIENTATION, make_imagenet
from PIL import Image
from torch.nn.modules.batchnorm import _BatchNorm

NUM_IMAGES = 70
# The label of an image is the class that timm ranks so, by turns: the first is a hit for top-1,
# all but the last are for top-5.
RANKS = (0, 1, 2, 3, 4, 8, 20)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """ImageNet with validation images of many shapes and kinds."""
    root = tmp_path_factory.mktemp('sets') / 'imagenet'
    make_imagenet(root, num_val=NUM_IMAGES, sides=(151, 480))
    return root


def image_paths(root):
    return sorted(root.glob('val/*/*.JPEG'))


def test_the_images_are_of_the_kinds_that_loaders_differ_on(images):
    opened = [Image.open(path) for path in image_paths(images)]
    assert len(opened) == NUM_IMAGES
    assert {image.mode for image in opened} == {'RGB', 'L', 'CMYK'}
    assert any(image.getexif().get(ORIENTATION) == 6 for image in opened)
    widths_and_heights = {image.size for image in opened}
    assert sum(width < height for width, height in widths_and_heights) > NUM_IMAGES // 4
    assert sum(width > height for width, height in widths_and_heights) > NUM_IMAGES // 4
    assert any(min(size) < 224 for size in widths_and_heights)
    assert len(widths_and_heights) > 0.9 * NUM_IMAGES


def load_batches(model, paths):
    """Load images as timm evaluates this model on them."""
    settings = timm.data.resolve_model_data_config(model)
    assert settings['input_size'] == (3, 224, 224) and settings['crop_pct'] == 0.875
    assert settings['interpolation'] == 'bicubic'
    transform = timm.data.create_transform(**settings)
    inputs = torch.stack([transform(Image.open(path).convert('RGB')) for path in paths])
    return inputs.split(35)


def make_model(arch):
    """Make timm's model with random weights whose scores differ from image to image."""
    torch.manual_seed(int(arch[1]))
    model = timm.create_model(f'efficientvit_{arch}')
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1.0  # one step is enough
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
    for name, weight in model.named_parameters():
        if name.endswith('attention_biases'):
            torch.nn.init.normal_(weight)
    torch.nn.init.normal_(model.head.linear.weight, std=0.2)
    torch.nn.init.normal_(model.head.linear.bias, std=0.2)
    return model


@torch.no_grad()
def score(model, batches):
    """Score images after a step of training has set the running statistics to theirs."""
    model.train()(batches[0])
    model.eval()
    return torch.cat([model(batch) for batch in batches])


def write_labels(root, paths, scores):
    """Label the images by classes of known ranks, in the file that ImageNet's loaders read."""
    ranked = scores.argsort(descending=True)
    lines = [
        f'{path.relative_to(root / "val")} {int(ranked[i, RANKS[i % len(RANKS)]])}\n'
        for i, path in enumerate(paths)
    ]
    Path(root, 'meta').mkdir(exist_ok=True)
    Path(root, 'meta/val.txt').write_text(''.join(lines))


@pytest.mark.parametrize(
    ('arch', 'is_converted'), [('m0', True), pytest.param('m2', False, marks=pytest.mark.slow)]
)
def test_predictions_of_random_weights_are_timms_on_every_image(
    arch, is_converted, images, tmp_path, run_tool
):
    paths = image_paths(images)
    model = make_model(arch)
    scores = score(model, load_batches(model, paths)).softmax(1)
    assert len(scores.argmax(1).unique()) >= 20  # else equal predictions would mean little
    write_labels(images, paths, scores)
    torch.save(model.state_dict(), tmp_path / 'timm.pth')
    checkpoint = f'evit://{tmp_path}/timm.pth'
    if is_converted:
        checkpoint = tmp_path / 'converted.pth'
        conversion = ('tools/convert_checkpoint.py', tmp_path / 'timm.pth', checkpoint)
        result = run_tool(*conversion, '--to', 'mmevit')
        assert result.returncode == 0, result.stdout

    result = run_tool(
        'tools/test.py',
        f'configs/evit_{arch}_in1k.py',
        checkpoint,
        '--work-dir',
        tmp_path / 'work',
        '--out',
        tmp_path / 'predictions.pkl',
        '--cfg-options',
        f'test_dataloader.dataset.data_root={images}',
        'test_dataloader.num_workers=0',
    )
    assert result.returncode == 0, result.stdout
    predictions = pickle.loads((tmp_path / 'predictions.pkl').read_bytes())
    found = {prediction['img_path']: prediction['pred_score'] for prediction in predictions}
    assert set(found) == {str(path) for path in paths}
    found = torch.stack([found[str(path)] for path in paths])
    differ = [
        path.name
        for path, ours, timms in zip(paths, found.argmax(1), scores.argmax(1), strict=True)
        if ours != timms
    ]
    assert not differ
    torch.testing.assert_close(found, scores, rtol=0, atol=1e-4)

    hits = [sum(RANKS[i % len(RANKS)] < k for i in range(NUM_IMAGES)) for k in (1, 5)]
    printed = [float(p) for p in re.findall(r'accuracy/top[15]: ([\d.]+)', result.stdout)]
    assert printed == [pytest.approx(100 * count / NUM_IMAGES, abs=1e-3) for count in hits]
