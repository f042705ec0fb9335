"""Fifty files that are damaged or would run code, through every way in."""

import argparse
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint
from needing import needs_safe_globals
from safetensors.torch import save_file

from mmevit.checkpoint import (
    convert_checkpoint,
    convert_names,
    forbid_code_in_checkpoints,
    load_from_evit,
    read_checkpoint,
    reading,
)
from mmevit.cli import convert_checkpoint as convert_tool
from mmevit.cli import test as test_tool
from mmevit.cli import train as train_tool
from mmevit.models import EfficientViT
from mmevit.utils.errors import CheckpointError


class Reduce:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def touching(marker):
    """Objects that would make the marker when they are unpickled."""
    command = f'touch {marker}'
    yield 'system', Reduce(os.system, command)
    yield 'eval', Reduce(eval, f'open({str(marker)!r}, "w")')
    yield 'exec', Reduce(exec, f'open({str(marker)!r}, "w")')
    yield 'open', Reduce(open, str(marker), 'w')
    yield 'popen', Reduce(os.popen, command)
    yield 'getattr', Reduce(getattr, dict, 'update')
    yield 'history', Reduce(getattr, HistoryBuffer, '__init__')
    yield 'array', np.array([Reduce(os.system, command)], dtype=object)
    yield 'nested', dict(deep=[dict(state=(Reduce(os.system, command),))])


def make_weights():
    """Weights of a small backbone as released, and a large one of a head."""
    arch = dict(embed_dims=(8, 8, 8), depths=(1, 1, 1), num_heads=(1, 1, 1), kernel_sizes=(3,))
    weights = convert_names(EfficientViT(arch).state_dict(), 'released')
    return weights | {'head.l.weight': torch.rand(2000, 192)}


def hostile_files(folder, marker):
    weights = make_weights()
    for name, evil in touching(marker):
        torch.save(dict(model=weights, meta=evil), folder / f'meta_{name}.pth')
        torch.save(dict(model=weights | {'head.x': evil}), folder / f'weight_{name}.pth')
        (folder / f'bare_{name}.pth').write_bytes(pickle.dumps(evil))
        torch.save(evil, folder / f'legacy_{name}.pth', _use_new_zipfile_serialization=False)


