import json
import pickle
from argparse import Namespace

import numpy as np
import onnx
import pytest
import torch
from making_models import build_model, save_model
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from mmevit.cli.export import choose_axes, infer_size, main, make_metadata
from mmevit.datasets.sampling import find_test_pipeline
from mmevit.deploy import load_exported
from mmevit.deploy.evaluation import use_exported_model
from mmevit.deploy.networks import Network
from mmevit.runtime import Predictor
from mmevit.utils.configs import build_model as build_from_config
from mmevit.utils.configs import find_step
from mmevit.utils.errors import ConfigError, UserError

DETECTOR = 'configs/retinanet_evit_m4_digits.py'


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    path = tmp_path_factory.mktemp('detector') / 'model.pth'
    save_model('retinanet_evit_m4_digits', path)
    return path


@pytest.fixture
def evaluate(run_tool, tmp_path):
    """What tools/test.py writes, by default the predictions."""

    def run(config, weights, *flags, item='pred'):
        path = tmp_path / 'written.pkl'
        out = ('--out', path, '--out-item', item, '--work-dir', tmp_path / 'work')
        result = run_tool('tools/test.py', config, weights, *out, *flags)
        assert result.returncode == 0, result.stdout
        return pickle.loads(path.read_bytes())

    return run


@pytest.fixture
def export(own_loading):
    """Run the command in this process, which has imported what takes time."""

    return lambda *arguments: main([*map(str, arguments)])


@pytest.fixture(scope='module')
def torchscript(classifier, tmp_path_factory, run_tool):
    path = tmp_path_factory.mktemp('exported') / 'model.torchscript'
    result = run_tool('tools/export.py', *classifier, '--to', 'torchscript', '--out', path)
    assert result.returncode == 0, result.stdout
    assert 'Largest difference from PyTorch: ' in result.stdout
    return path


def assert_same_predictions(found, expected):
    ours, theirs = (torch.stack([one['pred_score'] for one in each]) for each in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert theirs.std(0).max() > 2e-5  # they differ from image to image


def test_exported_classifier_has_the_predictions_of_its_checkpoint(
    classifier, torchscript, evaluate
):
    assert_same_predictions(evaluate(classifier[0], torchscript), evaluate(*classifier, '--deploy'))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('target', 'suffix'),
    [
        ('onnx', 'onnx'),
        ('openvino', 'xml'),
        ('litert', 'tflite'),
        ('executorch', 'pte'),
        ('ncnn', 'param'),
    ],
)
def test_targets_have_the_predictions_of_the_checkpoint(
    target, suffix, classifier, export, evaluate, tmp_path
):
    file = tmp_path / f'model.{suffix}'
    export(*classifier, '--to', target, '--out', file)
    assert_same_predictions(evaluate(classifier[0], file), evaluate(*classifier))


@pytest.mark.slow
def test_exported_detector_has_the_metrics_of_its_checkpoint_and_metadata(
    detector, digits, export, evaluate, tmp_path
):
    file = tmp_path / 'model.onnx'
    export(DETECTOR, detector, '--out', file)
    options = [
        *('--cfg-options', f'test_dataloader.dataset.data_root={digits}'),
        f'test_evaluator.ann_file={digits}/annotations/instances_val.json',
    ]
    checkpoint, exported = (
        evaluate(DETECTOR, path, *options, item='metrics') for path in (detector, file)
    )
    assert exported == pytest.approx(checkpoint, abs=1e-3)

    (item,) = onnx.load(file).metadata_props
    metadata = json.loads(item.value)
    assert metadata['task'] == 'detection'
    assert metadata['classes'] == [str(digit) for digit in range(10)]
    assert metadata['input']['mean'] == [123.675, 116.28, 103.53]
    assert metadata['input']['channels'] == 'RGB'
    assert metadata['input']['pipeline'][1]['type'] == 'Resize'


def test_mixed_precision_folding_and_other_sizes_are_refused_for_exported_files(
    classifier, torchscript, refuse, run_tool, tmp_path
):
    command = (classifier[0], torchscript, '--work-dir', tmp_path)
    for flag in ('--amp', '--deploy'):
        sentence = refuse('test', *command, flag)
        assert '--amp, --deploy and --launcher are not supported for exported files' in sentence
    scale = 'test_dataloader.dataset.pipeline.1.scale=40'
    result = run_tool('tools/test.py', *command, '--cfg-options', scale)
    assert result.returncode == 1
    message = 'The images have 40x40 pixels, but the file was exported for 112x112'
    assert message in result.stdout.splitlines()[-1]


