import argparse
import copy
import functools
import http.server
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import pytest
import torch
from making import (
    as_released,
    classifier_config,
    detector_as_released,
    detector_config,
    make_classifier,
    make_timm,
    randomise,
    use_small_backbone,
)
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint, load_state_dict
from safetensors.torch import save_file

from mmevit.checkpoint import (
    convert_checkpoint,
    convert_names,
    forbid_code_in_checkpoints,
    loader,
    read_checkpoint,
    require_fit,
)
from mmevit.checkpoint.names import FORMATS
from mmevit.models import EfficientViT
from mmevit.models.efficientvit import infer_arch, select_weights
from mmevit.utils.errors import CheckpointError

ARCHS = ('m0', 'm1', 'm2', 'm3', 'm4', 'm5')


def save(model, form, folder):
    if form == 'timm.safetensors':
        path = folder / 'weights.safetensors'
        save_file(model.state_dict(), path)
        return path
    path = folder / 'weights.pth'
    torch.save(model.state_dict() if form == 'timm' else dict(model=as_released(model)), path)
    return path


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    """The file of an m0 as the authors have released it, which tests only read."""
    return save(make_timm('m0'), 'released', tmp_path_factory.mktemp('released'))


@pytest.fixture(scope='module')
def backbones(tmp_path_factory):
    """Weights of backbones by their arch, and files of them, which tests only read."""
    folder = tmp_path_factory.mktemp('backbones')
    weights = {arch: EfficientViT(arch).state_dict() for arch in ('m0', 'm1')}
    for arch, value in weights.items():
        torch.save(value, folder / f'{arch}.pth')
    return weights, {arch: f'evit://{folder}/{arch}.pth' for arch in weights}


def assert_equal(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        assert value.dtype == expected[name].dtype and value.equal(expected[name]), name


@pytest.mark.parametrize(
    ('arch', 'form'),
    [*((arch, 'released') for arch in ARCHS), ('m5', 'timm'), ('m0', 'timm.safetensors')],
)
def test_logits_of_loaded_weights_equal_timms(arch, form, tmp_path):
    reference = make_timm(arch)
    ours = make_classifier(arch)
    load_checkpoint(ours, f'evit://{save(reference, form, tmp_path)}', strict=True)
    image = torch.rand(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        logits = ours.double()(image, mode='tensor')
        wanted = copy.deepcopy(reference).double()(image)
    assert (logits - wanted).abs().max() / wanted.abs().max() < 1e-10


@pytest.mark.parametrize('arch', ARCHS)
def test_round_trips_of_names_are_exact(arch):
    reference = make_timm(arch)
    released = as_released(reference)
    ours = convert_names(released, 'mmevit')
    theirs = convert_names(ours, 'timm')
    assert_equal(theirs, reference.state_dict())
    assert_equal(convert_names(theirs, 'released'), released)
    assert infer_arch(select_weights(ours, 'backbone.')) == arch


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_converted_files_are_bit_exact_and_timm_loads_what_comes_back(suffix, released, tmp_path):
    files = [tmp_path / f'{form}{suffix}' for form in ('mmevit', 'timm', 'released')]
    meta = convert_checkpoint(released, files[0], 'mmevit')
    assert meta['arch'] == 'm0' and meta['source'] == 'weights.pth' and len(meta['sha256']) == 64
    convert_checkpoint(files[0], files[1], 'timm')
    convert_checkpoint(files[1], files[2], 'released')
    theirs, last = (read_checkpoint(path) for path in files[1:])
    key = 'model' if suffix == '.pth' else 'state_dict'
    assert_equal(last[key], read_checkpoint(released)['model'])
    copy.deepcopy(make_timm('m0')).load_state_dict(theirs[key])
    assert theirs['meta']['arch'] == 'm0'


@pytest.mark.parametrize('kind', ['retinanet', 'mask-rcnn'])
def test_released_detector_of_mmcv_1_loads_completely(kind, tmp_path):
    register_all_modules()
    source = randomise(MODELS.build(detector_config(kind)))
    reference = make_timm('m0')
    weights = detector_as_released(source, reference)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.rand(3))])
    optimizer.param_groups[0]['params'][0].sum().backward()
    optimizer.step()
    torch.save(
        dict(
            meta=dict(CLASSES=('cat', 'dog'), epoch=12, mmcv_version='1.3', hook_msgs={}),
            state_dict=weights,
            optimizer=optimizer.state_dict(),
        ),
        tmp_path / 'detector.pth',
    )
    detector = MODELS.build(detector_config(kind)).eval()
    checkpoint = load_checkpoint(detector, f'evit://{tmp_path}/detector.pth', strict=True)
    assert checkpoint['meta']['dataset_meta']['classes'] == ('cat', 'dog')
    loaded, wanted = detector.state_dict(), source.state_dict()
    assert all(loaded[name].equal(wanted[name]) for name in wanted if 'backbone' not in name)
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        x = reference.stages[0](reference.patch_embed(image))
        torch.testing.assert_close(detector.backbone(image)[0], x, rtol=1e-4, atol=1e-4)
    convert_checkpoint(tmp_path / 'detector.pth', tmp_path / 'back.pth', 'mmevit')
    convert_checkpoint(tmp_path / 'back.pth', tmp_path / 'again.pth', 'released')
    assert_equal(read_checkpoint(tmp_path / 'again.pth')['model'], weights)


