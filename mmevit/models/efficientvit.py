"""The EfficientViT backbone. Sections and equations are those of the paper."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from mmcv.cnn import build_activation_layer
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmevit.utils.errors import CheckpointError
from mmevit.utils.files import find_pretrained

from .arch import ARCHS, EfficientViTArch, check_backbone_arguments
from .attention import WindowAttention
from .features import FeatureInfo, take_indices
from .layers import (
    FFN,
    ConvNorm,
    Residual,
    ResidualDepthwise,
    SqueezeExcite,
    add_load_hook,
    check_bfloat16_size,
)


@MODELS.register_module()
class EfficientViT(BaseModule):
    """EfficientViT backbone, for classification and dense prediction.

    From `EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention
    <https://arxiv.org/abs/2305.07027>`_. Its stages have strides 16, 32 and 64. The input may have
    any height and width from 32 pixels up, in training and in evaluation. In training, batch norm
    needs a batch size of 2 or more up to 64x64 pixels, of which the last stage makes one pixel.

    Args:
        arch: ``'m0'`` to ``'m5'``, or a dict with the fields of :class:`EfficientViTArch`.
        window_sizes: Size of the attention windows of each stage, in pixels of its feature map.
            Bias tables of other windows are resized on loading (not in the folded form).
            Classifiers use (7, 7, 4) at 224, (12, 12, 6) at 384 and (16, 16, 8) at 512 pixels,
            dense prediction the default.
        out_indices: Stages whose feature maps are returned, counted from 0 and in order. Stages
            after the last of them are not built.
        out_stem: Whether to return the stem's map of stride 8 too, before those of the stages. It
            has half the channels of the first stage.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages, with the
            subsampling before them. Frozen norm layers stay in evaluation mode.
        norm_eval: Whether batch norm is in evaluation mode in training (frozen running statistics).
        with_cp: Whether to recompute each block's activations in the backward pass, which saves
            memory and costs time. Batch norm then sees each batch twice, unless ``norm_eval``.
        drop_path_rate: Stochastic depth rate of the last block. It grows linearly from 0 at the
            first.
        block_cfg: Type of the blocks, :class:`SandwichBlock` by default, and other arguments.
        deploy: Whether to build the folded form, to load the weights of a model after
            :meth:`switch_to_deploy`.

    Raises:
        ValueError: If an argument is out of range, or the arch is unknown or inconsistent.
        CheckpointError: From :meth:`init_weights` and from loading ``evit://`` with mmengine, if
            there are missing or unexpected keys or size mismatches.

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

    stages: Any  # nn.ModuleList of nn.Sequential
    arch_zoo = ARCHS
    # Pre-hooks of load_state_dict() of every backbone. mmevit.checkpoint, which imports this
    # package, adds the check that pretrained weights fit. The check reads is_initializing.
    load_hooks: ClassVar[list[Callable[..., None]]] = []
    is_initializing = False

    def __init__(
        self,
        arch: str | dict = 'm4',
        in_channels: int = 3,
        window_sizes: Sequence[int] = (7, 7, 7),
        out_indices: Sequence[int] = (0, 1, 2),
        out_stem: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        drop_path_rate: float = 0.0,
        norm_cfg: dict = dict(type='BN'),
        act_cfg: dict = dict(type='ReLU', inplace=True),
        block_cfg: dict = dict(),
        deploy: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        settings = EfficientViTArch.from_config(arch)
        check_backbone_arguments(
            len(settings.depths), window_sizes, out_indices, frozen_stages, drop_path_rate
        )
        self.out_indices = tuple(out_indices)
        self.out_stem = out_stem
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.deploy = deploy
        self.embed_dims = settings.embed_dims

        common: dict[str, Any] = dict(norm_cfg=norm_cfg, act_cfg=act_cfg, deploy=deploy)
        drop_path_rates = iter(np.linspace(0, drop_path_rate, sum(settings.depths)).tolist())
        self.stem = build_stem(in_channels, self.embed_dims[0], **common)
        self.stages = nn.ModuleList()
        for stage in range(max(out_indices) + 1):
            channels = self.embed_dims[stage]
            layers = nn.Sequential()
            if stage > 0:
                layers.append(Subsample(self.embed_dims[stage - 1], channels, **common))
            for _ in range(settings.depths[stage]):
                block = dict(
                    type='SandwichBlock',
                    channels=channels,
                    num_heads=settings.num_heads[stage],
                    window_size=window_sizes[stage],
                    kernel_sizes=settings.kernel_sizes,
                    drop_path_rate=next(drop_path_rates),
                    **common,
                )
                layers.append(MODELS.build({**block, **block_cfg}))
            self.stages.append(layers)
        for hook in self.load_hooks:
            add_load_hook(self, hook)
        self._freeze_stages()
        if deploy:
            self._put_channels_last()

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each returned feature map: the ``in_channels`` of a neck."""
        stem = (self.embed_dims[0] // 2,) if self.out_stem else ()
        return stem + tuple(self.embed_dims[index] for index in self.out_indices)

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels and strides of the maps, with the interface of timm's ``FeatureInfo``.

        It also has the stages that are built but not in ``out_indices``. With ``out_stem``, the
        stem's map has index 0.

        Example:
            >>> info = EfficientViT('m0').feature_info
            >>> info.channels(), info.reduction()
            ([64, 128, 192], [16, 32, 64])
        """
        stages = [
            dict(num_chs=self.embed_dims[i], reduction=16 * 2**i, module=f'stages.{i}')
            for i in range(len(self.stages))
        ]
        if not self.out_stem:
            return FeatureInfo(stages, self.out_indices)
        stem = dict(num_chs=self.embed_dims[0] // 2, reduction=8, module='stem.5')
        return FeatureInfo([stem, *stages], (0, *(1 + index for index in self.out_indices)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of the stages in ``out_indices``, and of the stem if asked for.

        Args:
            x: Images, (N, in_channels, H, W).

        Returns:
            (N, embed_dims[i], ceil(H / s), ceil(W / s)) for each index i, with s = 16 * 2**i. With
            ``out_stem``, first (N, embed_dims[0] / 2, ceil(H / 8), ceil(W / 8)).

        Raises:
            UserError: If a side is below 32 pixels, in bfloat16 on a CPU.
        """
        _, maps = self._compute_maps(x, self.out_indices, self.out_stem)
        return tuple(maps)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute the last map and any of the maps in ``feature_info``, as in timm.

        Args:
            x: Images, (N, in_channels, H, W).
            indices: Maps to return: indices into ``feature_info``, the last n maps, or all of them
                (None).
            norm: Has no effect, since no norm layer follows the stages.
            stop_early: Whether to skip the stages after the last of the indices.
            output_fmt: Only ``'NCHW'``.
            intermediates_only: Whether to return only the list of the intermediate maps.

        Returns:
            The last map and the list of the maps in ``indices``, which is in order.

        Raises:
            ValueError: If an index is out of range, or ``output_fmt`` is another one.
            UserError: If a side is below 32 pixels, in bfloat16 on a CPU.

        Example:
            >>> backbone = EfficientViT('m0').eval()
            >>> last, (first,) = backbone.forward_intermediates(torch.rand(1, 3, 64, 64), [0])
            >>> tuple(last.shape), tuple(first.shape)
            ((1, 192, 1, 1), (1, 64, 4, 4))
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt={output_fmt!r} is not supported. Pass 'NCHW'.")
        taken = take_indices(self.out_stem + len(self.stages), indices)
        stages = [index - self.out_stem for index in taken if index >= self.out_stem]
        end = max(stages, default=-1) + 1 if stop_early else None
        last, maps = self._compute_maps(x, stages, self.out_stem and 0 in taken, end)
        return maps if intermediates_only else (last, maps)

    def _compute_maps(
        self, x: Tensor, stages: Sequence[int], with_stem: bool, end: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the last map, and those of the stem's stride 8 and of the given stages."""
        height, width = x.shape[2:]
        maps = []
        if with_stem:
            *finer_layers, last_layer = self.stem
            for layer in finer_layers:
                x = layer(x)
            maps.append(x)
            x = last_layer(x)
        else:
            x = self.stem(x)
        # Checked after the stem: under autocast, images are float32.
        if x.dtype == torch.bfloat16 and x.device.type == 'cpu':
            check_bfloat16_size(height, width)
        for index, stage in enumerate(self.stages):
            if index == end:
                break
            for layer in stage:
                # As in mmdet. x requires no gradient under no_grad() and right after frozen layers.
                if self.with_cp and x.requires_grad:
                    x = checkpoint(layer, x, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
                else:
                    x = layer(x)
            if index in stages:
                maps.append(x)
        return x, maps

    def train(self, mode: bool = True) -> 'EfficientViT':
        """Set the training mode, but keep what is frozen in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Initialize the weights. Pretrained weights must fit completely."""
        # mmevit.checkpoint reads this and raises; mmengine would only log mismatches.
        self.is_initializing = True
        try:
            super().init_weights()
        finally:
            self.is_initializing = False

    @classmethod
    def from_pretrained(cls, source: str | Path, **kwargs: Any) -> 'EfficientViT':
        """Build a backbone in evaluation mode for pretrained weights, and load them.

        Args:
            source: ``OWNER/REPO[@REVISION]`` on the Hugging Face Hub, a folder with
                ``model.safetensors``, a file, or an address such as ``evit://m4``. It may contain
                a classifier or a detector, in the format of mmevit, the authors or timm.
            **kwargs: Arguments of the backbone. The defaults of ``arch`` and ``window_sizes``
                are those of the weights.

        Raises:
            CheckpointError: If the weights cannot be found, downloaded or read safely, or do not
                fit.
        """
        address = find_pretrained(source)
        content = CheckpointLoader.load_checkpoint(address, 'cpu')
        weights = select_weights(content['state_dict'], 'backbone.')
        kwargs.setdefault('arch', infer_arch(weights))
        kwargs.setdefault('window_sizes', infer_window_sizes(weights) or (7, 7, 7))
        if kwargs['arch'] is None:
            raise CheckpointError(
                f'The weights of {address} fit none of the archs. Pass arch as the dict that they '
                'were trained with.'
            )
        init_cfg = dict(type='Pretrained', checkpoint=address, prefix='backbone.')
        backbone = cls(**kwargs, init_cfg=init_cfg)
        backbone.init_weights()
        return backbone.eval()

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the layer of a parameter and the number of layers, for layer-wise decay.

        The stem is layer 0. Each block and each subsampling is a layer. Parameters without the
        prefix of the backbone, such as a head's, are in the last layer.

        Example:
            >>> backbone = EfficientViT('m0')
            >>> backbone.get_layer_depth('backbone.stages.1.0.expand.conv.weight', 'backbone.')
            (2, 10)
        """
        layers = ['stem.']
        for index, stage in enumerate(self.stages):
            layers += [f'stages.{index}.{number}.' for number in range(len(stage))]
        num_layers = len(layers) + 1
        for index, layer in enumerate(layers):
            if param_name.startswith(prefix + layer):
                return index, num_layers
        return num_layers - 1, num_layers

    def switch_to_deploy(self) -> None:
        """Fold batch norm, shortcuts and query scale into convolutions; expand the bias tables.

        The feature maps are those of this model in evaluation mode, but always in channels-last
        memory format. The folded model is for inference only.
        """
        for module in list(self.modules())[1:]:  # a list, since folding replaces modules
            if fold := getattr(module, 'switch_to_deploy', None):
                fold()
        self._put_channels_last()
        self.deploy = True

    def _put_channels_last(self) -> None:
        # Convolutions pass the memory format of their weights on to their output. Channels
        # last is up to a quarter faster, and windows are then copied in contiguous rows.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def _freeze_stages(self) -> None:
        if self.frozen_stages >= 0:
            for module in (self.stem, *self.stages[: self.frozen_stages]):
                module.eval().requires_grad_(False)


def infer_arch(weights: dict[str, Tensor]) -> str | None:
    """Infer the name of the arch of a backbone's weights from their shapes; None if none fits.

    Example:
        >>> infer_arch(EfficientViT('m2').state_dict())
        'm2'
    """
    for arch in EfficientViT.arch_zoo:
        with torch.device('meta'):
            own = EfficientViT(arch).state_dict()
        convs = {name: value.shape for name, value in own.items() if name.endswith('conv.weight')}
        if all(name in weights and weights[name].shape == convs[name] for name in convs):
            return arch
    return None


def infer_window_sizes(weights: dict[str, Tensor]) -> list[int] | None:
    """Infer the window size of each stage from a backbone's bias tables.

    Returns None without bias tables, as in folded weights.

    Example:
        >>> infer_window_sizes(EfficientViT('m2', window_sizes=(7, 7, 4)).state_dict())
        [7, 7, 4]
    """
    tables = {name.split('.')[1]: t for name, t in weights.items() if 'attention_biases' in name}
    return [round(tables[stage].shape[1] ** 0.5) for stage in sorted(tables)] or None


def select_weights(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the weights of a part of a model, by their names in the part.

    Example:
        >>> select_weights({'backbone.stem.0.conv.weight': 1, 'head.bn.weight': 2}, 'backbone.')
        {'stem.0.conv.weight': 1}
    """
    return {
        name.removeprefix(prefix): weight
        for name, weight in weights.items()
        if name.startswith(prefix)
    }


def build_stem(
    in_channels: int, out_channels: int, norm_cfg: dict, act_cfg: dict, deploy: bool
) -> nn.Sequential:
    """Build the overlapping patch embedding: four 3x3 convolutions of stride 2.

    An activation follows each convolution but the last. ``out_channels`` is a multiple of 8.
    """
    widths = (in_channels, *(out_channels // divisor for divisor in (8, 4, 2, 1)))
    layers = []
    for narrow, wide in zip(widths[:-1], widths[1:], strict=True):
        layers.append(ConvNorm(narrow, wide, 3, stride=2, norm_cfg=norm_cfg, deploy=deploy))
        layers.append(build_activation_layer(act_cfg))
    return nn.Sequential(*layers[:-1])


class Subsample(nn.Sequential):  # runs the submodules in the order of assignment
    """Inverted residual of stride 2 with squeeze-excite, between two FFNs (Section 3.2).

    Its depthwise convolutions do not start as the identity, unlike those of the blocks, as in the
    original.
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm_cfg: dict, act_cfg: dict, deploy: bool
    ) -> None:
        super().__init__()
        hidden = 4 * in_channels
        norm: dict[str, Any] = dict(norm_cfg=norm_cfg, deploy=deploy)
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
class SandwichBlock(nn.Sequential):  # runs the submodules in the order of assignment
    """Sandwich layout: attention between token mixing and FFNs (Equation 1).

    Args:
        window_size: Height and width of the attention windows.
        kernel_sizes: Kernel size of the convolution on each head's queries.
        drop_path_rate: Stochastic depth rate of each residual branch.
        deploy: Whether to build the folded form.
        num_ffns: Number of FFNs before the attention, and as many after it, N in the paper.
        ffn_ratio: Hidden channels of the FFNs, relative to ``channels``.
        token_mixing: Whether there is a depthwise convolution before each FFN.
        attention_cfg: Type of the attention in a window, :class:`CascadedGroupAttention` by
            default, and other arguments.

    Raises:
        ValueError: If ``num_ffns`` is below 1.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window_size: int,
        kernel_sizes: Sequence[int],
        drop_path_rate: float,
        norm_cfg: dict,
        act_cfg: dict,
        deploy: bool,
        num_ffns: int = 1,
        ffn_ratio: int = 2,
        token_mixing: bool = True,
        attention_cfg: dict = dict(),
    ) -> None:
        super().__init__()
        if num_ffns < 1:
            raise ValueError(f'num_ffns={num_ffns} is out of range. Pass at least 1.')
        norm: dict[str, Any] = dict(norm_cfg=norm_cfg, deploy=deploy)
        attention_cfg = dict(kernel_sizes=kernel_sizes, act_cfg=act_cfg, **norm) | attention_cfg
        for index in range(2 * num_ffns):
            if index == num_ffns:
                attention = WindowAttention(channels, num_heads, window_size, **attention_cfg)
                self.attention = Residual(attention, drop_path_rate)
            if token_mixing:
                depthwise = ResidualDepthwise(channels, drop_path_rate, norm_weight=0.0, **norm)
                self.add_module(f'depthwise{index}', depthwise)
            ffn = FFN(channels, act_cfg=act_cfg, ratio=ffn_ratio, **norm)
            self.add_module(f'ffn{index}', Residual(ffn, drop_path_rate))
