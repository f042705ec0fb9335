import csv
import dataclasses
import json
import re
from datetime import date
from importlib.metadata import version
from pathlib import Path

import matplotlib.image
import mmdet
import mmpretrain
import pytest
import timm
import torch
import yaml
from making_models import TINY
from mmpretrain.apis.model import ModelHub
from needing import needs_dim
from torch import nn

from mmevit.benchmark import (
    Setting,
    benchmark,
    find_model,
    format_results,
    select_models,
    write_plot,
    write_results,
)
from mmevit.benchmark.forms import FORMS, Workload
from mmevit.benchmark.measuring import (
    PRODUCT_SIZES,
    Entry,
    best_of_each_round,
    count_macs,
    process_settings,
    run_for_memory,
    summarise,
)
from mmevit.benchmark.models import (
    DETECTORS,
    PAPER_MODELS,
    PEERS,
    FlatOutputs,
    Model,
    build,
    calibrate,
    find_pairs,
    fold_all,
)
from mmevit.benchmark.report import COLUMNS
from mmevit.deploy.networks import count_input_channels, largest_difference
from mmevit.utils.errors import ConfigError, UserError

# At 64 pixels the last maps have one position, and batch norm of two values blows up rounding.
QUICK = Setting(batch_size=2, size=(128, 128), rounds=2, seconds=0)
ONE_IMAGE = Setting(batch_size=1, size=(64, 64), rounds=1, seconds=0)
# Published figures of the complete classifiers: millions of parameters and multiply-accumulates.
PUBLISHED = {
    'm0_8xb256_in1k': (2.349, 79.2),
    'm1_8xb256_in1k': (2.981, 167.1),
    'm2_8xb256_in1k': (4.188, 201.0),
    'm3_8xb256_in1k': (6.901, 262.7),
    'm4_8xb256_in1k': (8.804, 299.3),
    'm5_8xb256_in1k': (12.474, 521.6),
    'm5_8xb64_in1k-384px': (12.475, 1485.5),
    'm5_8xb64_in1k-512px': (12.477, 2699.6),
}
PAPER_PEERS = """MobileNetV2 MobileNetV3-Small MobileNetV3-Large ShuffleNetV2_1x ShuffleNetV2_2x
MobileViT-XXS MobileViT-XS MobileViTv2-0.5 MobileViTv2-0.75 MobileOne-S0 MobileOne-S1 GhostNet
EfficientNet-B0 PVTv2-B0 T2T-ViT-7 DeiT-T PoolFormer-S12 EfficientFormer-L1 Swin-T LeViT-128S"""


@pytest.fixture(autouse=True)
def small_products_and_the_default_allocator(monkeypatch):
    monkeypatch.setitem(PRODUCT_SIZES, 'cpu', (32, 64))
    monkeypatch.setattr(
        'mmevit.benchmark.measuring.keep_freed_memory', lambda: pytest.fail('it was changed')
    )


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """A small backbone with one input channel, by its config."""
    config = tmp_path_factory.mktemp('configs') / 'tiny.py'
    config.write_text(f"model = dict(type='EfficientViT', arch={TINY}, in_channels=1)")
    return Model('tiny', str(config))


@pytest.mark.parametrize('name', PUBLISHED)
def test_params_and_macs_equal_the_publications_and_the_metafile(name):
    size = int(name[-5:-2]) if name.endswith('px') else 224
    model = build(f'efficientvit-{name}').eval()
    params, macs = count_params(model), count_macs(model, torch.rand(1, 3, size, size))
    assert (round(params / 1e6, 3), round(macs / 1e6, 1)) == PUBLISHED[name]
    metadata = ModelHub.get(f'efficientvit-{name}').metadata
    assert (params, macs) == (metadata.parameters, metadata.flops)


def test_other_classifiers_of_the_metafile_differ_by_the_macs_of_their_heads():
    names = mmpretrain.list_models('efficientvit*')
    macs = {name.removeprefix('efficientvit-'): ModelHub.get(name).metadata.flops for name in names}
    heads = {
        name: macs[name] - macs[f'{name[:2]}_8xb256_in1k'] + 384 * 1000
        for name in macs.keys() - PUBLISHED.keys()
    }
    classes = dict(cifar10=10, cifar100=100, cars=196, flowers=102, pets=37)
    assert heads == {
        'm4_8xb256-distill-1000e_in1k': 2 * 384 * 1000,
        **{f'm5_8xb32_{name}': 384 * number for name, number in classes.items()},
    }