def test_backbones_start_from_a_file_by_init_cfg(released):
    init_cfg = dict(type='Pretrained', checkpoint=f'evit://{released}', prefix='backbone.')
    backbone = EfficientViT('m0', window_sizes=(7, 7, 4), init_cfg=init_cfg)
    backbone.init_weights()
    wanted = convert_names(make_timm('m0').state_dict(), 'mmevit')
    for name, value in backbone.state_dict().items():
        assert value.equal(wanted[f'backbone.{name}'])


def test_mmpretrains_get_model_supports_evit(tmp_path):
    from mmpretrain import get_model

    path = save(make_timm('m0'), 'timm', tmp_path)
    cfg = Config(dict(model=classifier_config('m0'), default_scope='mmpretrain'))
    model = get_model(cfg, pretrained=f'evit://{path}')
    assert model.head.head.bn.weight.equal(make_timm('m0').head.bn.weight)


def test_mmdets_inferencer_supports_evit(tmp_path):
    from mmevit.apis import DetInferencer

    cfg = Config.fromfile('configs/retinanet_evit_m4_digits.py')
    use_small_backbone(cfg.model)
    weights = detector_as_released(MODELS.build(cfg.model), make_timm('m0'))
    meta = dict(CLASSES=tuple('abcdefghij'))
    torch.save(dict(meta=meta, state_dict=weights), tmp_path / 'digits.pth')
    path = f'evit://{tmp_path}/digits.pth'
    inferencer = DetInferencer(cfg, weights=path, device='cpu', show_progress=False)
    assert inferencer.model.dataset_meta['classes'] == tuple('abcdefghij')
    assert inferencer.model.neck.fpn_convs[0].conv.weight.equal(
        weights['neck.fpn_convs.0.conv.weight']
    )
    image = np.zeros((96, 96, 3), dtype=np.uint8)
    assert len(inferencer(image, no_save_vis=True)['predictions']) == 1


@pytest.mark.parametrize('windows', [(7, 7, 7), (16, 16, 8)])
def test_weights_at_224_load_for_other_windows(windows, released):
    model = make_classifier('m0', windows)
    load_checkpoint(model, f'evit://{released}', strict=True)
    name = 'stages.2.3.attention.branch.attention.attention_biases'
    image = read_checkpoint(released)['model']['blocks3.5.mixer.m.attn.attention_biases']
    image, size = image.reshape(1, 4, 4, 4), (windows[2], windows[2])
    wanted = torch.nn.functional.interpolate(image, size, mode='bicubic', align_corners=False)
    torch.testing.assert_close(model.backbone.state_dict()[name], wanted.reshape(4, -1))


def test_another_number_of_classes_is_a_size_mismatch_to_mmengine(released, log):
    model = make_classifier('m0', num_classes=5)
    linear = model.head.head.linear.weight.clone()
    with pytest.raises(RuntimeError, match='size mismatch for head.head.linear.weight'):
        load_checkpoint(model, f'evit://{released}', strict=True)
    load_checkpoint(model, f'evit://{released}', strict=False, logger='current')
    assert model.head.head.linear.weight.equal(linear)
    assert 'size mismatch for head.head.linear.weight' in log.read_text()


FIRST, EXTRA = 'stem.0.conv.weight', 'stages.0.9.extra'


def list_misfits(m0):
    """Yield weights that do not fit an m0, and what the message says."""
    yield EfficientViT('m1').state_dict(), ["They fit arch='m1'", 'size mismatch for']
    yield {name: v for name, v in m0.items() if name != FIRST}, [f'missing keys {FIRST}']
    yield {**m0, EXTRA: torch.zeros(1)}, [f'unexpected keys {EXTRA}']
    fewer_heads = dict(asdict(EfficientViT.arch_zoo['m0']), num_heads=(4, 4, 2))
    yield EfficientViT(fewer_heads).state_dict(), ['missing keys stages.2.1', 'none of the archs']
    folded = EfficientViT('m0')
    folded.switch_to_deploy()
    yield folded.state_dict(), ['folded', 'deploy=True']
    yield {f'backbone.{name}': v for name, v in m0.items()}, ["prefix='backbone.'"]
    yield {**m0, FIRST: torch.zeros(8, 4, 3, 3)}, ['(8, 4, 3, 3) instead of (8, 3, 3, 3)']


