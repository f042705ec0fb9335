import functools
import math
import subprocess
import sys
from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from making_models import METADATA, TINY
from needing import needs_refusal
from torch import nn
from torch._inductor import config as inductor_config

from mmevit.deploy import TARGETS, export, fold, load_exported, to_openvino
from mmevit.deploy.exporting import compare
from mmevit.deploy.networks import count_input_channels, largest_difference, make_exportable
from mmevit.utils.errors import ConfigError, UserError


@pytest.fixture(scope='module')
def network(randomised):
    torch.manual_seed(0)
    backbone = fold(randomised(TINY, in_channels=4))
    return make_exportable(nn.ModuleDict(dict(backbone=backbone)), 'backbone')


@pytest.fixture(scope='module')
def exported(network, tmp_path_factory):
    """Write the network with a dynamic batch, once for each target."""

    @functools.cache
    def write(target):
        path = tmp_path_factory.mktemp(target) / f'network{TARGETS[target]}'
        export(network, torch.rand(2, 4, 96, 64), path, target, metadata=METADATA)
        return path

    return write


@pytest.mark.parametrize('target', ['onnx', 'openvino', 'torchscript'])
def test_dynamic_batch_and_metadata(target, network, exported):
    session = load_exported(exported(target))
    assert session.metadata == METADATA
    for batch in (1, 2, 5):
        assert compare(network, session, (torch.rand(batch, 4, 96, 64),)) < 1e-5


def test_onnx_file_is_valid_with_named_inputs_and_outputs(exported):
    model = onnx.load(exported('onnx'))
    onnx.checker.check_model(model, full_check=True)
    assert [node.name for node in model.graph.input] == ['images']
    assert [node.name for node in model.graph.output] == ['stage_0', 'stage_1', 'stage_2']
    assert not [node for node in model.graph.node if node.op_type == 'BatchNormalization']


@pytest.mark.parametrize(
    'target', ['onnx', 'torchscript', pytest.param('openvino', marks=pytest.mark.slow)]
)
def test_dynamic_size_not_divisible_by_windows(target, network, tmp_path):
    path = tmp_path / f'network{TARGETS[target]}'
    # The smallest, with maps of one pixel.
    images = torch.rand(1, count_input_channels(network), 32, 32)
    export(network, images, path, target, dynamic=('batch', 'size'))
    session = load_exported(path)
    for shape in ((1, 4, 32, 32), (3, 4, 33, 470), (1, 4, 320, 320)):
        assert compare(network, session, (torch.rand(shape),)) < 1e-5


@pytest.mark.parametrize(
    ('shape', 'fused'),
    [
        pytest.param((2, 4, 96, 130), True, id='fused'),
        pytest.param((1, 4, 33, 47), False, id='refused', marks=needs_refusal),
    ],
)
def test_torchscript_of_one_shape_is_fused_by_onednn(shape, fused, network, tmp_path):
    path = tmp_path / 'network.torchscript'
    export(network, torch.rand(shape), path, 'torchscript', dynamic=())
    session = load_exported(path)
    for _ in range(3):
        assert compare(network, session, (torch.rand(shape),)) < 1e-5
    graph = str(torch.jit.last_executed_optimized_graph())
    assert ('oneDNNFusionGroup' in graph) == fused
    assert not torch.jit.onednn_fusion_enabled()
    # It takes others as well, unfused.
    for _ in range(3):
        assert compare(network, session, (torch.rand(3, 4, 64, 64),)) < 1e-5


@pytest.mark.parametrize(('size', 'pads'), [((448, 448), False), ((224, 448), True)])
def test_fixed_size_pads_only_if_not_divisible_by_windows(size, pads, network, tmp_path):
    path, images = tmp_path / 'network.onnx', torch.rand(1, 4, *size)
    export(network, images, path, 'onnx', dynamic=())
    assert compare(network, load_exported(path), (images,)) < 1e-5
    assert ('Pad' in {node.op_type for node in onnx.load(path).graph.node}) == pads


@pytest.mark.slow
@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 1e-5), ('bfloat16', 1e-1)])
def test_aoti_with_dynamic_batch(dtype, tolerance, network, tmp_path):
    export(network, torch.rand(2, 4, 96, 64), tmp_path / 'network.pt2', 'aoti', dtype=dtype)
    session = load_exported(tmp_path / 'network.pt2', trust=True)
    for batch in (1, 2, 5):
        assert compare(network, session, (torch.rand(batch, 4, 96, 64),)) < tolerance