def test_file_that_differs_does_not_replace_the_previous_one(
    classifier, tmp_path, refuse, monkeypatch
):
    monkeypatch.setattr('mmevit.cli.export.compare', lambda *_: 1.0)
    file = tmp_path / 'model.torchscript'
    file.write_text('the one before')
    sentence = refuse('export', *classifier, '--to', 'torchscript', '--out', file)
    assert 'was not written, since its outputs differ from PyTorch by' in sentence
    assert [path.name for path in tmp_path.iterdir()] == ['model.torchscript']
    assert file.read_text() == 'the one before'


def test_file_with_nan_outputs_is_refused(classifier, tmp_path, refuse, monkeypatch):
    # A finite difference for the first images does not hide NaN for the larger ones.
    differences = iter([0.0, float('nan')])
    monkeypatch.setattr('mmevit.cli.export.compare', lambda *_: next(differences))
    file = tmp_path / 'model.torchscript'
    sentence = refuse('export', *classifier, '--to', 'torchscript', '--out', file)
    assert 'not written, since its outputs are NaN' in sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('channels', 'order'), [(1, 'GRAY'), (4, None)])
def test_other_numbers_of_channels(channels, order, classifier, export, tmp_path):
    config, checkpoint, file = (tmp_path / f'model.{end}' for end in ('py', 'pth', 'torchscript'))
    cfg = Config.fromfile(classifier[0])
    cfg.model.backbone.in_channels = channels
    cfg.model.data_preprocessor.update(mean=[100.0] * channels, std=[50.0] * channels)
    cfg.dump(config)
    torch.save(build_model(cfg).state_dict(), checkpoint)
    export(config, checkpoint, '--to', 'torchscript', '--out', file)
    metadata = load_exported(file).metadata['input']
    assert metadata['shape'] == [None, channels, 112, 112]
    assert metadata['channels'] == order
    assert metadata['mean'] == [100.0] * channels


@pytest.fixture
def make_timm(classifier, tmp_path):
    """Write the config of a classifier of timm, and its checkpoint."""
    pytest.importorskip('timm')

    def make(name, **settings):
        cfg = Config.fromfile(classifier[0])
        common = dict(num_classes=10, data_preprocessor=cfg.model.data_preprocessor)
        cfg.model = dict(type='TimmClassifier', model_name=name, **common, **settings)
        config, checkpoint = tmp_path / 'model.py', tmp_path / 'model.pth'
        cfg.dump(config)
        model = build_from_config(cfg).eval()
        torch.save(model.state_dict(), checkpoint)
        return cfg, config, checkpoint, model

    return make


def test_classifiers_without_backbone(make_timm, export, refuse, tmp_path):
    cfg, config, checkpoint, model = make_timm('mobilenetv3_small_050')
    file = tmp_path / 'model.torchscript'
    sentence = refuse('export', config, checkpoint, '--part', 'backbone')
    assert 'TimmClassifier has no backbone. Give --part model.' in sentence
    export(config, checkpoint, '--to', 'torchscript', '--out', file)
    use_exported_model(cfg, file)
    exported, images = build_from_config(cfg), torch.rand(2, 3, 112, 112)
    for found, wanted in zip(exported(images), model.predict(images), strict=True):
        torch.testing.assert_close(found.pred_score, wanted.pred_score)


def test_models_of_one_size_are_exported_for_it(make_timm, export, refuse, tmp_path):
    sizes = dict(img_size=64, embed_dim=32, depth=1, num_heads=2)
    _, config, checkpoint, _ = make_timm('deit_tiny_patch16_224', **sizes)
    file = tmp_path / 'model.torchscript'
    options = ('--to', 'torchscript', '--out', file)
    export(config, checkpoint, *options, '--size', 64)
    assert load_exported(file).metadata['input']['shape'] == [None, 3, 64, 64]
    sentence = refuse('export', config, checkpoint, *options, '--size', 96)
    assert 'The model does not support images of 96x96 pixels (' in sentence