def test_backbone_refuses_local_weights_that_do_not_fit(backbones, own_loading, tmp_path):
    forbid_code_in_checkpoints()
    m0 = backbones[0]['m0']
    backbone = EfficientViT('m0')
    backbone.load_state_dict(m0)
    for weights, parts in list_misfits(m0):
        torch.save(weights, tmp_path / 'weights.pth')
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(backbone, str(tmp_path / 'weights.pth'), strict=False)
        assert all(part in str(caught.value) for part in parts) and '\n' not in str(caught.value)
        assert_equal(backbone.state_dict(), m0)


class Model(BaseModel):
    """What holds a backbone, as classifiers and detectors do."""

    def __init__(self, arch, **kwargs):
        super().__init__(**kwargs)
        self.backbone = EfficientViT(arch)

    def forward(self, inputs):
        return self.backbone(inputs)


def load_by_init_cfg(path, **kwargs):
    pretrained = dict(type='Pretrained', checkpoint=path, prefix='backbone.')
    EfficientViT('m0', init_cfg=pretrained, **kwargs).init_weights()


WAYS_IN = dict(
    init_cfg=load_by_init_cfg,
    init_cfg_of_the_model=lambda path: Model(
        'm0', init_cfg=dict(type='Pretrained', checkpoint=path)
    ).init_weights(),
    load_checkpoint=lambda path: load_checkpoint(Model('m0'), path, strict=False),
    without_its_prefix=lambda path: load_checkpoint(EfficientViT('m0'), path, strict=False),
)


@pytest.mark.parametrize('way', WAYS_IN)
def test_backbone_refuses_evit_weights_that_do_not_fit(way, backbones):
    _, files = backbones
    with pytest.raises(CheckpointError, match="arch='m1'|prefix='backbone.'"):
        WAYS_IN[way](files['m1'])
    if way != 'without_its_prefix':
        WAYS_IN[way](files['m0'])


def test_weights_of_a_model_without_those_of_its_backbone_load():
    model = Model('m0')
    load_state_dict(model, require_fit({'head.weight': torch.zeros(1)}))
    with pytest.raises(CheckpointError, match='missing keys'):
        load_state_dict(model.backbone, require_fit({'head.weight': torch.zeros(1)}))


def test_load_state_dict_is_that_of_any_pytorch_module(backbones):
    weights, _ = backbones
    changed = {name: value for name, value in weights['m0'].items() if name != FIRST}
    changed[EXTRA] = torch.zeros(1)
    backbone = EfficientViT('m0')
    with pytest.raises(RuntimeError, match='Missing key.*stem.0.*\n.*Unexpected key.*extra'):
        backbone.load_state_dict(changed)
    backbone = EfficientViT('m0')
    result = backbone.load_state_dict(changed, strict=False)
    assert result.missing_keys == [FIRST] and result.unexpected_keys == [EXTRA]
    loaded = {name: value for name, value in backbone.state_dict().items() if name != FIRST}
    assert_equal(loaded | {EXTRA: changed[EXTRA]}, changed)
    with pytest.raises(RuntimeError, match='size mismatch for stem.0.conv.weight'):
        backbone.load_state_dict(weights['m1'], strict=False)


def test_unfolded_weights_are_not_loaded_into_the_folded_form(backbones):
    with pytest.raises(CheckpointError, match='not folded.* switch_to_deploy'):
        load_by_init_cfg(backbones[1]['m0'], deploy=True)


def test_stages_that_are_not_built_need_not_be_loaded(backbones):
    load_by_init_cfg(backbones[1]['m0'], out_indices=(0, 1))


@pytest.mark.parametrize('form', ['released', 'timm'])
def test_missing_and_unexpected_keys_of_a_file_are_listed(form, tmp_path):
    model = make_timm('m0')
    weights = as_released(model) if form == 'released' else dict(model.state_dict())
    name = [name for name in weights if 'dw1' in name][0]
    for change in ({name: None}, {'blocks9.weight': torch.zeros(1)}):
        changed = {k: v for k, v in (weights | change).items() if v is not None}
        torch.save(changed, tmp_path / 'weights.pth')
        with pytest.raises(CheckpointError, match=next(iter(change)).replace('.', r'\.')):
            loader.load_from_evit(f'evit://{tmp_path}/weights.pth')


