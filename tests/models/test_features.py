import pytest
import timm
import torch
from comparing import assert_near
from timm.models._features import FeatureGetterNet

from mmevit.checkpoint import convert_names
from mmevit.models import EfficientViT


@pytest.fixture(scope='module')
def backbone(randomised):
    return randomised('m0', window_sizes=(7, 7, 4)).eval()


@pytest.fixture(scope='module')
def reference(backbone):
    """timm's network with the same weights."""
    model = timm.create_model('efficientvit_m0', num_classes=0).eval()
    model.load_state_dict(convert_names(backbone.state_dict(), 'timm'))
    return model


def test_feature_info_equals_timms():
    for indices in ((0, 1, 2), (1, 2)):
        theirs = timm.create_model('efficientvit_m0', features_only=True, out_indices=indices)
        ours = EfficientViT('m0', out_indices=indices).feature_info
        for name in ('channels', 'reduction', 'module_name'):
            for idx in (None, 1, [0, 2]):
                assert getattr(ours, name)(idx) == getattr(theirs.feature_info, name)(idx)
        assert len(ours) == len(theirs.feature_info)
        assert all(ours[1][key] == theirs.feature_info[1][key] for key in ours[1])


@pytest.mark.parametrize('stop_early', [False, True])
@pytest.mark.parametrize('indices', [None, 2, 1, [0], [-1, 0], (1,)])
def test_intermediates_equal_timms(indices, stop_early, backbone, reference):
    image = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        last, maps = backbone.forward_intermediates(image, indices, stop_early=stop_early)
        wanted = reference.forward_intermediates(image, indices, stop_early=stop_early)
        only = backbone.forward_intermediates(image, indices, intermediates_only=True)
    assert_near([last, *maps], [wanted[0], *wanted[1]], 1e-5)
    assert all(a.equal(b) for a, b in zip(only, maps, strict=True))


def test_timms_feature_getter_accepts_the_backbone(backbone):
    image = torch.rand(1, 3, 64, 64)
    getter = FeatureGetterNet(backbone, out_indices=(0, 2))
    assert all(a.equal(b) for a, b in zip(getter(image), backbone(image)[::2], strict=True))


def test_feature_info_is_that_of_the_returned_maps_and_the_modules_that_compute_them():
    backbone = EfficientViT('m0', out_indices=(0, 2), out_stem=True).eval()
    info, outputs = backbone.feature_info, []
    for name in info.module_name():
        backbone.get_submodule(name).register_forward_hook(lambda *args: outputs.append(args[2]))
    maps = backbone(torch.rand(1, 3, 64, 128))
    outputs = [map_ for map_ in outputs if map_ is not None]
    assert info.channels() == [map_.shape[1] for map_ in maps] == list(backbone.out_channels)
    assert info.reduction() == [128 // map_.shape[3] for map_ in maps] == [8, 16, 64]
    (stem,) = backbone.forward_intermediates(
        torch.rand(1, 3, 64, 64), [0], stop_early=True, intermediates_only=True
    )
    assert stem.shape == (1, 32, 8, 8)


@pytest.mark.parametrize('indices', [0, 4, [3], [-4], []])
def test_invalid_indices_raise(indices):
    with pytest.raises(ValueError, match='indices=.* is out of range'):
        EfficientViT('m0').forward_intermediates(torch.rand(1, 3, 32, 32), indices)


def test_other_formats_raise():
    with pytest.raises(ValueError, match="output_fmt='NLC' is not supported"):
        EfficientViT('m0').forward_intermediates(torch.rand(1, 3, 32, 32), output_fmt='NLC')