@pytest.mark.parametrize(('size', 'fits'), [(48, True), (64, False)])
def test_images_that_the_pipeline_does_not_resize_calibrate_int8(
    size, fits, classifier, export, refuse, tmp_path
):
    cfg = Config.fromfile(classifier[0])
    load, *_, pack = find_test_pipeline(cfg)
    cfg.test_dataloader.dataset.pipeline = [load, dict(type='ResizeEdge', scale=48), pack]
    config, file = tmp_path / 'model.py', tmp_path / 'model.onnx'
    cfg.dump(config)
    options = (config, classifier[1], '--out', file, '--dtype', 'int8', '--size', size)
    options += ('--calibration-images', 2)
    if fits:
        export(*options)
        assert load_exported(file)(torch.rand(1, 3, 48, 48))[0].shape == (1, 10)
    else:
        sentence = refuse('export', *options)
        assert '--size is 64x64, but the calibration images of the test pipeline have 48x48' in (
            sentence
        )
    sentence = refuse('export', config, classifier[1])
    assert 'The test pipeline does not set the image size. Give --size.' in sentence


def test_native_code_is_not_evaluated_unless_trusted(tmp_path):
    (tmp_path / 'model.pt2').write_bytes(b'native code')
    cfg = Config.fromfile('configs/evit_m0_digits.py')
    with pytest.raises(UserError, match=r'model\.pt2 contains native code'):
        use_exported_model(cfg, tmp_path / 'model.pt2')
    with pytest.raises(UserError, match=r'model\.pt2 cannot be loaded'):
        use_exported_model(cfg, tmp_path / 'model.pt2', trust=True)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['--to', 'aoti'],
            'aoti does not support detection. Use onnx or openvino or litert or executorch or',
        ),
        (['--dtype', 'int8'], 'The train data is incomplete'),
        (['--to', 'coreml', '--dtype', 'int8'], 'coreml does not support int8. Choose from'),
        (['--out', 'model.pt'], 'model.pt must end in .onnx'),
        (['--size', '16'], 'The images have 16x16 pixels, but exported files need 32x32 or more'),
        (['--size', '0'], '--size requires a side, or a height and a width'),
        (['--batch-size', '0'], '--batch-size: 0 is not an integer above 0'),
        (['--cfg-options', 'test_dataloader=None'], 'missing test_dataloader'),
        (
            ['--cfg-options', 'test_dataloader.dataset=None'],
            'Incomplete config: test_dataloader has no dataset.',
        ),
        (
            ['--cfg-options', 'test_dataloader.dataset.pipeline=None'],
            'Incomplete config: the data set of test_dataloader has no pipeline.',
        ),
        (
            ['--cfg-options', 'model.backbone.in_channels=1'],
            'mean has 3 values, but model.backbone.in_channels is 1',
        ),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_invalid_exports_are_refused_in_one_line(arguments, message, detector, refuse):
    options = ['--cfg-options', 'train_dataloader.dataset.data_root=nowhere']
    options = [] if '--cfg-options' in arguments else options
    assert message in refuse('export', DETECTOR, detector, *arguments, *options)


@pytest.mark.slow
def test_detector_of_a_fixed_size_is_calibrated_and_evaluated_in_int8(
    detector, digits, export, evaluate, tmp_path
):
    data = [f'{split}_dataloader.dataset.data_root={digits}' for split in ('train', 'test')]
    options = ('--dtype', 'int8', '--calibration-images', 8, '--dynamic', 'none')
    file = tmp_path / 'model.onnx'
    export(DETECTOR, detector, *options, '--out', file, '--cfg-options', *data)
    operators = [node.op_type for node in onnx.load(file).graph.node]
    assert operators.count('QuantizeLinear') > 20
    flags = f'test_evaluator.ann_file={digits}/annotations/instances_val.json'
    metrics = evaluate(DETECTOR, file, '--cfg-options', data[1], flags, item='metrics')
    assert 'coco/bbox_mAP' in metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    ('target', 'suffix', 'library'),
    [('litert', 'tflite', 'litert_torch'), ('executorch', 'pte', 'executorch')],
)
def test_detector_for_phones_predicts_what_it_does_in_onnx(
    target, suffix, library, detector, digits, export, tmp_path
):
    pytest.importorskip(library)
    images = sorted((digits / 'val').glob('*.png'))[:3]
    found = []
    for name, ending in (('onnx', 'onnx'), (target, suffix)):
        file = tmp_path / f'model.{ending}'
        export(DETECTOR, detector, '--to', name, '--dynamic', 'none', '--out', file)
        found.append(Predictor(file)(images))
    for own, other in zip(*found, strict=True):
        assert len(own.boxes) == len(other.boxes) > 5
        # Detections with almost equal scores may change places.
        distances = np.abs(own.boxes[:, None] - other.boxes).max(axis=2)
        distances[own.labels[:, None] != other.labels] = np.inf
        assert distances.min(axis=1).max() < 0.01
        partners = distances.argmin(axis=1)
        assert len(set(partners)) == len(partners)
        np.testing.assert_allclose(own.scores, other.scores[partners], atol=1e-4)