class ReleaseHandler(http.server.SimpleHTTPRequestHandler):
    """Serves released files, and counts what was asked for."""

    def log_request(self, *args):
        self.server.asked.append((self.command, self.path))

    def end_headers(self):
        if self.server.promised:
            self._headers_buffer = [
                header if not header.startswith(b'Content-Length') else self.server.promised
                for header in self._headers_buffer
            ]
        super().end_headers()

    def copyfile(self, source, output):
        if self.server.stalls:
            output.write(source.read(1000))
            output.flush()
            self.server.stopped.wait(20)
        else:
            super().copyfile(source, output)


@pytest.fixture
def server(released, tmp_path, monkeypatch):
    """A server of a released file, and the cache that mmevit downloads to."""
    folder = tmp_path / 'release'
    folder.mkdir()
    shutil.copy(released, folder / 'efficientvit_m0.pth')
    handler = functools.partial(ReleaseHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
        running.asked, running.promised, running.stalls = [], b'', False
        running.file, running.stopped = folder / 'efficientvit_m0.pth', threading.Event()
        running.cached = tmp_path / 'hub/checkpoints/efficientvit_m0.pth'
        threading.Thread(target=running.serve_forever, args=[0.01], daemon=True).start()
        monkeypatch.setattr(loader, 'RELEASE', f'http://127.0.0.1:{running.server_port}/')
        monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
        yield running
        running.stopped.set()
        running.shutdown()


def test_released_files_are_downloaded_once_into_the_cache(server):
    for _ in range(2):
        weights = loader.load_from_evit('evit://m0')['state_dict']
        EfficientViT('m0').load_state_dict(
            {k[9:]: v for k, v in weights.items() if k.startswith('backbone.')}
        )
    assert [command for command, _ in server.asked] == ['GET']
    assert list(server.cached.parent.glob('[!.]*')) == [server.cached]


def test_processes_of_a_machine_download_once_without_a_process_group(server):
    """Threads have locks of their own on the same file, as processes do."""
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(loader.fetch, ['efficientvit_m0.pth'] * 8))
    assert paths == [server.cached] * 8 and len(server.asked) == 1


def test_weights_load_in_a_process_group(server, tmp_path):
    server.cached.parent.mkdir(parents=True)
    server.file.rename(server.cached)
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        assert len(loader.load_from_evit('evit://m0')['state_dict']) > 100
    finally:
        torch.distributed.destroy_process_group()
    assert not server.asked


def test_stalled_download_raises(server, monkeypatch):
    server.stalls = True
    monkeypatch.setattr(loader, 'TIMEOUT', 0.3)
    with pytest.raises(CheckpointError, match='timed out.* manually'):
        loader.load_from_evit('evit://m0')
    assert not server.cached.exists()


@pytest.mark.parametrize('fault', ['absent', 'page', 'torn', 'short'])
def test_failed_download_leaves_no_file_and_raises(server, fault):
    if fault == 'absent':
        server.file.unlink()
    elif fault == 'page':
        server.file.write_text('<html>sign in</html>')
    elif fault == 'torn':
        server.file.write_bytes(server.file.read_bytes()[:-1000])
    else:
        server.promised = b'Content-Length: 99999999\r\n'
    with pytest.raises(CheckpointError) as caught:
        loader.load_from_evit('evit://m0')
    assert not list(server.cached.parent.glob('[!.]*'))
    assert 'manually' in str(caught.value) or 'Download or copy it again' in str(caught.value)


def test_cache_that_cannot_be_written_raises(monkeypatch, tmp_path):
    (tmp_path / 'hub').write_text('a file where a folder is needed')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    with pytest.raises(CheckpointError, match='hub/checkpoints cannot be written .*TORCH_HOME'):
        loader.load_from_evit('evit://m0')


def test_error_without_network_has_the_path_for_the_file(monkeypatch, tmp_path):
    monkeypatch.setattr(loader, 'RELEASE', 'http://127.0.0.1:9/')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        loader.load_from_evit('evit://retinanet-m4')
    place = tmp_path / 'checkpoints/retinanet_efficientvit_m4_fpn_1x_coco.pth'
    assert str(place) in str(caught.value) and 'manually' in str(caught.value)
    place.write_bytes(b'')  # found, though it is of no use
    with pytest.raises(CheckpointError, match='empty'):
        loader.load_from_evit('evit://retinanet-m4')


def test_unknown_name_raises_with_the_known_names():
    with pytest.raises(CheckpointError, match='m0, m1, .* mask-rcnn-m4'):
        loader.load_from_evit('evit://m6')


