"""hf://, against a server that answers as the Hugging Face Hub does."""

import ast
import sys

import pytest
import torch
from making import make_classifier, make_timm
from mmengine.runner import CheckpointLoader, load_checkpoint
from running_tools import ROOT
from safetensors.torch import save
from serving_hub import TOKEN

from mmevit.checkpoint import convert_names, load_from_evit, loader
from mmevit.models import EfficientViT
from mmevit.utils.errors import CheckpointError

REPO = 'timm/efficientvit_m0.r224_in1k'


@pytest.fixture(scope='module')
def content():
    """The content of timm's file."""
    return save(make_timm('m0').state_dict())


@pytest.fixture
def no_release(tmp_path, monkeypatch):
    """A release that cannot be reached, and an empty cache for it."""
    monkeypatch.setattr(loader, 'RELEASE', 'http://127.0.0.1:9/')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'torch'))


def assert_is_timms(weights):
    wanted = convert_names(make_timm('m0').state_dict(), 'mmevit')
    assert weights.keys() == wanted.keys()
    assert all(weights[name].equal(value) for name, value in wanted.items())


def fails_with(address):
    with pytest.raises(CheckpointError) as caught:
        load_from_evit(address)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_logits_of_timms_repository_equal_timms(hub, content):
    hub.add(REPO, 'model.safetensors', content)
    hub.add(REPO, 'pytorch_model.bin', b'is not read')
    ours = make_classifier('m0')
    load_checkpoint(ours, f'hf://{REPO}', strict=True)
    image = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        wanted = make_timm('m0')(image)
        error = (ours(image, mode='tensor') - wanted).abs().max() / wanted.abs().max()
    assert error < 1e-5


def test_backbone_starts_from_a_repository_by_init_cfg_and_refuses_another_arch(hub, content):
    hub.add(REPO, 'model.safetensors', content)
    init_cfg = dict(type='Pretrained', checkpoint=f'hf://{REPO}', prefix='backbone.')
    backbone = EfficientViT('m0', window_sizes=(7, 7, 4), init_cfg=init_cfg)
    backbone.init_weights()
    name = 'stem.0.conv.weight'
    assert backbone.state_dict()[name].equal(make_timm('m0').patch_embed.conv1.conv.weight)
    with pytest.raises(CheckpointError, match="They fit arch='m0'"):
        EfficientViT('m1', init_cfg=init_cfg).init_weights()


def test_files_are_downloaded_once(hub, content):
    hub.add(REPO, 'model.safetensors', content)
    for _ in range(2):
        assert_is_timms(load_from_evit(f'hf://{REPO}')['state_dict'])
    assert [command for command, _ in hub.asked].count('GET') == 1


def test_cached_files_load_if_the_hub_cannot_be_reached(hub, content):
    hub.add('me/one', 'model.safetensors', content)
    hub.add('me/two', 'weights/m0.safetensors', content)
    for repo in ('me/one', 'me/two'):
        load_from_evit(f'hf://{repo}')
    hub.is_down = True
    for repo in ('me/one', 'me/two', 'me/two/weights/m0.safetensors'):
        assert_is_timms(load_from_evit(f'hf://{repo}')['state_dict'])
    message = fails_with('hf://me/three')
    assert 'hf://me/three is not cached, and the Hugging Face Hub cannot be reached (' in message
    assert 'MaxRetryError' not in message


@pytest.mark.parametrize(
    'name', ['m0.safetensors', 'a/b/m0.safetensors', 'pytorch_model.bin', 'm0.pth']
)
def test_the_only_file_of_weights_is_found(name, hub, content, tmp_path):
    if not name.endswith('.safetensors'):
        torch.save(make_timm('m0').state_dict(), tmp_path / 'm0')
        content = (tmp_path / 'm0').read_bytes()
    for other in ('README.md', 'config.json', 'optimizer.pt'):
        hub.add('me/m0', other, b'{}')
    hub.add('me/m0', name, content)
    assert_is_timms(load_from_evit('hf://me/m0')['state_dict'])


def test_file_and_revision_are_those_of_the_address(hub, content):
    hub.add('me/m0', 'model.safetensors', b'another')
    hub.add('me/m0', 'old/m0.safetensors', content, revision='v1.0')
    assert_is_timms(load_from_evit('hf://me/m0/old/m0.safetensors@v1.0')['state_dict'])
    assert_is_timms(load_from_evit('hf://me/m0@v1.0')['state_dict'])