def corrupt_files(folder):
    weights = make_weights()
    torch.save(dict(model=weights), folder / 'whole.pth')
    save_file(weights, folder / 'whole.safetensors')
    for suffix in ('.pth', '.safetensors'):
        content = (folder / f'whole{suffix}').read_bytes()
        (folder / f'whole{suffix}').unlink()
        for share in (0, 1e-5, 0.001, 0.1, 0.5, 0.9, 0.999):
            (folder / f'cut_{share}{suffix}').write_bytes(content[: int(len(content) * share)])
    whole = len(content)
    torch.save(dict(model=weights), folder / 'whole.pth')
    content = bytearray((folder / 'whole.pth').read_bytes())
    (folder / 'whole.pth').unlink()
    for place in (0, 30, 100, whole // 3, whole // 2, 2 * whole // 3):
        flipped = content.copy()
        flipped[place : place + 4] = bytes(255 - byte for byte in flipped[place : place + 4])
        (folder / f'flipped_{place}.pth').write_bytes(flipped)
    (folder / 'text.pth').write_text('<html>sign in</html>')
    (folder / 'text.safetensors').write_text('<html>sign in</html>')
    (folder / 'zeros.pth').write_bytes(bytes(10000))
    for name, value in dict(list=[1, 2], tensor=torch.ones(3), empty={}, number=7).items():
        torch.save(value, folder / f'kind_{name}.pth')
    torch.save(dict(state_dict=dict(a='b')), folder / 'kind_strings.pth')
    torch.save(dict(model={1: torch.ones(1)}), folder / 'kind_numbers.pth')
    torch.save(dict(resnet=torch.ones(3)), folder / 'kind_other.pth')
    with zipfile.ZipFile(folder / 'archive.pth', 'w') as archive:
        archive.writestr('readme.txt', 'no weights')
    (folder / 'folder.pth').mkdir()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    marker = tmp_path_factory.mktemp('marker') / 'ran'
    hostile_files(folder, marker)
    corrupt_files(folder)
    return sorted(folder.iterdir()), marker


@pytest.fixture
def safe_process(own_loading):
    """A process in which the tools' guard is up, for the length of a test."""
    forbid_code_in_checkpoints()


def load_by_init_cfg(path, backbone):
    backbone.init_cfg = dict(type='Pretrained', checkpoint=f'evit://{path}', prefix='backbone.')
    backbone.init_weights()


WAYS_IN = dict(
    evit=lambda path, _: load_from_evit(f'evit://{path}'),
    convert=lambda path, _: convert_checkpoint(path, f'{path}.converted.pth', 'mmevit'),
    init_cfg=load_by_init_cfg,
    load_checkpoint=lambda path, backbone: load_checkpoint(backbone, str(path)),
)


@pytest.mark.parametrize(('scheme', 'backend'), [('', 'local'), ('evit://', 'evit')])
def test_log_names_the_backend_that_loads(scheme, backend, safe_process, tmp_path, capsys):
    path = tmp_path / 'weights.pth'
    torch.save(EfficientViT('m0').state_dict(), path)
    CheckpointLoader.load_checkpoint(f'{scheme}{path}', logger=None)
    assert f'by {backend} backend from path: {scheme}{path}' in capsys.readouterr().out


@pytest.mark.parametrize('way', WAYS_IN)
def test_hostile_and_corrupt_files_raise_one_sentence_and_run_no_code(files, way, request):
    paths, marker = files
    if way == 'load_checkpoint':  # mmengine's own; the other ways are safe in any process
        request.getfixturevalue('safe_process')
    assert len(paths) >= 50
    backbone = EfficientViT('m0')
    for path in paths:
        with pytest.raises(CheckpointError) as caught:
            WAYS_IN[way](path, backbone)
        message = str(caught.value)
        assert '\n' not in message, path
        assert not marker.exists(), path
        if not path.name.startswith('bare_'):  # in a protocol that PyTorch does not read
            is_hostile = path.name.startswith(('meta_', 'weight_', 'legacy_'))
            assert ('could run code' in message) == is_hostile, (path, message)
            if 'system' in path.name:
                assert '(it imports posix.system)' in message
    assert sorted(paths[0].parent.iterdir()) == paths  # nothing half written


def test_hostile_files_would_run_code_without_the_guard(files):
    paths, marker = files
    for name in ('meta_system', 'bare_eval', 'legacy_nested', 'weight_array'):
        with paths[0].with_name(f'{name}.pth').open('rb') as file:
            if name.startswith('bare'):
                pickle.load(file)
            else:
                torch.load(file, weights_only=False)
        assert marker.exists(), name
        marker.unlink()


def test_training_state_of_mmengine_is_read(tmp_path):
    history = HistoryBuffer([1.0, 2.0, 3.0], [1, 1, 1])
    torch.save(dict(message_hub=dict(log_scalars=dict(loss=history))), tmp_path / 'own.pth')
    loaded = read_checkpoint(tmp_path / 'own.pth')['message_hub']['log_scalars']['loss']
    assert loaded.data[0].tolist() == [1.0, 2.0, 3.0] and loaded.mean() == 2.0


CONFIG = 'configs/evit_m0_digits.py'


@pytest.mark.parametrize(
    ('tool', 'name'),
    [
        ('test', 'meta_system.pth'),
        ('resume', 'weight_eval.pth'),
        ('resume', 'cut_0.5.pth'),
        ('load_from', 'text.pth'),
        ('convert', 'bare_system.pth'),
        ('convert', 'cut_0.9.safetensors'),
    ],
)
def test_tools_exit_with_one_sentence(files, tool, name, digits, own_loading, capsys, tmp_path):
    paths, marker = files
    path = paths[0].with_name(name)
    options = ['--work-dir', tmp_path, '--cfg-options']
    for split in ('train', 'val', 'test'):
        options.append(f'{split}_dataloader.dataset.data_root={digits}/classification/val')
    main, arguments = dict(
        test=(test_tool.main, [CONFIG, path, *options]),
        resume=(train_tool.main, [CONFIG, '--resume', path, *options]),
        load_from=(train_tool.main, [CONFIG, *options, f'load_from={path}']),
        convert=(convert_tool.main, [path, tmp_path / 'out.pth', '--to', 'timm']),
    )[tool]
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments)])
    assert re.fullmatch('error: .+', caught.value.code)
    assert 'Traceback' not in ''.join(capsys.readouterr())
    assert not marker.exists() and not (tmp_path / 'out.pth').exists()


def test_a_tool_in_a_process_of_its_own_runs_no_code(files, run_tool, tmp_path):
    paths, marker = files
    path = paths[0].with_name('meta_system.pth')
    result = run_tool('tools/train.py', CONFIG, '--resume', path, '--work-dir', tmp_path)
    assert result.returncode == 1 and not marker.exists()
    assert 'could run code' in result.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(('safe', 'unsafe'), [('1', '0'), ('0', '1'), ('1', '1')])
@pytest.mark.parametrize('is_tool', [False, True])
def test_the_environment_does_not_decide_whether_code_runs(
    safe, unsafe, is_tool, files, own_loading, monkeypatch, tmp_path
):
    monkeypatch.setenv(reading.FORCE_SAFE, safe)
    monkeypatch.setenv(reading.FORCE_UNSAFE, unsafe)
    if is_tool:
        forbid_code_in_checkpoints()
    paths, marker = files
    for name in ('meta_system.pth', 'weight_eval.pth', 'legacy_exec.pth'):
        with pytest.raises(CheckpointError, match='could run code'):
            load_from_evit(f'evit://{paths[0].with_name(name)}')
    assert not marker.exists()
    backbone = EfficientViT('m0')
    torch.save(backbone.state_dict(), tmp_path / 'good.pth')
    load_from_evit(f'evit://{tmp_path}/good.pth')
    if is_tool:
        load_checkpoint(backbone, str(tmp_path / 'good.pth'), strict=True)


