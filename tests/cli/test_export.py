import json

import onnx
import pytest
from making_models import save_model
from mmengine.config import Config

from mmevit.cli.export import TOLERANCES, main
from mmevit.deploy import load_exported
from mmevit.deploy.evaluation import evaluate_exported
from mmevit.utils.errors import UserError


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp('classifier') / 'model.pth'
    save_model('evit_m0_digits', path)
    return path


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    path = tmp_path_factory.mktemp('detector') / 'model.pth'
    save_model('retinanet_evit_m4_digits', path)
    return path


def evaluate(run_tool, folder, config, weights, digits, *flags):
    """The metrics that tools/test.py writes."""
    if config.startswith('evit'):
        options = [f'test_dataloader.dataset.data_root={digits}/classification/val']
    else:
        options = [
            f'test_dataloader.dataset.data_root={digits}',
            f'test_evaluator.ann_file={digits}/annotations/instances_val.json',
        ]
    path = folder / 'metrics.json'
    flags = ['--out', path, '--out-item', 'metrics', '--work-dir', folder / 'work', *flags]
    config = f'configs/{config}.py'
    result = run_tool('tools/test.py', config, weights, *flags, '--cfg-options', *options)
    assert result.returncode == 0, result.stdout
    return json.loads(path.read_text())


def export(run_tool, *arguments):
    """What tools/export.py prints."""
    result = run_tool('tools/export.py', *arguments)
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.parametrize('target', ['onnx', pytest.param('openvino', marks=pytest.mark.slow)])
def test_exported_classifier_has_the_metrics_of_its_checkpoint(
    target, classifier, digits, run_tool, tmp_path
):
    config, file = 'evit_m0_digits', tmp_path / f'model.{dict(openvino="xml").get(target, target)}'
    output = export(run_tool, f'configs/{config}.py', classifier, '--to', target, '--out', file)
    assert 'Largest difference from PyTorch: ' in output
    metrics = [
        evaluate(run_tool, tmp_path, config, weights, digits, *flags)
        for weights, flags in ((classifier, ()), (classifier, ('--deploy',)), (file, ()))
    ]
    assert metrics[0] == metrics[1] == metrics[2]


@pytest.mark.slow
def test_exported_detector_has_the_metrics_of_its_checkpoint_and_metadata(
    detector, digits, run_tool, tmp_path
):
    config, file = 'retinanet_evit_m4_digits', tmp_path / 'model.onnx'
    export(run_tool, f'configs/{config}.py', detector, '--out', file)
    checkpoint, exported = (
        evaluate(run_tool, tmp_path, config, weights, digits) for weights in (detector, file)
    )
    assert exported == pytest.approx(checkpoint, abs=1e-3)

    (item,) = onnx.load(file).metadata_props
    metadata = json.loads(item.value)
    assert metadata['task'] == 'detection'
    assert metadata['classes'] == [str(digit) for digit in range(10)]
    assert metadata['input']['mean'] == [123.675, 116.28, 103.53]
    assert metadata['input']['channels'] == 'RGB'
    assert metadata['input']['pipeline'][1]['type'] == 'Resize'


@pytest.mark.parametrize(
    ('flags', 'scale', 'message'),
    [
        (['--deploy'], 112, '--deploy and --launcher are not supported for exported files'),
        ([], 40, 'The images have 40x40 pixels, but the file was exported for 112x112'),
    ],
    ids=['deploy', 'size'],
)
def test_invalid_evaluations_are_refused(
    flags, scale, message, classifier, digits, run_tool, tmp_path
):
    file, config = tmp_path / 'model.torchscript', 'configs/evit_m0_digits.py'
    export(run_tool, config, classifier, '--to', 'torchscript', '--out', file)
    options = [
        f'test_dataloader.dataset.data_root={digits}/classification/val',
        f'test_dataloader.dataset.pipeline.1.scale={scale}',
    ]
    work = ('--work-dir', tmp_path / 'work')
    result = run_tool('tools/test.py', config, file, *flags, *work, '--cfg-options', *options)
    assert result.returncode == 1 and message in result.stdout.splitlines()[-1]


@pytest.fixture
def run_export(monkeypatch, own_loading):
    """Run the command in this process, which has imported what takes time."""

    def run(*arguments, tolerances={}):
        for dtype, tolerance in tolerances.items():
            monkeypatch.setitem(TOLERANCES, dtype, tolerance)
        main([*map(str, arguments)])

    return run


def test_file_that_differs_does_not_replace_the_previous_one(classifier, tmp_path, run_export):
    file = tmp_path / 'model.torchscript'
    file.write_text('the one before')
    arguments = ['configs/evit_m0_digits.py', classifier, '--to', 'torchscript', '--out', file]
    with pytest.raises(
        SystemExit, match='was not written, since its outputs differ from PyTorch by'
    ):
        run_export(*arguments, tolerances=dict(float32=-1))
    assert [path.name for path in tmp_path.iterdir()] == ['model.torchscript']
    assert file.read_text() == 'the one before'