@pytest.mark.parametrize(
    'wrapper',
    ['module.', '_orig_mod.', 'model.', 'encoder.', 'module._orig_mod.', '_orig_mod.module.model.'],
)
def test_prefixes_of_training_code_are_stripped(wrapper, tmp_path):
    expected = convert_names(make_timm('m0').state_dict(), 'mmevit')
    for form in FORMATS:
        weights = convert_names(expected, form)
        wrapped = {wrapper + name: value for name, value in weights.items()}
        assert_equal(loader.find_state_dict(wrapped), weights)
    torch.save(wrapped, tmp_path / 'a.pth')
    assert_equal(loader.load_from_evit(f'evit://{tmp_path}/a.pth')['state_dict'], expected)


def test_prefixes_inside_keys_are_stripped(backbones):
    weights = {f'backbone.{name}': value for name, value in backbones[0]['m0'].items()}
    wrapped = {k.replace('backbone.', 'backbone.module._orig_mod.'): v for k, v in weights.items()}
    assert_equal(loader.find_state_dict(wrapped), weights)


@pytest.mark.parametrize('prefix', ['net.', 'model.student.'])
def test_unknown_prefix_raises(prefix, backbones, tmp_path):
    weights = {prefix + name: value for name, value in backbones[0]['m0'].items()}
    torch.save(weights, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError) as caught:
        loader.load_from_evit(f'evit://{tmp_path}/a.pth')
    assert f'a.pth: The keys of the weights start with {prefix!r}' in str(caught.value)
    code = str(caught.value).partition('Save them without: ')[2].rstrip('.')
    assert eval(code, dict(weights=weights)).keys() == backbones[0]['m0'].keys()


def authors_checkpoint(model, average):
    """What the authors' main.py saves, as do DeiT's and LeViT's."""
    optimizer = torch.optim.AdamW(model.parameters())
    return dict(
        model=as_released(model),
        optimizer=optimizer.state_dict(),
        lr_scheduler=dict(base_values=[1e-3], warmup_steps=[2e-4], t_initial=300),
        epoch=7,
        model_ema=as_released(average) if average else None,
        scaler=dict(scale=65536.0, growth_factor=2.0),
        args=argparse.Namespace(lr=1e-3, model='EfficientViT_M0', output_dir='', clip_mode=None),
    )


@pytest.mark.parametrize('with_average', [True, False])
def test_checkpoints_of_the_authors_training_script_load(with_average, tmp_path, log):
    model, average = make_timm('m0'), None
    if with_average:
        average = copy.deepcopy(model)
        average.head.linear.bias.data += 1
    torch.save(authors_checkpoint(model, average), tmp_path / 'checkpoint_7.pth')
    loaded = loader.load_from_evit(f'evit://{tmp_path}/checkpoint_7.pth')['state_dict']
    assert loaded['head.head.linear.bias'].equal(model.head.linear.bias)
    assert ('model and model_ema: model is loaded' in log.read_text()) == with_average
    convert_checkpoint(tmp_path / 'checkpoint_7.pth', tmp_path / 'timm.pth', 'timm')
    assert_equal(read_checkpoint(tmp_path / 'timm.pth')['model'], model.state_dict())


@pytest.mark.parametrize('key', ['model_ema', 'state_dict_ema'])
def test_a_file_that_has_only_averaged_weights_loads(key, tmp_path, log):
    model = make_timm('m0')
    torch.save({key: as_released(model), 'epoch': 7}, tmp_path / 'average.pth')
    loaded = loader.load_from_evit(f'evit://{tmp_path}/average.pth')['state_dict']
    assert loaded['head.head.linear.bias'].equal(model.head.linear.bias)
    assert f'has {key}: {key} is loaded' in log.read_text()


def test_weights_of_a_wrapped_model_and_of_other_windows_are_loaded(tmp_path):
    saved, model = EfficientViT('m0', window_sizes=(7, 7, 4)), EfficientViT('m0')
    randomise(saved)
    weights = {f'module.{name}': value for name, value in saved.state_dict().items()}
    torch.save(dict(state_dict=weights, meta=dict(epoch=3)), tmp_path / 'wrapped.pth')
    wanted = EfficientViT('m0')
    load_checkpoint(wanted, str(tmp_path / 'wrapped.pth'))
    assert loader.load_into(model, str(tmp_path / 'wrapped.pth'))['meta'] == dict(epoch=3)
    assert_equal(model.state_dict(), wanted.state_dict())
    assert model.stem[0].conv.weight.equal(saved.stem[0].conv.weight)
