import functools
import http.server
import threading

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
)
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from safetensors.torch import save_file

from mmevit.checkpoint import convert_checkpoint, convert_names, loader, read_checkpoint
from mmevit.errors import CheckpointError
from mmevit.models import EfficientViT

ARCHS = ('m0', 'm1', 'm2', 'm3', 'm4', 'm5')


def save(model, form, folder):
    if form == 'timm.safetensors':
        path = folder / 'weights.safetensors'
        save_file(model.state_dict(), path)
        return path
    path = folder / 'weights.pth'
    torch.save(model.state_dict() if form == 'timm' else dict(model=as_released(model)), path)
    return path


@pytest.mark.parametrize('form', ['released', 'timm', 'timm.safetensors'])
@pytest.mark.parametrize('arch', ARCHS)
def test_logits_of_loaded_weights_equal_timms(arch, form, tmp_path):
    reference = make_timm(arch)
    ours = make_classifier(arch)
    load_checkpoint(ours, f'evit://{save(reference, form, tmp_path)}', strict=True)
    image = torch.rand(2, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        logits, wanted = ours.double()(image, mode='tensor'), reference.double()(image)
    assert (logits - wanted).abs().max() / wanted.abs().max() < 1e-10


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('arch', ARCHS)
def test_round_trips_are_bit_exact_and_timm_loads_what_comes_back(arch, suffix, tmp_path):
    reference = make_timm(arch)
    source = save(reference, 'released', tmp_path)
    files = [tmp_path / f'{form}{suffix}' for form in ('mmevit', 'timm', 'released')]
    meta = convert_checkpoint(source, files[0], 'mmevit')
    assert meta['arch'] == arch and meta['source'] == 'weights.pth' and len(meta['sha256']) == 64
    convert_checkpoint(files[0], files[1], 'timm')
    convert_checkpoint(files[1], files[2], 'released')
    first, last = read_checkpoint(source)['model'], read_checkpoint(files[2])
    last = last.get('model', last.get('state_dict'))
    assert first.keys() == last.keys()
    for name, value in first.items():
        assert value.dtype == last[name].dtype and value.equal(last[name]), name
    timm_weights = read_checkpoint(files[1])
    reference.load_state_dict(timm_weights.get('model', timm_weights.get('state_dict')))


@pytest.mark.parametrize('kind', ['retinanet', 'mask-rcnn'])
def test_a_released_detector_of_mmcv_1_loads_whole(kind, tmp_path):
    register_all_modules()
    source = randomise(MODELS.build(detector_config(kind)))
    reference = make_timm('m4')
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
    back = read_checkpoint(tmp_path / 'again.pth')['model']
    assert back.keys() == weights.keys()
    assert all(back[name].equal(value) for name, value in weights.items())


def test_backbones_start_from_a_file_by_init_cfg(tmp_path):
    path = save(make_timm('m0'), 'released', tmp_path)
    init_cfg = dict(type='Pretrained', checkpoint=f'evit://{path}', prefix='backbone.')
    backbone = EfficientViT('m0', window_sizes=(7, 7, 4), init_cfg=init_cfg)
    backbone.init_weights()
    wanted = convert_names(read_checkpoint(path)['model'], 'mmevit')
    for name, value in backbone.state_dict().items():
        assert value.equal(wanted[f'backbone.{name}'])


def test_mmpretrains_get_model_takes_evit(tmp_path):
    from mmpretrain import get_model

    path = save(make_timm('m0'), 'timm', tmp_path)
    cfg = Config(dict(model=classifier_config('m0'), default_scope='mmpretrain'))
    model = get_model(cfg, pretrained=f'evit://{path}')
    assert model.head.head.bn.weight.equal(read_checkpoint(path)['head.bn.weight'])


def test_mmdets_inferencer_takes_evit(tmp_path):
    from mmdet.apis import DetInferencer

    cfg = Config.fromfile('configs/retinanet_evit_m4_digits.py')
    detector = MODELS.build(cfg.model)
    weights = detector_as_released(detector, make_timm('m4'))
    meta = dict(CLASSES=tuple('abcdefghij'))
    torch.save(dict(meta=meta, state_dict=weights), tmp_path / 'digits.pth')
    inferencer = DetInferencer(
        'configs/retinanet_evit_m4_digits.py',
        weights=f'evit://{tmp_path}/digits.pth',
        device='cpu',
        show_progress=False,
    )
    assert inferencer.model.dataset_meta['classes'] == tuple('abcdefghij')
    assert inferencer.model.neck.fpn_convs[0].conv.weight.equal(
        weights['neck.fpn_convs.0.conv.weight']
    )
    image = np.zeros((96, 96, 3), dtype=np.uint8)
    assert len(inferencer(image, no_save_vis=True)['predictions']) == 1


@pytest.mark.parametrize('windows', [(7, 7, 7), (12, 12, 6), (16, 16, 8)])
def test_weights_at_224_load_for_other_windows(windows, tmp_path):
    path = save(make_timm('m1'), 'released', tmp_path)
    model = make_classifier('m1', windows)
    load_checkpoint(model, f'evit://{path}', strict=True)
    name = 'stages.2.3.attention.branch.attention.attention_biases'
    table = read_checkpoint(path)['model']['blocks3.5.mixer.m.attn.attention_biases']
    image = table.reshape(1, 3, 4, 4)
    size = (windows[2], windows[2])
    wanted = torch.nn.functional.interpolate(image, size, mode='bicubic', align_corners=False)
    torch.testing.assert_close(model.backbone.state_dict()[name], wanted.reshape(3, -1))


def test_another_number_of_classes_leaves_the_head_out_with_a_warning(tmp_path, log):
    path = save(make_timm('m0'), 'released', tmp_path)
    model = make_classifier('m0', num_classes=5)
    before = {name: value.clone() for name, value in model.head.state_dict().items()}
    load_checkpoint(model, f'evit://{path}', strict=True)
    assert all(value.equal(before[name]) for name, value in model.head.state_dict().items())
    assert 'WARNING' in log.read_text()
    assert 'weights are for 1000 classes and this model has 5' in log.read_text()


def wrong_weights():
    whole = EfficientViT('m0').state_dict()
    first = next(iter(whole))
    yield EfficientViT('m4').state_dict(), ["arch='m4'", 'in another shape']
    yield {k: v for k, v in whole.items() if k != first}, [f'lack {first}']
    yield whole | {'stages.0.9.extra': torch.zeros(1)}, ['have besides stages.0.9.extra']
    fewer_heads = dict(EfficientViT.arch_zoo['m0'], num_heads=(4, 4, 2))
    yield EfficientViT(fewer_heads).state_dict(), ['lack stages.2.1', 'none of the archs']
    folded = EfficientViT('m0')
    folded.switch_to_deploy()
    yield folded.state_dict(), ['folded', 'deploy=True']
    yield {f'backbone.{k}': v for k, v in whole.items()}, ["prefix='backbone.'"]
    yield EfficientViT('m0', in_channels=4).state_dict(), ['(8, 4, 3, 3) instead of (8, 3, 3, 3)']


@pytest.mark.parametrize(
    ('weights', 'parts'), list(wrong_weights()), ids=lambda value: str(value)[:30]
)
@pytest.mark.parametrize('by', ['mmengine', 'torch'])
def test_weights_that_do_not_fit_are_never_loaded_in_part(weights, parts, by, tmp_path):
    backbone = EfficientViT('m0')
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    torch.save(weights, tmp_path / 'weights.pth')
    with pytest.raises(CheckpointError) as caught:
        if by == 'mmengine':
            load_checkpoint(backbone, str(tmp_path / 'weights.pth'), strict=False)
        else:
            backbone.load_state_dict(weights, strict=False)
    assert all(part in str(caught.value) for part in parts) and '\n' not in str(caught.value)
    assert all(value.equal(before[name]) for name, value in backbone.state_dict().items())


def test_unfolded_weights_are_not_loaded_into_the_folded_form():
    with pytest.raises(CheckpointError, match='not folded: .* switch_to_deploy'):
        EfficientViT('m0', deploy=True).load_state_dict(EfficientViT('m0').state_dict())


def test_stages_that_are_not_built_need_not_be_loaded():
    EfficientViT('m0', out_indices=(0, 1)).load_state_dict(
        EfficientViT('m0').state_dict(), strict=False
    )


@pytest.mark.parametrize('form', ['released', 'timm'])
def test_missing_and_surplus_names_of_a_file_are_named(form, tmp_path):
    model = make_timm('m2')
    weights = as_released(model) if form == 'released' else dict(model.state_dict())
    name = [name for name in weights if 'dw1' in name][0]
    for change in ({name: None}, {'blocks9.weight': torch.zeros(1)}):
        changed = {k: v for k, v in (weights | change).items() if v is not None}
        torch.save(changed, tmp_path / 'weights.pth')
        with pytest.raises(CheckpointError, match=next(iter(change)).replace('.', r'\.')):
            loader.load_from_evit(f'evit://{tmp_path}/weights.pth')


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of released files, the cache that they go to, and a count of what was asked for."""
    folder = tmp_path / 'release'
    folder.mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *args):
            asked.append((self.command, self.path))

        def end_headers(self):
            if self.command == 'HEAD' and (folder / 'longer').exists():
                self._headers_buffer = [
                    b'Content-Length: 99999999\r\n' if h.startswith(b'Content-Length') else h
                    for h in self._headers_buffer
                ]
            super().end_headers()

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(loader, 'RELEASE', f'http://127.0.0.1:{running.server_port}/')
        monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
        yield folder, tmp_path / 'hub/checkpoints/efficientvit_m0.pth', asked
        running.shutdown()


def test_released_files_are_downloaded_once_into_the_cache(server, tmp_path):
    folder, cached, asked = server
    save(make_timm('m0'), 'released', folder).rename(folder / 'efficientvit_m0.pth')
    for _ in range(2):
        weights = loader.load_from_evit('evit://m0')['state_dict']
        EfficientViT('m0').load_state_dict(
            {k[9:]: v for k, v in weights.items() if k.startswith('backbone.')}
        )
    assert [command for command, _ in asked] == ['HEAD', 'GET']
    assert list(cached.parent.iterdir()) == [cached]


@pytest.mark.parametrize('fault', ['absent', 'page', 'torn', 'short'])
def test_a_download_that_fails_leaves_nothing_and_says_what_to_do(server, fault):
    folder, cached, _ = server
    path = folder / 'efficientvit_m0.pth'
    if fault == 'page':
        path.write_text('<html>sign in</html>')
    elif fault in ('torn', 'short'):
        save(make_timm('m0'), 'released', folder).rename(path)
        if fault == 'torn':
            path.write_bytes(path.read_bytes()[:-1000])
        else:
            (folder / 'longer').touch()
    with pytest.raises(CheckpointError) as caught:
        loader.load_from_evit('evit://m0')
    assert not list(cached.parent.iterdir())
    assert 'by hand' in str(caught.value) or 'download or copy it again' in str(caught.value)


def test_without_a_network_the_place_for_the_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(loader, 'RELEASE', 'http://127.0.0.1:9/')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        loader.load_from_evit('evit://retinanet-m4')
    place = tmp_path / 'checkpoints/retinanet_efficientvit_m4_fpn_1x_coco.pth'
    assert str(place) in str(caught.value) and 'by hand' in str(caught.value)
    place.write_bytes(b'')  # found, though it is of no use
    with pytest.raises(CheckpointError, match='empty'):
        loader.load_from_evit('evit://retinanet-m4')


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(CheckpointError, match='m0, m1, .* mask-rcnn-m4'):
        loader.load_from_evit('evit://m6')