def test_files_run_code_only_if_trusted(own_loading, tmp_path):
    marker = tmp_path / 'ran'
    evil = Reduce(os.system, f'touch {marker}')
    torch.save(dict(model=EfficientViT('m0').state_dict(), meta=evil), tmp_path / 'a.pth')
    forbid_code_in_checkpoints(trust=True)
    load_from_evit(f'evit://{tmp_path}/a.pth')
    assert marker.exists()
    marker.unlink()
    forbid_code_in_checkpoints()
    with pytest.raises(CheckpointError, match='could run code'):
        load_from_evit(f'evit://{tmp_path}/a.pth')
    assert not marker.exists()


@pytest.fixture(
    params=[
        pytest.param('__qualname__', marks=needs_safe_globals),
        pytest.param('__name__', marks=needs_safe_globals),
        'own',
    ]
)
def named_by(request, monkeypatch):
    """How PyTorch finds what was allowed: since 2.6 by tuples too, before by names only."""
    if request.param == 'own':
        monkeypatch.delattr(torch.serialization, 'safe_globals', raising=False)  # before 2.5
    else:
        monkeypatch.setattr(
            torch._weights_only_unpickler,
            '_get_user_allowed_globals',
            lambda: {
                f'{known.__module__}.{getattr(known, request.param)}': known
                for known in torch.serialization.get_safe_globals()
            },
        )


def test_mmengines_checkpoints_are_read_in_every_pytorch(named_by, tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    options = argparse.Namespace(lr=1e-3, names=['a'], nested=argparse.Namespace(epochs=3))
    content = dict(loss=history, best=np.float64(0.5), flags=np.array([True]), args=options)
    torch.save(content, tmp_path / 'own.pth')
    loaded = read_checkpoint(tmp_path / 'own.pth')
    assert loaded['loss'].mean() == 1.5 and loaded['best'] == 0.5 and loaded['args'] == options


def test_colors_of_keypoints_are_read_in_every_pytorch(named_by, tmp_path):
    # What mmpose has in its dataset_meta.
    colors, sigmas = np.full((17, 3), 255, dtype=np.uint8), np.full(17, 0.5, dtype=np.float32)
    meta = dict(dataset_meta=dict(keypoint_colors=colors, sigmas=sigmas))
    torch.save(dict(meta=meta, state_dict={}), tmp_path / 'pose.pth')
    loaded = read_checkpoint(tmp_path / 'pose.pth')['meta']['dataset_meta']
    assert np.array_equal(loaded['keypoint_colors'], colors)
    assert np.array_equal(loaded['sigmas'], sigmas)


def test_hostile_files_are_refused_in_every_pytorch(named_by, tmp_path):
    marker = tmp_path / 'ran'
    for name, evil in touching(marker):
        torch.save(dict(model=evil), tmp_path / f'{name}.pth')
        with pytest.raises(CheckpointError, match='could run code'):
            read_checkpoint(tmp_path / f'{name}.pth')
    assert not marker.exists()


@needs_safe_globals
def test_safe_globals_of_the_process_stay_allowed(tmp_path):
    torch.save(dict(a=torch.ones(1)), tmp_path / 'a.pth')
    with torch.serialization.safe_globals([HistoryBuffer]):
        before = set(torch.serialization.get_safe_globals())
        read_checkpoint(tmp_path / 'a.pth')
        assert set(torch.serialization.get_safe_globals()) == before


@pytest.fixture
def no_checksums():
    torch.serialization.set_crc32_options(False)
    yield
    torch.serialization.set_crc32_options(True)


@pytest.mark.skipif(not hasattr(torch.serialization, 'set_crc32_options'), reason='before 2.6')
def test_files_without_checksums_are_read(no_checksums, tmp_path):
    torch.save(dict(bias=torch.arange(3.0), empty=torch.zeros(0)), tmp_path / 'a.pth')
    with zipfile.ZipFile(tmp_path / 'a.pth') as archive:
        assert {record.CRC for record in archive.infolist()} == {0}
    assert read_checkpoint(tmp_path / 'a.pth')['bias'].tolist() == [0, 1, 2]


@pytest.mark.parametrize('trust', [False, True])
def test_torchscript_programs_raise(trust, own_loading, tmp_path):
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / 'program.pth'))
    forbid_code_in_checkpoints(trust)
    with pytest.raises(CheckpointError, match='TorchScript'):
        read_checkpoint(tmp_path / 'program.pth')