@pytest.mark.slow
def test_aoti_runs_without_mmevit(network, tmp_path):
    path = tmp_path / 'network.pt2'
    images = torch.rand(3, 4, 64, 64)
    export(network, images, path, 'aoti', dynamic=(), metadata=METADATA)
    session = load_exported(path, trust=True)
    assert session.metadata == METADATA
    assert compare(network, session, (images,)) < 1e-5

    torch.save(images, tmp_path / 'images.pt')
    code = (
        'import sys, torch; sys.modules.update(mmevit=None, mmcv=None, mmengine=None)\n'
        f"package = torch._inductor.aoti_load_package('{path}')\n"
        f"maps = package(torch.load('{tmp_path}/images.pt'))\n"
        f"torch.save(tuple(maps), '{tmp_path}/maps.pt')"
    )
    subprocess.run([sys.executable, '-c', code], check=True)
    for actual, wanted in zip(torch.load(tmp_path / 'maps.pt'), session(images), strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize('target', ['onnx', 'coreml'])
def test_outputs_without_names_are_numbered(target, tmp_path):
    class Pair(nn.Module):
        def forward(self, images):
            return images + 1, images * 2

    path = tmp_path / f'pair{TARGETS[target]}'
    export(Pair(), torch.rand(1, 3, 4, 4), path, target)
    if target == 'onnx':
        outputs = [node.name for node in onnx.load(path).graph.output]
    else:
        outputs = load_exported(path).outputs
    assert outputs == ['output_0', 'output_1']


def test_largest_difference_keeps_nan():
    wanted = [torch.ones(3), torch.ones(3)]
    for position in (0, 1):
        outputs = [torch.full((3,), 1.5), torch.full((3,), 1.5)]
        outputs[position][1] = torch.nan
        assert math.isnan(largest_difference(outputs, wanted))


def test_int8_maps_are_similar(network, tmp_path):
    images = torch.rand(2, 4, 64, 64)
    path = tmp_path / 'network.onnx'
    export(network, images, path, 'onnx', dtype='int8', batches=[(images,)], metadata=METADATA)
    session = load_exported(path)
    assert session.metadata == METADATA
    with torch.no_grad():
        for actual, wanted in zip(session(images), network(images), strict=True):
            similarity = torch.cosine_similarity(actual.flatten(1), wanted.flatten(1))
            assert 0.9 < similarity.min() < 0.999999


def test_int8_operators_between_layers_are_quantized_but_for_attention(network, tmp_path):
    images = torch.rand(2, 4, 64, 64)
    path = tmp_path / 'network.onnx'
    export(network, images, path, 'onnx', dtype='int8', batches=[(images,)])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / 'optimized.onnx')
    onnxruntime.InferenceSession(path, options, ['CPUExecutionProvider'])
    optimized = onnx.load(options.optimized_model_filepath)
    counts = Counter(node.op_type for node in optimized.graph.node)
    num_convs = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    num_heads = sum(TINY['num_heads'])
    # Queries, keys and values have a convolution each; the first of all stays in float32.
    assert counts['QLinearConv'] == num_convs + 2 * num_heads - 1
    # No layer follows the last addition.
    assert counts['Add'] == num_heads + 1 and counts['QLinearAdd'] > num_heads


def test_core_ml_inputs_outputs_and_operators(network, tmp_path):
    path = tmp_path / 'network.mlpackage'
    path.mkdir()
    (path / 'Manifest.json').touch()  # a former package, which is replaced
    export(network, torch.rand(1, 4, 64, 64), path, 'coreml', metadata=METADATA)
    session = load_exported(path)
    assert session.metadata == METADATA
    assert session.inputs == ['images']
    assert session.outputs == ['stage_0', 'stage_1', 'stage_2']
    num_convs = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert session.operators['conv'] == num_convs
    assert session.operators['softmax'] == sum(TINY['num_heads'])
    assert session.operators['batch_norm'] == 0


@pytest.mark.parametrize(
    ('target', 'dtype', 'tolerance'),
    [
        ('onnx', 'float16', 1e-2),
        pytest.param('openvino', 'float16', 1e-2, marks=pytest.mark.slow),
        ('openvino', 'bfloat16', 1e-1),
        ('torchscript', 'bfloat16', 1e-1),
    ],
)
def test_low_precision_is_close_with_float32_outputs(target, dtype, tolerance, network, tmp_path):
    path = tmp_path / f'network{TARGETS[target]}'
    images = torch.rand(2, 4, 64, 64)
    export(network, images, path, target, dtype=dtype)
    session = load_exported(path)
    assert 1e-6 < compare(network, session, (images,)) < tolerance
    assert all(map_.dtype == torch.float32 for map_ in session(images))


