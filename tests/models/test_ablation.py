import re
from pathlib import Path

import pytest
import torch
from making_models import TINY
from marking import slow_but
from mmengine.config import Config
from mmpretrain.models.backbones.swin_transformer import SwinBlock
from torch import nn
from torch.nn import functional as F

from mmevit.deploy import export, load_exported, try_to_fold
from mmevit.models import EfficientViT, SwinLayoutBlock
from mmevit.models.attention import CascadedGroupAttention, add_output

CONFIGS = sorted(path.stem for path in Path('configs/ablation').glob('*.py'))


def read_backbone(name):
    """The backbone of a config, smaller."""
    cfg = Config.fromfile(f'configs/ablation/{name}.py').model.backbone
    cfg.update(arch=TINY)
    return {key: value for key, value in cfg.items() if key != 'type'}


def test_there_is_a_config_for_each_row_of_the_papers_table():
    rows = [Path(f'configs/ablation/{name}.py').read_text().split(':')[0] for name in CONFIGS]
    table = [f'# Table 6, ({number})' for number in range(2, 12)]
    assert sorted(rows) == sorted([*table, *['# Figure 7'] * 8])


@pytest.mark.parametrize('name', CONFIGS)
def test_ten_steps_of_training_lower_the_loss(name):
    backbone = EfficientViT(**read_backbone(name))
    model = nn.ModuleList([backbone, nn.Linear(32, 4)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    images, labels = torch.randn(8, 3, 64, 64), torch.arange(8) % 4
    losses = []
    for _ in range(11):
        loss = F.cross_entropy(model[1](backbone(images)[-1].mean((2, 3))), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[10] < 0.9 * losses[0]


# The attention of Swin's block is the plain attention.
@pytest.mark.parametrize('name', slow_but(('evit_m4_02-swin-block',), CONFIGS))
def test_onnx_file_agrees_with_the_network(name, randomised, tmp_path):
    backbone = randomised(**read_backbone(name)).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        (expected,) = backbone(images)
    path = tmp_path / 'network.onnx'
    export(try_to_fold(backbone), images, path, 'onnx')
    (output,) = load_exported(path)(images)
    assert (output - expected).abs().max() < 1e-5 * expected.abs().max()


def test_heads_without_cascade_do_not_see_each_other():
    x = torch.randn(2, 32, 7, 7)
    for cascade in (True, False):
        attention = CascadedGroupAttention(32, 4, 7, (5, 5, 5, 5), cascade=cascade).eval()
        attention.proj = attention.act = nn.Identity()
        changed = x.clone()
        changed[:, :8] += 1  # what the first head sees
        with torch.no_grad():
            seen = (attention(x) - attention(changed)).abs().amax((0, 2, 3)).view(4, 8).amax(1) > 0
        assert seen.tolist() == [True] + [cascade] * 3


def test_the_attention_can_have_its_own_activation():
    block_cfg = dict(attention_cfg=dict(act_cfg=dict(type='GELU')))
    block = EfficientViT('m0', block_cfg=block_cfg).stages[0][0]
    assert isinstance(block.attention.branch.attention.act, nn.GELU)
    assert isinstance(block.ffn0.branch.act, nn.ReLU)


def test_key_channels_none_gives_queries_keys_and_values_of_equal_width():
    attention = CascadedGroupAttention(96, 4, 7, (3, 3, 3, 3), key_channels=None)
    assert attention.qkvs[0].conv.weight.shape == (3 * 24, 24, 1, 1)


@pytest.mark.parametrize(
    'block_cfg',
    [
        dict(type='SandwichBlock', num_ffns=0),
        dict(type='SwinLayoutBlock', num_ffns=2),
        dict(attention_cfg=dict(type='PlainWindowAttention', key_channels=4)),
    ],
)
def test_invalid_block_arguments_raise(block_cfg):
    with pytest.raises((ValueError, TypeError), match='num_ffns|key_channels'):
        EfficientViT('m0', block_cfg=block_cfg)


@pytest.mark.parametrize('width', [2, 3, 5])
def test_an_output_of_another_width_is_added_to_the_first_channels(width):
    split, output = torch.randn(1, 3, 2, 2), torch.randn(1, width, 2, 2)
    expected = split.clone()
    expected[:, : min(width, 3)] += output[:, :3]
    torch.testing.assert_close(add_output(split, output, 3 - width), expected)


def test_more_ffns_keep_the_keys_of_one_ffn():
    names = set(EfficientViT(TINY).state_dict())
    wider = EfficientViT(TINY, block_cfg=dict(type='SandwichBlock', num_ffns=2))
    assert names < set(wider.state_dict())
    order = [name for name, _ in wider.stages[0][0].named_children()]
    assert order == [
        'depthwise0', 'ffn0', 'depthwise1', 'ffn1', 'attention',
        'depthwise2', 'ffn2', 'depthwise3', 'ffn3',
    ]  # fmt: skip


@pytest.mark.parametrize('size', [(14, 14), (9, 4)])
def test_swin_layout_block_equals_mmpretrains_without_shift(size):
    ours = SwinLayoutBlock(32, 4, 7, 0.0).eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.5)
    reference = SwinBlock(32, 4, 7, pad_small_map=True).eval()
    parts = {'attention.attention.attention': 'attn.w_msa'}
    weights = {
        re.sub('|'.join(parts), lambda match: parts[match[0]], name): value
        for name, value in ours.state_dict().items()
    }
    reference.load_state_dict(weights)
    x = torch.randn(2, 32, *size)
    expected = reference(x.flatten(2).transpose(1, 2), size).transpose(1, 2).view_as(x)
    torch.testing.assert_close(ours(x), expected)
