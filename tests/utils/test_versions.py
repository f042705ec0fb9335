import sys

import pytest

from mmevit.utils.versions import Library, check_libraries


def versions(monkeypatch, installed):
    """Stand in for what is installed, which a test cannot change."""
    from importlib.metadata import PackageNotFoundError

    def version(name):
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr('mmevit.utils.versions.version', version)


MAINTAINED = {
    'torch': '2.11.0+cu130',
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmpretrain': '1.3.6',
    'onedl-mmsegmentation': '1.4.2',
}
ORIGINAL = {
    'torch': '2.1.2',
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'mmpretrain': '1.2.0',
    'mmsegmentation': '1.2.2',
}


def test_the_installed_versions_pass():
    check_libraries()


@pytest.mark.parametrize('installed', [MAINTAINED, ORIGINAL], ids=['maintained', 'original'])
def test_maintained_and_original_versions_pass(monkeypatch, installed):
    versions(monkeypatch, installed)
    check_libraries()


@pytest.mark.parametrize(
    ('change', 'parts'),
    [
        ({'mmcv': '1.7.0'}, ['mmcv 1.7.0 is installed', 'mmcv>=2.0.0', 'pip install']),
        ({'mmdet': '2.28.2'}, ['mmdet 2.28.2 is installed', 'mmdet>=3.3.0']),
        ({'mmengine': '0.7.4'}, ['mmengine 0.7.4 is installed', 'mmengine>=0.8.3']),
        ({'mmsegmentation': '0.30.0'}, ['mmsegmentation 0.30.0 is installed', '>=1.2.0']),
        ({'mmpretrain': '2.0.0'}, ['mmpretrain 2.0.0 is installed', '<2.0.0']),
    ],
    ids=str,
)
def test_an_unsupported_version_is_reported(monkeypatch, change, parts):
    versions(monkeypatch, ORIGINAL | change)
    with pytest.raises(ImportError) as caught:
        check_libraries()
    assert '\n' not in str(caught.value)
    assert all(part in str(caught.value) for part in parts)


def test_a_missing_required_library_is_reported(monkeypatch):
    versions(monkeypatch, {})
    library = Library('no_such_module', ('onedl-no-such', 'no-such'), '1.0', '2.0', True)
    with pytest.raises(ImportError, match='onedl-no-such is not installed, .* pip install "onedl'):
        check_libraries([library])


def test_mmdet_and_mmpretrain_may_be_missing(monkeypatch):
    versions(monkeypatch, {name: ORIGINAL[name] for name in ('torch', 'mmengine', 'mmcv')})
    check_libraries()


def test_a_missing_requirement_is_reported_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'msgspec', None)
    with pytest.raises(ImportError, match=r'msgspec is not .* pip install "mmevit\[openmmlab\]"'):
        check_libraries()