@pytest.mark.parametrize(
    'label', ['ShuffleNetV2 2x', 'T2T-ViT-7, no performer', 'MobileViTv2-0.5', 'GhostNet']
)
def test_params_and_macs_of_peers_match_publications(label):
    (model,) = select_models(PAPER_MODELS, [label])
    network = build(model.name, model.options).eval()
    assert count_params(network) / 1e6 == pytest.approx(model.params, abs=0.06)
    if 'performer' not in label:
        macs = count_macs(network, torch.rand(1, 3, model.size, model.size)) / 1e6
        assert macs == pytest.approx(model.macs, rel=0.02)


def count_params(network):
    return sum(weight.numel() for weight in network.parameters())


def test_fused_attention_is_counted():
    model = build('timm::deit_tiny_patch16_224').eval()
    assert count_macs(model, torch.rand(1, 3, 224, 224)) / 1e9 == pytest.approx(1.25, abs=0.02)


# Compilers take a minute, and int8 below is exported to ONNX Runtime too.
FORMS_BY_TIME = [
    ['eager', 'folded', 'traced', 'torchscript', 'openvino', 'ncnn', 'training'],
    pytest.param(
        ['compiled', 'aoti', 'onnxruntime', 'litert', 'executorch'], marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize('forms', FORMS_BY_TIME)
def test_forms_match_eager(forms, tiny):
    rows = benchmark([tiny], forms, QUICK)
    assert [row['form'] for row in rows] == forms
    for row in rows:
        if 'problem' in row:
            assert 'not installed' in row['problem']
        else:
            assert 'training' in row['form'] or row['difference'] < 1e-4, row['form']
            assert row['latency'] > 0 and len(row['speeds']) == QUICK.rounds


def test_all_forms_are_tested():
    fast, slow = FORMS_BY_TIME
    assert {*fast, *slow.values[0], 'cudagraph'} == set(FORMS)  # tests/gpu has the last


def test_cuda_graphs_are_refused_on_a_cpu(tiny):
    (row,) = benchmark([tiny], ['cudagraph'], ONE_IMAGE)
    assert row['problem'] == 'cudagraph is only supported on GPUs. Use --device cuda.'


@pytest.mark.parametrize(
    'name',
    [
        'timm::mobilenetv3_small_100',
        'timm::mobileone_s0',
        'timm::levit_128s',
        'mmpretrain::mobileone-s0_8xb32_in1k',
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    ],
)
def test_batch_norms_after_a_layer_are_folded(name):
    size = (224, 224) if 'levit' in name else (64, 64)
    network = FlatOutputs(build(name)).eval()
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        calibrate(network, size)
        expected = network(images)
        folded = fold_all(network, images)
        assert largest_difference(folded(images), expected) < 1e-4
        assert largest_difference(network(images), expected) == 0  # it was a copy
        assert not find_pairs(folded, images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


def test_training_computes_gradients_without_changing_weights(monkeypatch):
    network, networks = FlatOutputs(build('backbone::m0')).eval(), []
    with torch.no_grad():
        calibrate(network, (64, 64))
    monkeypatch.setattr('copy.deepcopy', lambda network: networks.append(network) or network)
    before = [weight.clone() for weight in network.parameters()]
    workload = Workload(network, network, torch.rand(2, 3, 64, 64), QUICK, folder='')
    FORMS['training'](workload, 'bfloat16')()
    assert networks == [network] and network.training
    for weight, value in zip(network.parameters(), before, strict=True):
        assert torch.equal(weight, value) and weight.grad.abs().sum() > 0


def test_batch_norm_after_inplace_activation_is_not_folded():
    layers = (nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(3))
    assert find_pairs(nn.Sequential(*layers).eval(), torch.rand(1, 3, 4, 4)) == []


def test_macs_of_folded_form():
    name = 'mmpretrain::mobileone-s0_8xb32_in1k'
    rows = benchmark([find_model(name)], ['eager-bfloat16', 'folded-bfloat16', 'eager'], ONE_IMAGE)
    eager, folded, also_eager = (row['macs'] for row in rows)
    assert eager == also_eager > 1.5 * folded


def test_shared_batch_norm_is_not_folded():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.conv(self.norm(self.conv(x))))

    assert find_pairs(Shared().eval(), torch.rand(1, 3, 4, 4)) == []


def test_two_stage_detectors_run_without_annotations():
    few_boxes = {'test_cfg.rpn.max_per_img': 10}
    network = FlatOutputs(build('configs/mask-rcnn_evit_m0.py', few_boxes)).eval()
    with torch.no_grad():
        outputs = network(torch.rand(1, 3, 64, 96))
    assert len(outputs) > 2 and all(isinstance(output, torch.Tensor) for output in outputs)


@needs_dim
def test_forms_without_int8_say_so(tiny):
    rows = benchmark([tiny], ['onnxruntime-int8', 'traced-int8'], QUICK)
    # Much, since random weights separate nothing.
    assert 1e-2 < rows[0]['difference'] < 1 and rows[0]['speed'] > 0 and 'peak' not in rows[0]
    assert (
        rows[1]['problem']
        == 'int8 is only supported by onnxruntime, openvino, litert and executorch.'
    )


def test_bfloat16_and_channels_last(tiny):
    rows = benchmark([tiny], ['folded', 'folded-bfloat16'], QUICK)
    assert rows[0]['difference'] < 1e-5 and 1e-4 < rows[1]['difference'] < 0.1
    assert all(row['peak'] > 0 for row in rows)
    setting = dataclasses.replace(ONE_IMAGE, channels_last=True)
    (row,) = benchmark([find_model('timm::mobilenetv3_small_100')], ['eager'], setting)
    assert row['difference'] < 1e-4


def test_ratios_are_taken_within_a_round():
    fast = Entry('a', 'eager', items=4, macs=100, rounds=[[0.1, 0.3], [0.4], [0.8]])
    slow = Entry('b', 'eager', items=4, macs=100, rounds=[[0.4], [0.4], [2.4]])
    products = [
        Entry('matrix product', '1', macs=1000, rounds=[[1], [0.5], [1]]),
        Entry('matrix product', '2', macs=8000, rounds=[[4], [8], [2]]),
    ]
    best = best_of_each_round(products)
    assert best == [2000, 2000, 4000]
    row = summarise(fast, slow, best)
    assert row['speeds'] == pytest.approx([20, 10, 5])
    assert row['speed'] == pytest.approx(10)
    assert (row['ratio_low'], row['ratio'], row['ratio_high']) == pytest.approx((1.5, 2, 2.5))
    assert row['latency'] == pytest.approx(350)
    assert row['latency95'] == pytest.approx(740)
    assert row['peak'] == pytest.approx(0.5)  # the median of 1, 0.5 and 0.125


def test_memory_of_a_run():
    run_for_memory(lambda: torch.ones(10), 'cpu')
    _, memory = run_for_memory(lambda: float(torch.ones(64, 2**18).sum()), 'cpu')
    if memory is None:
        pytest.skip('The kernel does not tell.')
    assert 60 < memory < 80


def test_unsupported_form_is_a_row(tiny, monkeypatch):
    def refuse(*args):
        raise RuntimeError('unsupported | operator\nand more')

    monkeypatch.setitem(FORMS, 'traced', refuse)
    rows = benchmark([tiny], ['traced', 'folded'], QUICK)
    assert rows[0]['problem'] == 'RuntimeError: unsupported | operator'
    assert rows[1]['ratio'] == 1
    assert '| traced | RuntimeError: unsupported / operator |' in format_results(rows)
    assert 'unsupported' in format_results(rows[:1])
    with pytest.raises(ConfigError, match='cannot be run: RuntimeError'):
        benchmark([tiny], ['traced'], QUICK, 'tiny:traced')


def test_number_of_threads_is_set_and_restored():
    before = torch.get_num_threads()
    with process_settings(Setting(threads=before + 1)):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(forms=['magic']), 'Unknown form magic. Choose from eager'),
        (dict(forms=['aoti-int4']), 'Unknown form aoti-int4. .* append -bfloat16'),
        (dict(name='timm::magic'), 'timm::magic cannot be built'),
        (dict(name='magic'), 'Unknown model magic'),
        (dict(name='magic::m0'), 'The library of model magic::m0 is unknown'),
        (dict(name='backbone::m9'), 'Choose from m0'),
        (dict(name='configs/magic.py'), 'configs/magic.py is missing'),
        (dict(name='configs/_base_/digits_detection.py'), 'missing model'),
        (dict(setting=Setting(rounds=0)), '1 or more'),
        (dict(setting=Setting(size=(0, 64))), '1 or more'),
        (dict(name='timm::deit_tiny_patch16_224'), 'cannot be run on images of 128 x 128'),
        (dict(baseline='backbone::m0:traced'), 'm0:traced. Choose from backbone::m0:eager'),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    name = arguments.pop('name', 'backbone::m0')
    arguments = dict(dict(forms=['eager'], setting=QUICK), **arguments)
    with pytest.raises(ConfigError, match=message) as caught:
        benchmark([find_model(name)], **arguments)
    assert '\n' not in str(caught.value)


def test_paper_models_are_complete():
    labels = [model.label for model in PAPER_MODELS]
    for peer in PAPER_PEERS.split():
        assert sum(label.startswith(peer.replace('_', ' ')) for label in labels) == 1, peer
    ours = {model.label: model.top1 for model in PAPER_MODELS if 'efficientvit' in model.name}
    assert ours == {
        f'EfficientViT-M{index}': top1
        for index, top1 in enumerate([63.2, 68.4, 70.8, 73.4, 74.3, 77.1])
    }
    assert len(labels) == len(set(labels)) == 26


def test_peers_are_measured_at_the_image_size_of_timms_weights():
    peers = [model for model in PEERS if model.name.startswith('timm::')]
    assert len(peers) == 14
    for model in peers:
        # Some have further weights, for larger images.
        sizes = {
            timm.get_pretrained_cfg(name).input_size[1:]
            for name in timm.list_pretrained(f'{model.name.removeprefix("timm::")}.*')
        }
        assert (model.size, model.size) in sizes, model.label


def test_published_precision_of_detectors_is_that_of_mmdet():
    folders = Path(mmdet.__path__[0]) / '.mim/configs'
    published = {
        f'mmdet::{entry["Config"].removeprefix("configs/")}': entry['Results'][0]['Metrics']
        for folder in ('rtmdet', 'ssd', 'yolox')
        for entry in yaml.safe_load((folders / folder / 'metafile.yml').read_text())['Models']
        if 'Results' in entry
    }
    for model in DETECTORS:
        if model.box_ap and model.label != 'YOLOX-nano':
            # The tables of its README are for later weights of RTMDet than those of its metafile.
            assert published[model.name]['box AP'] == pytest.approx(model.box_ap, abs=0.21)


def test_yolox_gets_images_of_three_channels():
    network = build('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py')
    assert count_input_channels(network) == 3


def test_published_numbers_by_name_and_size():
    assert find_model('efficientvit-m4_8xb256_in1k').top1 == 74.3
    assert find_model('mmpretrain::shufflenet-v2-1x_16xb64_in1k').top1 == 69.4
    assert find_model('t2t-vit-t-14_8xb64_in1k') == Model(*['t2t-vit-t-14_8xb64_in1k'] * 2)
    (row,) = benchmark([find_model('efficientvit-m0')], ['eager'], ONE_IMAGE)
    assert 'top1' not in row


@pytest.fixture
def rows():
    measured = dict(ratio=1.0, ratio_low=0.9, ratio_high=1.1, latency=2.0, speeds=[1.0])
    return [
        *(
            dict(
                model=model.label, form='folded', speed=10.0 + index**2, top1=model.top1, **measured
            )
            for index, model in enumerate(PAPER_MODELS)
        ),
        dict(model='odd', form='traced', top1=50.0, problem='It cannot be traced.'),
    ]


def test_tables(rows, tmp_path):
    for ending in ('md', 'csv', 'json'):
        write_results(rows, QUICK, tmp_path / f'new/table.{ending}')
    markdown = (tmp_path / 'new/table.md').read_text()
    assert 'batch 2, 1 thread, images of 128 x 128, 2 rounds, ' in markdown
    assert '| EfficientViT-M0 | folded | 410.0 | 1.00 (0.90 to 1.10) | 2.0 | 63.2 |' in markdown
    widths = {line.count('|') for line in markdown.splitlines()[2:]}
    assert len(widths) == 1
    with (tmp_path / 'new/table.csv').open() as file:
        table = list(csv.DictReader(file))
    assert set(COLUMNS) < set(table[0]) and len(table) == len(rows)
    assert float(table[1]['speed']) == 11 and table[-1]['problem'] == 'It cannot be traced.'
    assert table[0]['date'] == date.today().isoformat() and table[0]['threads'] == '1'
    assert f'torch {version("torch")}' in table[0]['versions'] and table[0]['command']
    content = json.loads((tmp_path / 'new/table.json').read_text())
    assert content['rows'] == rows and content['setting']['batch_size'] == 2
    with pytest.raises(UserError, match=re.escape('must end in .md or .csv or .json')):
        write_results(rows, QUICK, tmp_path / 'table.txt')


def test_picture(rows, tmp_path):
    write_plot(rows, 'How', tmp_path / 'new/picture.png')
    assert matplotlib.image.imread(tmp_path / 'new/picture.png').shape[:2] == (900, 1350)
    with pytest.raises(ConfigError, match='No published accuracy'):
        write_plot(rows[-1:], 'How', tmp_path / 'picture.png')
    with pytest.raises(UserError, match='must end in'):
        write_plot(rows, 'How', tmp_path / 'picture.md')
    detector = dict(model='YOLOX-nano', form='folded', speed=10.0, box_ap=25.8)
    with pytest.raises(ConfigError, match='Classifiers and detectors have different metrics'):
        write_plot([*rows, detector], 'How', tmp_path / 'picture.png')