@pytest.mark.parametrize('target', ['onnx', 'openvino', 'aoti'])
def test_too_old_pytorch_is_reported(target, network, tmp_path, monkeypatch):
    monkeypatch.delattr('torch.export.Dim', raising=False)
    path = tmp_path / f'network{TARGETS[target]}'
    with pytest.raises(UserError, match=r'PyTorch \S+ is too old for this target'):
        export(network, torch.rand(2, 4, 64, 64), path, target)
    assert not path.exists()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(target='tflite'), "Unknown target 'tflite'. Choose from onnx"),
        (dict(path='model.pt'), r'must end in \.onnx'),
        (
            dict(dtype='bfloat16'),
            'onnx does not support bfloat16. Choose from float32, float16, int8',
        ),
        (dict(target='coreml', dynamic=('batch',)), 'coreml does not support a dynamic batch'),
        (dict(target='aoti', dynamic=('size',)), 'aoti does not support a dynamic size'),
        (dict(dtype='int8'), 'int8 needs inputs for its calibration'),
        (dict(path='/proc/model.onnx'), '/proc/model.onnx cannot be written'),
    ],
    ids=lambda value: '-'.join(value) if isinstance(value, dict) else None,
)
def test_invalid_exports_are_refused(change, message, network, tmp_path):
    arguments = dict(path=tmp_path / 'model.onnx', target='onnx') | change
    with pytest.raises(UserError, match=message):
        export(network, torch.rand(2, 4, 64, 64), **arguments)
    assert list(tmp_path.iterdir()) == []


def test_graph_that_openvino_does_not_support_is_refused(tmp_path):
    values = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in 'ab']
    node = onnx.helper.make_node('Unknown', ['a'], ['b'], domain='mmevit')
    graph = onnx.helper.make_graph([node], 'graph', values[:1], values[1:])
    domains = [onnx.helper.make_opsetid(*domain) for domain in (('', 18), ('mmevit', 1))]
    onnx.save(onnx.helper.make_model(graph, opset_imports=domains), tmp_path / 'model.onnx')
    with pytest.raises(ConfigError, match='OpenVINO cannot convert this model'):
        to_openvino.convert(tmp_path / 'model.onnx')


def test_native_code_is_refused_before_the_file_is_opened(tmp_path, monkeypatch):
    # Old PyTorch has no such function.
    monkeypatch.setattr(
        torch._inductor, 'aoti_load_package', lambda path: pytest.fail('loaded'), raising=False
    )
    (tmp_path / 'model.pt2').write_bytes(b'native code')
    with pytest.raises(UserError, match=r'model\.pt2 contains native code.*--trust-checkpoint'):
        load_exported(tmp_path / 'model.pt2')


def test_pytorch_too_old_for_native_code_is_reported(tmp_path, monkeypatch):
    monkeypatch.delattr(torch._inductor, 'aoti_load_package', raising=False)
    (tmp_path / 'model.pt2').write_bytes(b'native code')
    with pytest.raises(UserError, match=r'^PyTorch \S+ is too old'):
        load_exported(tmp_path / 'model.pt2', trust=True)


def test_files_are_loaded_without_the_packages_that_write_them(network, exported, monkeypatch):
    path = exported('onnx')
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    monkeypatch.delitem(sys.modules, 'mmevit.deploy.to_onnx')
    assert compare(network, load_exported(path), (torch.rand(2, 4, 96, 64),)) < 1e-5


def test_session_restores_number_of_threads(exported):
    before, inside = torch.get_num_threads(), []
    session = load_exported(exported('torchscript'), num_threads=before + 1)
    module = session.module
    session.module = lambda *inputs: inside.append(torch.get_num_threads()) or module(*inputs)
    session(torch.rand(1, 4, 64, 64))
    assert inside == [before + 1]
    assert torch.get_num_threads() == before


def test_a_missing_compiler_is_one_sentence(tmp_path):
    with (
        inductor_config.patch({'cpp.cxx': ('no-such-compiler',)}),
        pytest.raises(ConfigError, match=r'needs a C\+\+ compiler, and PyTorch finds none'),
    ):
        export(nn.Conv2d(3, 4, 1), torch.rand(2, 3, 32, 32), tmp_path / 'model.pt2', 'aoti')


def test_invalid_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r'model\.pth is not an exported file. They end in \.onnx'):
        load_exported('model.pth')
    with pytest.raises(UserError, match=r'model\.onnx is missing'):
        load_exported(tmp_path / 'model.onnx')
    for suffix in ('.onnx', '.xml', '.torchscript', '.pt2'):
        (tmp_path / f'corrupt{suffix}').write_bytes(b'not a model')
        with pytest.raises(UserError, match=f'corrupt{suffix} cannot be loaded '):
            load_exported(tmp_path / f'corrupt{suffix}', trust=True)