def test_file_with_nan_outputs_is_refused_without_a_tolerance_too(
    classifier, tmp_path, run_export, monkeypatch
):
    monkeypatch.setattr('mmevit.cli.export.compare', lambda *_: float('nan'))
    monkeypatch.delitem(TOLERANCES, 'float32')  # as for int8
    arguments = ['configs/evit_m0_digits.py', classifier, '--to', 'torchscript']
    with pytest.raises(SystemExit, match='not written, since its outputs are NaN'):
        run_export(*arguments, '--out', tmp_path / 'model.torchscript')
    assert not list(tmp_path.iterdir())


@pytest.fixture
def save_classifier(tmp_path):
    """Make a checkpoint, and the options of the config, of images of other channels than three."""

    def save(channels):
        options = {
            'model.backbone.in_channels': channels,
            'data_preprocessor.mean': [100.0] * channels,
            'data_preprocessor.std': [50.0] * channels,
        }
        names = {name.replace('.', '__'): value for name, value in options.items()}
        save_model('evit_m0_digits', tmp_path / 'model.pth', **names)
        texts = [f'{name}={value}'.replace(' ', '') for name, value in options.items()]
        return tmp_path / 'model.pth', ['--cfg-options', *texts]

    return save


@pytest.mark.parametrize(('channels', 'order'), [(1, 'GRAY'), (4, None)])
def test_other_numbers_of_channels(channels, order, save_classifier, run_export, tmp_path):
    checkpoint, options = save_classifier(channels)
    file = tmp_path / 'model.torchscript'
    arguments = ['configs/evit_m0_digits.py', checkpoint, '--to', 'torchscript', '--out', file]
    run_export(*arguments, *options)
    metadata = load_exported(file).metadata['input']
    assert metadata['shape'] == [None, channels, 112, 112]
    assert metadata['channels'] == order
    assert metadata['mean'] == [100.0] * channels


def test_mean_of_wrong_length_is_refused(save_classifier, run_export):
    checkpoint, options = save_classifier(1)
    options[2] = 'data_preprocessor.mean=[100.0,100.0,100.0]'
    with pytest.raises(SystemExit, match='mean has 3 values, but model.backbone.in_channels is 1'):
        run_export('configs/evit_m0_digits.py', checkpoint, *options)


def test_native_code_is_not_evaluated_unless_trusted(tmp_path):
    (tmp_path / 'model.pt2').write_bytes(b'native code')
    cfg = Config.fromfile('configs/evit_m0_digits.py')
    with pytest.raises(UserError, match=r'model\.pt2 contains native code'):
        evaluate_exported(cfg, tmp_path / 'model.pt2')
    with pytest.raises(UserError, match=r'model\.pt2 cannot be loaded'):
        evaluate_exported(cfg, tmp_path / 'model.pt2', trust=True)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--to', 'aoti'], 'Detectors can be exported to onnx and openvino only. For aoti give'),
        (['--dtype', 'int8'], 'The train data is incomplete'),
        (['--out', 'model.pt'], 'model.pt must end in .onnx'),
        (['--size', '16'], 'The images have 16x16 pixels, but exported files need 32x32 or more'),
        (['--size', '0'], '--size requires a side, or a height and a width'),
        (['--batch-size', '0'], '--batch-size must be 1 or more'),
        (['--cfg-options', 'test_dataloader=None'], 'missing test_dataloader'),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else '',
)
def test_invalid_exports_are_refused_in_one_line(arguments, message, detector, run_export, capsys):
    options = ['--cfg-options', 'train_dataloader.dataset.data_root=nowhere']
    options = [] if '--cfg-options' in arguments else options
    with pytest.raises((UserError, SystemExit)) as caught:
        run_export('configs/retinanet_evit_m4_digits.py', detector, *arguments, *options)
    assert message in f'{caught.value}{capsys.readouterr().err}'


@pytest.mark.slow
def test_int8_is_calibrated_and_evaluated(classifier, digits, run_tool, tmp_path):
    file, config = tmp_path / 'int8.onnx', 'evit_m0_digits'
    arguments = ['--dtype', 'int8', '--calibration-images', 20, '--out', file]
    root = f'train_dataloader.dataset.data_root={digits}/classification/train'
    export(run_tool, f'configs/{config}.py', classifier, *arguments, '--cfg-options', root)
    operators = [node.op_type for node in onnx.load(file).graph.node]
    assert operators.count('QuantizeLinear') > 50
    assert 'accuracy/top1' in evaluate(run_tool, tmp_path, config, file, digits)


def test_backbone_cannot_be_evaluated(classifier, digits, run_tool, tmp_path):
    file, config = tmp_path / 'backbone.onnx', 'configs/evit_m0_digits.py'
    export(run_tool, config, classifier, '--part', 'backbone', '--out', file)
    with pytest.raises(
        AssertionError, match='was exported for features, but the config is for classification'
    ):
        evaluate(run_tool, tmp_path, 'evit_m0_digits', file, digits)
