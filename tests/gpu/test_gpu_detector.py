"""A detector trained in float16 on a GPU, resumed, evaluated and exported."""

import re
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from running_tools import ROOT

from mmevit.datasets import prepare_digits
from mmevit.deploy import load_exported

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='PyTorch finds no GPU'),
]
CONFIG = 'configs/rtmdet_evit_m0_digits.py'


def find_ap(output):
    """The last box AP that mmdet has logged."""
    return float(re.findall(r'coco/bbox_mAP: ([\d.]+)', output)[-1])


@pytest.fixture(scope='module')
def options(tmp_path_factory):
    """Where the digits are, for --cfg-options."""
    root = tmp_path_factory.mktemp('data') / 'digits'
    prepare_digits(root)
    annotations = f'{root}/annotations/instances_val.json'
    return [
        '--cfg-options',
        *(f'{split}_dataloader.dataset.data_root={root}/' for split in ('train', 'val', 'test')),
        *(f'{split}_evaluator.ann_file={annotations}' for split in ('val', 'test')),
    ]


@pytest.fixture(scope='module')
def trained(options, tmp_path_factory, run_tool):
    """A detector that was killed in its fourth epoch, and the output of the resumed training."""
    work_dir = tmp_path_factory.mktemp('work')
    train = ['tools/train.py', CONFIG, '--amp', '--resume', '--work-dir', str(work_dir), *options]
    command = [sys.executable, *train]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if 'Epoch(train) [4]' in line:
                process.kill()
    assert process.returncode == -9
    result = run_tool(*train)
    assert result.returncode == 0, result.stdout
    return (work_dir / 'last_checkpoint').read_text(), result.stdout


def test_training_in_mixed_precision_resumes_and_learns_the_digits(trained):
    checkpoint, output = trained
    assert 'resumed epoch: 3' in output and 'Epoch(train) [3]' not in output
    assert find_ap(output) > 0.7  # 0.79 in float32 on a CPU
    assert 'loss_scaler' in torch.load(checkpoint, weights_only=False)['optimizer']


@pytest.mark.parametrize('flag', ['--deploy', '--amp'])
def test_folding_and_half_precision_keep_the_accuracy(trained, flag, options, run_tool, tmp_path):
    checkpoint, output = trained
    test = ['tools/test.py', CONFIG, checkpoint, flag, '--work-dir', tmp_path, *options]
    result = run_tool(*test)
    assert result.returncode == 0, result.stdout
    assert find_ap(result.stdout) == pytest.approx(find_ap(output), abs=0.005)


@pytest.fixture(scope='module')
def exported(trained, options, tmp_path_factory, run_tool):
    path = tmp_path_factory.mktemp('exported') / 'model.onnx'
    result = run_tool('tools/export.py', CONFIG, trained[0], '--out', path, *options)
    assert result.returncode == 0, result.stdout
    return path


def test_exported_detector_keeps_the_accuracy(trained, exported, options, run_tool, tmp_path):
    result = run_tool('tools/test.py', CONFIG, exported, '--work-dir', tmp_path, *options)
    assert result.returncode == 0, result.stdout
    assert find_ap(result.stdout) == pytest.approx(find_ap(trained[1]), abs=0.005)


@pytest.mark.parametrize('provider', ['CUDAExecutionProvider', 'TensorrtExecutionProvider'])
def test_exported_detector_finds_the_same_boxes_on_a_gpu(exported, provider):
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f'ONNX Runtime has no {provider}')
    image, size = torch.rand(1, 3, 192, 192), torch.tensor([[192.0, 192.0]])
    session = onnxruntime.InferenceSession(str(exported), providers=[provider])
    names = [each.name for each in session.get_inputs()]
    inputs = dict(zip(names, (image.numpy(), size.numpy()), strict=True))
    expected = load_exported(exported)(image, size)
    for output, wanted in zip(session.run(None, inputs), expected, strict=True):
        np.testing.assert_allclose(output, wanted.numpy(), rtol=1e-3, atol=0.1)