@pytest.mark.slow
def test_int8_is_calibrated_and_evaluated(classifier, export, evaluate, tmp_path):
    file = tmp_path / 'int8.onnx'
    batch = ('--dynamic', 'none', '--batch-size', 2)
    export(*classifier, '--dtype', 'int8', '--calibration-images', 10, *batch, '--out', file)
    operators = [node.op_type for node in onnx.load(file).graph.node]
    assert operators.count('QuantizeLinear') > 20
    assert 'accuracy/top1' in evaluate(classifier[0], file, item='metrics')


def test_backbone_cannot_be_evaluated(classifier, export, tmp_path):
    file = tmp_path / 'backbone.torchscript'
    export(*classifier, '--to', 'torchscript', '--part', 'backbone', '--out', file)
    message = 'was exported for features, but the config is for mmpretrain'
    with pytest.raises(UserError, match=message):
        use_exported_model(Config.fromfile(classifier[0]), file)


def describe(config, checkpoint=None, **preprocessor):
    """The metadata of a file of a config, some settings of whose data preprocessor are changed."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    cfg.model.data_preprocessor.update(preprocessor)
    args = Namespace(part='model', config='x.py', checkpoint='none.pth')
    network = Network(nn.Identity(), 'classification', ('logits',))
    return make_metadata(args, cfg, network, checkpoint or {}, [None, 3, 32, 32], divisor=32)


@pytest.mark.parametrize('name', ['evit_m0_digits', 'evit_m0_cifar10'])
def test_channels_are_rgb_with_and_without_files(name):
    """mmpretrain reads files as BGR, but its CIFAR images are RGB and not swapped."""
    metadata = describe(f'configs/{name}.py')
    assert metadata['input']['channels'] == 'RGB'
    assert metadata['format'] == 1 and metadata['model'] == 'ImageClassifier'


def test_both_names_of_swapping_channels_are_known():
    swap = dict(bgr_to_rgb=False, rgb_to_bgr=True)
    assert describe(DETECTOR, **swap)['input']['channels'] == 'RGB'
    assert describe(DETECTOR, bgr_to_rgb=False)['input']['channels'] == 'BGR'


def test_padding_of_segmentors_is_that_of_testing_and_of_the_network():
    config = 'configs/semantic-fpn_evit_m4_digits.py'
    padding = dict(size=(512, 512), test_cfg=dict(size_divisor=24))
    assert describe(config, **padding)['input']['pad_size_divisor'] == 96
    with pytest.raises(UserError, match=r'test_cfg\.size is not supported'):
        describe(config, test_cfg=dict(size=(64, 64)))


@pytest.mark.parametrize(
    ('padding', 'size'),
    [
        (dict(test_cfg=dict(size_divisor=32)), (320, 512)),
        (dict(test_cfg=dict(size_divisor=None)), (300, 500)),
        (dict(pad_size_divisor=16), (304, 512)),
    ],
    ids=str,
)
def test_inferred_size_is_that_of_padded_images(padding, size):
    cfg = Config.fromfile('configs/semantic-fpn_evit_m4_digits.py')
    find_step(find_test_pipeline(cfg), 'Resize').scale = (500, 300)
    cfg.model.data_preprocessor.update(padding)
    assert infer_size(cfg) == size


def test_classes_are_those_of_the_checkpoint_or_of_the_config():
    assert describe(DETECTOR)['classes'] == tuple('0123456789')
    checkpoint = dict(meta=dict(dataset_meta=dict(classes=('a', 'b'))))
    assert describe(DETECTOR, checkpoint)['classes'] == ('a', 'b')


def test_dense_models_are_not_exported_to_coreml():
    network = Network(None, 'detection', ())
    assert choose_axes(Namespace(to='ncnn', dynamic=None), network) == {'batch'}
    with pytest.raises(ConfigError, match='coreml does not support detection. Use onnx or'):
        choose_axes(Namespace(to='coreml', dynamic=None), network)
