"""EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention (CVPR 2023)."""

import numpy as np
import torch
from mmcv.cnn import build_activation_layer
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmevit.utils.errors import CheckpointError, UserError, list_problems

from .attention import WindowAttention
from .layers import FFN, ConvNorm, Residual, ResidualDepthwise, SqueezeExcite


@MODELS.register_module()
class EfficientViT(BaseModule):
    """EfficientViT backbone, for classification and dense prediction alike.

    From `EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention
    <https://arxiv.org/abs/2305.07027>`_. Its stages work at strides 16, 32 and 64 of the input,
    which may be of any height and width from 32 up, in training and in evaluation.

    Args:
        arch (str | dict): ``'m0'`` to ``'m5'``, or a dict with one value a stage for
            ``embed_dims``, ``depths`` and ``num_heads``, and with ``kernel_sizes``, the kernel
            size of the depthwise convolution on the queries of each head, for as many heads as
            the widest stage has. Defaults to ``'m4'``.
        in_channels (int): Channels of the image. Defaults to 3.
        window_sizes (Sequence[int]): Size of the attention windows of each stage, in pixels of
            that stage's map. Weights made for other windows are resized as they are loaded.
            Classifiers take (7, 7, 4) at 224, (12, 12, 6) at 384 and (16, 16, 8) at 512 pixels;
            dense prediction takes the default at any size. Defaults to (7, 7, 7).
        out_indices (Sequence[int]): Stages whose maps are returned, counted from 0 and in order.
            Stages after the last of them are not built. Defaults to (0, 1, 2).
        frozen_stages (int): -1 freezes nothing, 0 the stem, n the stem and the first n stages:
            their parameters are not trained and their norm layers stay in evaluation mode.
            Defaults to -1.
        norm_eval (bool): Whether all batch norm layers keep their running statistics in training.
            Defaults to False.
        with_cp (bool): Whether to compute each block's activations again in the backward pass
            instead of keeping them, which saves memory and costs time. As everywhere in PyTorch,
            batch norm then sees each batch twice, unless ``norm_eval``. Defaults to False.
        drop_path_rate (float): Stochastic depth rate of the last block; it grows linearly from
            0 at the first. Defaults to 0.
        norm_cfg (dict): Config of the norm layers. Defaults to ``dict(type='BN')``.
        act_cfg (dict): Config of the activations. Defaults to ``dict(type='ReLU', inplace=True)``.
        block_cfg (dict): Config of the blocks, such as other arguments of :class:`SandwichBlock`.
            Defaults to ``dict(type='SandwichBlock')``.
        deploy (bool): Whether to build the folded form, to load the weights of a model after
            :meth:`switch_to_deploy`. Defaults to False.
        init_cfg (dict | list[dict], optional): Config of the initialisation.

    Raises:
        ValueError: If the arch is unknown or inconsistent, or another argument is out of range.
        CheckpointError: From :meth:`init_weights` with pretrained weights, and from loading
            ``evit://`` by mmengine, if the weights are not those of this arch, all of them and no
            others. Other windows are fine. ``load_state_dict()`` behaves as in any PyTorch module.

    Example:
        >>> import torch
        >>> from mmevit.models import EfficientViT
        >>> backbone = EfficientViT('m0').eval()
        >>> for feature in backbone(torch.rand(1, 3, 224, 416)):
        ...     print(tuple(feature.shape))
        (1, 64, 14, 26)
        (1, 128, 7, 13)
        (1, 192, 4, 7)
    """

    arch_zoo = {
        'm0': dict(
            embed_dims=(64, 128, 192),
            depths=(1, 2, 3),
            num_heads=(4, 4, 4),
            kernel_sizes=(5, 5, 5, 5),
        ),
        'm1': dict(
            embed_dims=(128, 144, 192),
            depths=(1, 2, 3),
            num_heads=(2, 3, 3),
            kernel_sizes=(7, 5, 3, 3),
        ),
        'm2': dict(
            embed_dims=(128, 192, 224),
            depths=(1, 2, 3),
            num_heads=(4, 3, 2),
            kernel_sizes=(7, 5, 3, 3),
        ),
        'm3': dict(
            embed_dims=(128, 240, 320),
            depths=(1, 2, 3),
            num_heads=(4, 3, 4),
            kernel_sizes=(5, 5, 5, 5),
        ),
        'm4': dict(
            embed_dims=(128, 256, 384),
            depths=(1, 2, 3),
            num_heads=(4, 4, 4),
            kernel_sizes=(7, 5, 3, 3),
        ),
        'm5': dict(
            embed_dims=(192, 288, 384),
            depths=(1, 3, 4),
            num_heads=(3, 3, 4),
            kernel_sizes=(7, 5, 3, 3),
        ),
    }

    # Says in the metadata of a state dict that it must not be loaded in part.
    MUST_FIT = 'must_fit'
    _is_initializing = False

    def __init__(
        self,
        arch='m4',
        in_channels=3,
        window_sizes=(7, 7, 7),
        out_indices=(0, 1, 2),
        frozen_stages=-1,
        norm_eval=False,
        with_cp=False,
        drop_path_rate=0.0,
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='ReLU', inplace=True),
        block_cfg=dict(type='SandwichBlock'),
        deploy=False,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        arch = self._resolve_arch(arch)
        self._check_ranges(
            len(arch['depths']), window_sizes, out_indices, frozen_stages, drop_path_rate
        )
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.deploy = deploy
        self.embed_dims = tuple(arch['embed_dims'])

        common = dict(norm_cfg=norm_cfg, act_cfg=act_cfg, deploy=deploy)
        drop_path_rates = iter(np.linspace(0, drop_path_rate, sum(arch['depths'])).tolist())
        self.stem = build_stem(in_channels, self.embed_dims[0], **common)
        self.stages = nn.ModuleList()
        for stage in range(max(out_indices) + 1):
            channels = self.embed_dims[stage]
            layers = nn.Sequential()
            if stage > 0:
                layers.append(Subsample(self.embed_dims[stage - 1], channels, **common))
            for _ in range(arch['depths'][stage]):
                block = dict(
                    type='SandwichBlock',
                    channels=channels,
                    num_heads=arch['num_heads'][stage],
                    window_size=window_sizes[stage],
                    kernel_sizes=arch['kernel_sizes'],
                    drop_path_rate=next(drop_path_rates),
                    **common,
                )
                layers.append(MODELS.build({**block, **block_cfg}))
            self.stages.append(layers)
        self._freeze_stages()
        if deploy:
            self._put_channels_last()

    @property
    def out_channels(self):
        """tuple[int]: Channels of each returned map, what a neck takes as ``in_channels``."""
        return tuple(self.embed_dims[index] for index in self.out_indices)

    def forward(self, x):
        """Compute the feature maps of the stages in ``out_indices``.

        Args:
            x (Tensor): Images, (N, in_channels, H, W).

        Returns:
            tuple[Tensor]: One (N, embed_dims[i], ceil(H / s), ceil(W / s)) map for each index i,
            with s = 16, 32, 64.

        Raises:
            UserError: If a side is below 32 pixels, in bfloat16 on a CPU.
        """
        size = x.shape[2:]
        x = self.stem(x)
        # Not the dtype of the images, which is float32 under autocast.
        if x.dtype == torch.bfloat16 and x.device.type == 'cpu' and not torch.jit.is_tracing():
            check_bfloat16_size(*size)
        outputs = []
        for index, stage in enumerate(self.stages):
            for layer in stage:
                if self.with_cp and x.requires_grad:
                    x = checkpoint(layer, x, use_reentrant=False)
                else:
                    x = layer(x)
            if index in self.out_indices:
                outputs.append(x)
        return tuple(outputs)

    def train(self, mode=True):
        """Set the training mode, but keep what is frozen in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def get_layer_depth(self, param_name, prefix=''):
        """Tell how deep in the network a parameter is, for layer-wise learning rate decay.

        The stem is layer 0, and each block and each subsampling is a layer; what is not in the
        backbone, such as a head, is the last.

        Args:
            param_name (str): Name of the parameter in the model.
            prefix (str): What the names of the backbone's parameters start with there. Defaults to
                ``''``.

        Returns:
            tuple[int, int]: The layer and the number of layers.

        Example:
            >>> backbone = EfficientViT('m0')
            >>> backbone.get_layer_depth('backbone.stages.1.0.expand.conv.weight', 'backbone.')
            (2, 10)
        """
        num_layers = [len(stage) for stage in self.stages]
        total = sum(num_layers) + 2
        part, *indices = param_name.removeprefix(prefix).split('.')
        if not param_name.startswith(prefix) or part not in ('stem', 'stages'):
            return total - 1, total
        if part == 'stem':
            return 0, total
        stage, layer = map(int, indices[:2])
        return 1 + sum(num_layers[:stage]) + layer, total

    def switch_to_deploy(self):
        """Fold every norm layer, identity and constant into the convolutions, for inference.

        The folded model gives the same maps as this one in evaluation mode. It is not for
        training. Its maps have their channels last in memory, whatever layout the images have.
        """
        for module in list(self.modules())[1:]:
            if hasattr(module, 'switch_to_deploy'):
                module.switch_to_deploy()
        self._put_channels_last()
        self.deploy = True

    def _put_channels_last(self):
        # Convolutions pass the layout of their weights on to their output. This one is up to a
        # quarter faster, and windows are then copied in whole rows.
        self.to(memory_format=torch.channels_last)

    def init_weights(self):
        """Initialize the weights, and refuse pretrained ones that do not fit."""
        self._is_initializing = True
        try:
            super().init_weights()
        finally:
            self._is_initializing = False

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        # mmengine would load what fits of a pretrained checkpoint, and only log the rest.
        if self._is_initializing or local_metadata.get(self.MUST_FIT):
            given = select_weights(state_dict, prefix)
            # As a part of a model it may be left out of what is loaded.
            if given or not prefix:
                self._check_weights(given)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _check_weights(self, given):
        own = self.state_dict()
        missing = [
            name for name in own if name not in given and not name.endswith('num_batches_tracked')
        ]
        unbuilt = tuple(f'stages.{i}.' for i in range(len(self.stages), len(self.embed_dims)))
        surplus = [name for name in given if name not in own and not name.startswith(unbuilt)]
        misshapen = [
            f'{name}, {tuple(given[name].shape)} instead of {tuple(own[name].shape)}'
            for name in own
            if name in given and not self._takes(name, given[name], own[name])
        ]
        problems = {'lack': missing, 'have besides': surplus, 'have in another shape': misshapen}
        if found := list_problems(problems):
            raise CheckpointError(
                f'The weights do not fit this model: they {"; ".join(found)}; '
                f'{self._explain_misfit(given)}.'
            )

    def _explain_misfit(self, given):
        if 'backbone.stem.0.conv.weight' in given:
            return (
                "they are of a whole model: give prefix='backbone.' beside checkpoint in init_cfg"
            )
        if 'stem.0.conv.bias' in given and not self.deploy:
            return 'they are folded: build the model with deploy=True'
        if 'stem.0.norm.weight' in given and self.deploy:
            return 'they are not folded: build without deploy, load, and call switch_to_deploy()'
        arch = infer_arch(given)
        return f'they look like those of arch={arch!r}' if arch else 'they are of none of the archs'

    @staticmethod
    def _takes(name, given, own):
        if name.endswith('attention_biases') and given.ndim == 2:
            # Another window: square tables are resized on their way in.
            is_square = round(given.shape[1] ** 0.5) ** 2 == given.shape[1]
            return given.shape[0] == own.shape[0] and is_square
        return given.shape == own.shape

    def _freeze_stages(self):
        if self.frozen_stages < 0:
            return
        for module in (self.stem, *self.stages[: self.frozen_stages]):
            module.eval()
            module.requires_grad_(False)

    @classmethod
    def _resolve_arch(cls, arch):
        if isinstance(arch, dict):
            cls._check_arch(arch)
            return arch
        if not isinstance(arch, str) or arch not in cls.arch_zoo:
            raise ValueError(
                f'Unknown EfficientViT arch {arch!r}: choose from {", ".join(cls.arch_zoo)}, or '
                'give a dict with embed_dims, depths, num_heads and kernel_sizes.'
            )
        return cls.arch_zoo[arch]

    @staticmethod
    def _check_arch(arch):
        keys = ('embed_dims', 'depths', 'num_heads', 'kernel_sizes')
        if set(arch) != set(keys):
            raise ValueError(f'A custom arch has the keys {", ".join(keys)}, not {list(arch)}.')
        num_stages = len(arch['embed_dims'])
        if len(arch['depths']) != num_stages or len(arch['num_heads']) != num_stages:
            raise ValueError(
                f'embed_dims has {num_stages} stages; depths {arch["depths"]} and num_heads '
                f'{arch["num_heads"]} need as many values.'
            )
        for channels, num_heads in zip(arch['embed_dims'], arch['num_heads'], strict=True):
            if num_heads < 1 or channels % num_heads:
                raise ValueError(f'{channels} channels do not split into {num_heads} heads evenly.')
        if arch['embed_dims'][0] % 8:
            raise ValueError(
                f'The first of embed_dims is {arch["embed_dims"][0]}; the stem needs a multiple '
                'of 8.'
            )
        kernel_sizes = arch['kernel_sizes']
        if len(kernel_sizes) < max(arch['num_heads']) or any(
            size < 1 or size % 2 == 0 for size in kernel_sizes
        ):
            raise ValueError(
                f'kernel_sizes {kernel_sizes} needs one odd size for each of the '
                f'{max(arch["num_heads"])} heads.'
            )

    @staticmethod
    def _check_ranges(num_stages, window_sizes, out_indices, frozen_stages, drop_path_rate):
        if (
            isinstance(window_sizes, int)
            or len(window_sizes) != num_stages
            or not all(isinstance(size, int) and size >= 1 for size in window_sizes)
        ):
            raise ValueError(
                f'window_sizes {window_sizes} must be {num_stages} whole numbers, one for each '
                'stage and none below 1.'
            )
        stages = range(num_stages)
        if (
            isinstance(out_indices, int)
            or not out_indices
            or list(out_indices) != [stage for stage in stages if stage in out_indices]
        ):
            raise ValueError(
                f'out_indices {out_indices} must name at least one of the stages 0 to '
                f'{num_stages - 1}, each once and in order.'
            )
        if not -1 <= frozen_stages <= max(out_indices) + 1:
            raise ValueError(
                f'frozen_stages {frozen_stages} must be -1 (nothing), 0 (the stem), or up to '
                f'{max(out_indices) + 1} (the stem and all stages built).'
            )
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate {drop_path_rate} must be at least 0 and below 1.')


def infer_arch(weights):
    """Guess the arch that weights were made for, by their widths, depths, heads and kernels.

    Args:
        weights (dict[str, Tensor]): Weights of a backbone.

    Returns:
        str | None: A name of ``EfficientViT.arch_zoo``, or None if it is none of them.

    Example:
        >>> infer_arch(EfficientViT('m2').state_dict())
        'm2'
    """
    for name, arch in EfficientViT.arch_zoo.items():
        with torch.device('meta'):
            model = EfficientViT(arch)
        shapes = {
            key: value.shape
            for key, value in model.state_dict().items()
            if key.endswith('conv.weight')
        }
        given = {key: value.shape for key, value in weights.items() if key in shapes}
        if given == shapes:
            return name
    return None


def infer_window_sizes(weights):
    """Tell the windows that weights were made for by the sizes of their bias tables.

    Args:
        weights (dict[str, Tensor]): Weights of a backbone, not folded.

    Returns:
        list[int] | None: The window of each stage, or None if there are no such tables.

    Example:
        >>> infer_window_sizes(EfficientViT('m2', window_sizes=(7, 7, 4)).state_dict())
        [7, 7, 4]
    """
    windows = {
        int(name.split('.')[1]): round(table.shape[1] ** 0.5)
        for name, table in weights.items()
        if name.endswith('attention_biases')
    }
    return [window for _, window in sorted(windows.items())] or None


def select_weights(weights, prefix):
    """Select the weights of a part of a model.

    Args:
        weights (dict[str, Tensor]): Weights of a whole model, such as a classifier or detector.
        prefix (str): What their names start with, such as ``'backbone.'``.

    Returns:
        dict[str, Tensor]: Those of the part, by their names in the part.

    Example:
        >>> weights = {'backbone.stem.0.conv.weight': 1, 'head.head.bn.weight': 2}
        >>> select_weights(weights, 'backbone.')
        {'stem.0.conv.weight': 1}
    """
    return {
        name.removeprefix(prefix): weight
        for name, weight in weights.items()
        if name.startswith(prefix)
    }


def build_stem(in_channels, out_channels, norm_cfg, act_cfg, deploy):
    """Overlapping patch embedding: four 3x3 convolutions of stride 2 (Section 3.2).

    Args:
        in_channels (int): Channels of the image.
        out_channels (int): Channels of the first stage, a multiple of 8.
        norm_cfg (dict): Config of the norm layers.
        act_cfg (dict): Config of the activations, which follow all convolutions but the last.
        deploy (bool): Whether to build the folded form.

    Returns:
        nn.Sequential: (N, in_channels, H, W) to (N, out_channels, H / 16, W / 16).
    """
    widths = (in_channels, *(out_channels // divisor for divisor in (8, 4, 2, 1)))
    layers = []
    for narrow, wide in zip(widths[:-1], widths[1:], strict=True):
        layers.append(ConvNorm(narrow, wide, 3, stride=2, norm_cfg=norm_cfg, deploy=deploy))
        layers.append(build_activation_layer(act_cfg))
    return nn.Sequential(*layers[:-1])


class Subsample(nn.Sequential):
    """Subsampling between two stages: an inverted residual between two light FFNs (Section 3.2).

    Args:
        in_channels (int): Channels of the stage before.
        out_channels (int): Channels of the stage after.
        norm_cfg (dict): Config of the norm layers.
        act_cfg (dict): Config of the activations.
        deploy (bool): Whether to build the folded form.
    """

    def __init__(self, in_channels, out_channels, norm_cfg, act_cfg, deploy):
        super().__init__()
        hidden = 4 * in_channels
        norm = dict(norm_cfg=norm_cfg, deploy=deploy)
        self.depthwise0 = ResidualDepthwise(in_channels, **norm)
        self.ffn0 = Residual(FFN(in_channels, act_cfg=act_cfg, **norm))
        self.expand = ConvNorm(in_channels, hidden, **norm)
        self.act0 = build_activation_layer(act_cfg)
        self.downsample = ConvNorm(hidden, hidden, 3, stride=2, groups=hidden, **norm)
        self.act1 = build_activation_layer(act_cfg)
        self.squeeze_excite = SqueezeExcite(hidden, act_cfg)
        self.reduce = ConvNorm(hidden, out_channels, **norm)
        self.depthwise1 = ResidualDepthwise(out_channels, **norm)
        self.ffn1 = Residual(FFN(out_channels, act_cfg=act_cfg, **norm))


@MODELS.register_module()
class SandwichBlock(nn.Sequential):
    """Sandwich layout: attention between token mixing and FFNs (Section 3.1, Equation 1).

    Args:
        channels (int): Channels of the input and the output.
        num_heads (int): Number of attention heads.
        window_size (int): Size of the attention windows.
        kernel_sizes (Sequence[int]): Kernel size of the convolution on each head's queries.
        drop_path_rate (float): Stochastic depth rate of each residual branch.
        norm_cfg (dict): Config of the norm layers.
        act_cfg (dict): Config of the activations.
        deploy (bool): Whether to build the folded form.
        num_ffns (int): FFNs before the attention, and as many after it, N in the paper. Defaults
            to 1.
        ffn_ratio (int): How many times as wide the FFNs are inside. Defaults to 2.
        token_mixing (bool): Whether there is a depthwise convolution before each FFN. Defaults to
            True.
        attention_cfg (dict): Config of the attention inside a window, such as other arguments of
            :class:`CascadedGroupAttention`. Defaults to ``dict(type='CascadedGroupAttention')``.

    Raises:
        ValueError: If ``num_ffns`` is below 1.
    """

    def __init__(
        self,
        channels,
        num_heads,
        window_size,
        kernel_sizes,
        drop_path_rate,
        norm_cfg,
        act_cfg,
        deploy,
        num_ffns=1,
        ffn_ratio=2,
        token_mixing=True,
        attention_cfg=dict(type='CascadedGroupAttention'),
    ):
        super().__init__()
        if num_ffns < 1:
            raise ValueError(f'num_ffns is {num_ffns}; there is at least one on each side.')
        norm = dict(norm_cfg=norm_cfg, deploy=deploy)
        common = dict(act_cfg=act_cfg, **norm)
        for index in range(2 * num_ffns):
            if index == num_ffns:
                attention = WindowAttention(
                    channels,
                    num_heads,
                    window_size,
                    kernel_sizes=kernel_sizes,
                    **common,
                    **attention_cfg,
                )
                self.attention = Residual(attention, drop_path_rate)
            if token_mixing:
                depthwise = ResidualDepthwise(channels, drop_path_rate, norm_weight=0.0, **norm)
                self.add_module(f'depthwise{index}', depthwise)
            ffn = FFN(channels, ratio=ffn_ratio, **common)
            self.add_module(f'ffn{index}', Residual(ffn, drop_path_rate))


def check_bfloat16_size(height: int, width: int) -> None:
    """Refuse small images: PyTorch's bfloat16 convolutions give NaN there on CPUs with AMX."""
    if height < 32 or width < 32:
        raise UserError(
            f'Images of {height}x{width} pixels are too small for bfloat16 on a CPU. Use float32, '
            'or images of 32x32 pixels and up.'
        )