@pytest.mark.parametrize(
    ('address', 'message'),
    [
        ('hf://m0', 'hf://m0 is not valid. Write hf://OWNER/REPO'),
        ('hf://me/m0@', 'hf://me/m0@ is not valid'),
        ('hf://me/--', 'hf://me/-- cannot be accessed: HFValidationError: '),
        ('hf://me/no', 'The repository of hf://me/no does not exist or is private'),
        ('hf://me/m0@v2', 'The revision of hf://me/m0@v2 does not exist'),
        ('hf://me/m0/no.pth', 'The file of hf://me/m0/no.pth does not exist'),
        ('hf://me/m0', 'hf://me/m0 has several files of weights: a.pth, b.pth'),
        ('hf://me/empty', 'hf://me/empty has no weights'),
        ('hf://gated/m0', 'hf://gated/m0 is gated. Request access'),
    ],
)
def test_addresses_without_weights_fail_with_the_reason(address, message, hub):
    for name in ('me/m0/a.pth', 'me/m0/b.pth', 'me/empty/README.md', 'gated/m0/a.pth'):
        owner, repo, file = name.split('/')
        hub.add(f'{owner}/{repo}', file, b'')
    assert message in fails_with(address)


def test_gated_repositories_load_with_the_token_of_huggingface_hub(hub, content, monkeypatch):
    hub.add('gated/m0', 'model.safetensors', content)
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    assert_is_timms(load_from_evit('hf://gated/m0')['state_dict'])


def test_a_download_that_ends_early_leaves_nothing_in_the_cache(hub, content, monkeypatch):
    hub.add('me/m0', 'model.safetensors', content)
    send = hub.RequestHandlerClass.send

    def send_half(handler, status, content, headers=None):
        if handler.command == 'GET':
            handler.wfile.write(
                b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n' % len(content) + content[:1000]
            )
            handler.close_connection = True
        else:
            send(handler, status, content, headers)

    monkeypatch.setattr(hub.RequestHandlerClass, 'send', send_half)
    assert 'hf://me/m0 cannot be accessed: ' in fails_with('hf://me/m0')
    monkeypatch.setattr(hub.RequestHandlerClass, 'send', send)
    assert_is_timms(load_from_evit('hf://me/m0')['state_dict'])


def test_without_huggingface_hub_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    message = 'hf://me/m0 needs huggingface_hub, which is not installed. '
    assert fails_with('hf://me/m0') == message + 'Run pip install "mmevit[hub]".'


def test_without_huggingface_hub_released_names_fail_as_before(no_release, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    message = fails_with('evit://m0')
    assert message.startswith('The download failed (') and 'timm' not in message


def test_mmevit_imports_huggingface_hub_only_where_it_is_used():
    for path in (ROOT / 'mmevit').rglob('*.py'):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in getattr(node, 'names', [])]
            assert not any('huggingface_hub' in name for name in names), path
            assert 'huggingface_hub' not in (getattr(node, 'module', None) or ''), path


def test_released_name_falls_back_to_timms_copy_and_says_so(hub, content, no_release, log):
    hub.add(REPO, 'model.safetensors', content)
    assert_is_timms(CheckpointLoader.load_checkpoint('evit://m0', 'cpu')['state_dict'])
    (line,) = [line for line in log.read_text().splitlines() if 'timm' in line]
    assert "WARNING - The authors' release cannot be reached (" in line
    assert f"timm's copy of the same weights is loaded instead: hf://{REPO}" in line


def test_without_release_and_copy_the_error_names_both(hub, no_release):
    message = fails_with('evit://m1')
    assert 'http://127.0.0.1:9/efficientvit_m1.pth' in message
    assert 'hf://timm/efficientvit_m1.r224_in1k' in message


def test_there_is_no_copy_of_detectors(hub, no_release):
    assert 'timm' not in fails_with('evit://retinanet-m4')
    assert not hub.asked


SCRIPT = """
import mmevit
for address in ('hf://me/m0', 'hf://me/other'):
    try:
        print('loaded', len(mmevit.checkpoint.load_from_evit(address)['state_dict']))
    except ValueError as error:
        print('error', error)
"""


def test_offline_mode_loads_what_is_cached_and_requests_nothing(hub, content, run_tool):
    hub.add('me/m0', 'model.safetensors', content)
    loaded = load_from_evit('hf://me/m0')['state_dict']
    hub.asked.clear()
    lines = run_tool(sys.executable, '-c', SCRIPT, env=dict(HF_HUB_OFFLINE='1')).stdout.splitlines()
    assert f'loaded {len(loaded)}' in lines
    (error,) = [line for line in lines if line.startswith('error')]
    assert 'hf://me/other is not cached' in error and 'HF_HUB_OFFLINE' in error
    assert not hub.asked
