import pytest
import torch
import torch.nn.functional as F
from mmdet.models.necks import FPN

from mmevit.models import EfficientViTFPN

CHANNELS = [16, 24, 32]


def make_maps(height=6, width=9, dtype=torch.float64):
    sizes = [(height, width), (-(-height // 2), -(-width // 2)), (-(-height // 4), -(-width // 4))]
    return [torch.randn(2, c, *size, dtype=dtype) for c, size in zip(CHANNELS, sizes, strict=True)]


@pytest.mark.parametrize(
    ('num_upsample_levels', 'num_outs', 'extra'),
    [(1, 5, 'on_input'), (1, 6, 'on_output'), (1, 5, 'on_lateral'), (2, 5, False), (2, 7, False)],
)
def test_coarse_levels_are_those_of_mmdets_fpn_and_finer_ones_grow_from_the_finest_lateral(
    num_upsample_levels, num_outs, extra
):
    neck = EfficientViTFPN(
        CHANNELS, 8, num_outs, num_upsample_levels=num_upsample_levels, add_extra_convs=extra
    ).double()
    reference = FPN(CHANNELS, 8, num_outs - num_upsample_levels, add_extra_convs=extra).double()
    missing = reference.load_state_dict(neck.state_dict(), strict=False).missing_keys
    assert not missing
    maps = make_maps()
    outs = neck(maps)
    assert len(outs) == num_outs
    for actual, wanted in zip(outs[num_upsample_levels:], reference(maps), strict=True):
        assert actual.equal(wanted)

    laterals = [conv.conv(x) for conv, x in zip(neck.lateral_convs, maps, strict=True)]
    lateral = laterals[2]
    for finer in laterals[1::-1]:
        lateral = finer + F.interpolate(lateral, size=finer.shape[2:], mode='nearest')
    finest = neck.fpn_convs[0]
    for level in range(num_upsample_levels):
        deconv = finest.upsamples[level].conv
        lateral = F.conv_transpose2d(lateral, deconv.weight, deconv.bias, stride=2)
        conv = finest.finer_convs[level].conv
        wanted = F.conv2d(lateral, conv.weight, conv.bias, padding=1)
        torch.testing.assert_close(outs[num_upsample_levels - 1 - level], wanted)


def test_without_finer_levels_it_is_mmdets_fpn_with_fewer_outputs():
    neck = EfficientViTFPN(CHANNELS, 8, 2, num_upsample_levels=0).double()
    reference = FPN(CHANNELS, 8, 3).double()
    assert not neck.load_state_dict(reference.state_dict(), strict=False).missing_keys
    maps = make_maps()
    outs = neck(maps)
    assert len(outs) == 2
    for actual, wanted in zip(outs, reference(maps), strict=False):
        assert actual.equal(wanted)


def test_fewer_outputs_are_the_finest_and_every_parameter_has_a_gradient():
    whole = EfficientViTFPN(CHANNELS, 8, 5, num_upsample_levels=2).double()
    neck = EfficientViTFPN(CHANNELS, 8, 3, num_upsample_levels=2).double()
    surplus = neck.load_state_dict(whole.state_dict(), strict=False).unexpected_keys
    assert {name.rpartition('.conv')[0] for name in surplus} == {'fpn_convs.1', 'fpn_convs.2'}
    maps = make_maps()
    outs = neck(maps)
    assert len(outs) == 3
    for actual, wanted in zip(outs, whole(maps), strict=False):
        assert actual.equal(wanted)
    sum(out.sum() for out in outs).backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())


def test_a_list_of_channels_projects_each_level_of_a_pyramid_as_wide_as_the_narrowest():
    widths = [8, 12, 8, 20]
    plain = EfficientViTFPN(CHANNELS, 8, 4).double()
    neck = EfficientViTFPN(CHANNELS, widths, 4).double()
    neck.load_state_dict(plain.state_dict(), strict=False)
    maps = make_maps()
    outs = neck(maps)
    assert [out.shape[1] for out in outs] == widths
    for index, level in enumerate(plain(maps)):
        if widths[index] != 8:
            projection = neck.projections[index]
            weight = projection.weight[:, :, 0, 0]
            level = torch.einsum('oi,nihw->nohw', weight, level) + projection.bias[:, None, None]
        torch.testing.assert_close(outs[index], level)


def test_norm_layers_reach_the_finer_levels_and_gradients_reach_the_inputs():
    neck = EfficientViTFPN(CHANNELS, 8, 4, norm_cfg=dict(type='BN'))
    assert all(hasattr(layer, 'bn') for layer in (*neck.fpn_convs[0].upsamples, *neck.fpn_convs))
    maps = [map_.requires_grad_() for map_ in make_maps(dtype=torch.float32)]
    neck(maps)[0].sum().backward()
    assert all(map_.grad is not None for map_ in maps)


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (dict(in_channels=[16], num_outs=4), 'at least two backbone maps'),
        (dict(in_channels=CHANNELS, num_outs=4, start_level=2), 'at least two backbone maps'),
        (dict(in_channels=16, num_outs=4), 'in_channels=16 is not a list'),
        (dict(in_channels=CHANNELS, num_outs=2, num_upsample_levels=2), 'Pass at least 3'),
        (dict(in_channels=CHANNELS, num_outs=4, out_channels=[8, 8]), 'one for each of the 4'),
        (dict(in_channels=CHANNELS, num_outs=5, num_upsample_levels=-1), 'at least 0'),
    ],
)
def test_invalid_arguments_raise(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        EfficientViTFPN(**{'out_channels': 8, **arguments})


def test_fewer_maps_than_channels_raise():
    neck = EfficientViTFPN(CHANNELS, 8, 4)
    with pytest.raises(ValueError, match='built for 3 maps .* the backbone returns 2'):
        neck(make_maps(dtype=torch.float32)[:2])
