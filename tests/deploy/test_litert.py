"""LiteRT files against PyTorch, and the graphs in them."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from making_models import IMAGES, METADATA, TINY
from test_complete_models import make_case
from torch import nn

pytest.importorskip('litert_torch')  # needs a newer PyTorch than the original OpenMMLab

from ai_edge_litert.interpreter import Interpreter, OpResolverType

from mmevit.deploy import export, load_exported
from mmevit.deploy.exporting import compare
from mmevit.deploy.networks import make_exportable
from mmevit.deploy.operators import SELECT_BOXES
from mmevit.deploy.to_litert import count_undelegated, interpolate
from mmevit.utils.errors import ConfigError


@pytest.fixture(scope='module')
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp('litert') / 'network.tflite'
    export(network, IMAGES, path, 'litert', metadata=METADATA)
    return path


def count_operators(path):
    interpreter = Interpreter(
        str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    return Counter(operator['op_name'] for operator in interpreter._get_ops_details())


def test_maps_metadata_and_names_of_tensors(network, file):
    session = load_exported(file, num_threads=1)
    assert session.metadata == METADATA
    assert compare(network, session, (IMAGES,)) < 1e-5
    signature = Interpreter(str(file)).get_signature_runner()
    assert signature.get_input_details()['images']['shape'].tolist() == [2, 352, 400, 3]
    shapes = {name: x['shape'].tolist() for name, x in signature.get_output_details().items()}
    assert shapes == dict(stage_0=[2, 22, 25, 16], stage_1=[2, 11, 13, 24], stage_2=[2, 6, 7, 32])


def test_only_windows_are_transposed_and_xnnpack_runs_all(network, file):
    counts = count_operators(file)
    num_cut = 2  # stages of more than one window
    assert counts['TRANSPOSE'] == 2 * num_cut
    assert counts['BATCH_MATMUL'] == 2 * sum(TINY['num_heads'])
    num_convs = sum(isinstance(part, nn.Conv2d) for part in network.modules())
    assert counts['CONV_2D'] + counts['DEPTHWISE_CONV_2D'] == num_convs
    assert not count_undelegated(file)


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float16', 1e-2), ('int8', 0.5)])
def test_lower_types_are_close_and_smaller(dtype, tolerance, network, file, tmp_path):
    path = tmp_path / 'network.tflite'
    export(network, IMAGES, path, 'litert', dtype=dtype, batches=[(IMAGES,)])
    session = load_exported(path)
    assert 1e-5 < compare(network, session, (IMAGES,)) < tolerance
    assert all(map_.dtype == torch.float32 for map_ in session(IMAGES))
    assert path.stat().st_size < file.stat().st_size


class Suppressed(nn.Module):
    """Pairs of boxes, the scores of which are the input."""

    output_names = ('kept',)

    def __init__(self):
        super().__init__()
        corners = torch.rand(60, 2).repeat(2, 1) * 50
        self.boxes = torch.cat([corners, corners + torch.rand(120, 2) * 20], dim=1)

    def forward(self, images):
        return SELECT_BOXES(self.boxes, images.flatten(), 0.5, 100)


def test_suppression_is_that_of_pytorch(tmp_path):
    torch.manual_seed(0)
    network, scores = Suppressed(), torch.rand(1, 1, 10, 12)
    export(network, scores, tmp_path / 'boxes.tflite', 'litert')
    session = load_exported(tmp_path / 'boxes.tflite')
    for share in (0, 0.3, 0.9, 1):
        scores = torch.rand(1, 1, 10, 12)
        scores *= torch.rand(1, 1, 10, 12) >= share
        (kept,) = session(scores)
        assert kept.dtype == torch.int64 and torch.equal(kept, network(scores))
        assert (kept == -1).any() == (share > 0)


@pytest.mark.parametrize('size', [(8, 6), (7, 6), (8, 5), (7, 5), (12, 9), (4, 3)])
def test_pixels_are_repeated_as_pytorch_does(size):
    x = torch.rand(2, 5, 4, 3)
    assert torch.equal(interpolate(x, size), F.interpolate(x, size))
    upsampled = interpolate(x, scale_factor=2, mode='bilinear')
    assert torch.equal(upsampled, F.interpolate(x, scale_factor=2, mode='bilinear'))


def test_sizes_that_litert_resizes_differently_are_refused():
    with pytest.raises(ConfigError, match='LiteRT cannot resize maps from 4x3 to 5x3'):
        interpolate(torch.rand(2, 5, 4, 3), (5, 3))


def test_unsupported_operators_are_refused(tmp_path):
    class Determinant(nn.Module):
        def forward(self, images):
            return torch.linalg.det(images)

    with pytest.raises(ConfigError, match='LiteRT cannot convert this model .*Lowering not found'):
        export(Determinant(), torch.rand(1, 3, 4, 4), tmp_path / 'model.tflite', 'litert')
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_coordinates_of_int8_files_have_more_than_8_bits(tmp_path):
    model, batches = make_case('rtmdet_evit_m0', tmp_path)
    images, sizes, _ = batches[0]
    path = tmp_path / 'model.tflite'
    export(
        make_exportable(model),
        (images, sizes),
        path,
        'litert',
        dtype='int8',
        batches=[batches[0][:2]],
    )
    boxes, scores, _ = load_exported(path)(images, sizes)
    assert len(boxes[scores > 0].unique()) > 256


@pytest.mark.slow
def test_two_stage_detectors_are_refused(tmp_path):
    model, batches = make_case('mask-rcnn_evit_m0', tmp_path)
    images, sizes, _ = batches[0]
    inputs = images[:1], sizes[:1]
    with pytest.raises(ConfigError, match='LiteRT cannot convert this model'):
        export(make_exportable(model), inputs, tmp_path / 'model.tflite', 'litert')
