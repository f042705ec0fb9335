"""The archs m0 to m5, and the checks of the arguments of a backbone."""

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class EfficientViTArch:
    """Channels, blocks and heads of each stage of an EfficientViT.

    Args:
        embed_dims: Channels, one value per stage. The first is a multiple of 8, for the stem.
        depths: Numbers of blocks, one value per stage.
        num_heads: Numbers of attention heads, one value per stage.
        kernel_sizes: Kernel sizes of the depthwise convolutions on the queries, one value per
            head, the same in all stages; at least max(num_heads) values.

    Raises:
        ValueError: If the values are inconsistent.
    """

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    kernel_sizes: tuple[int, ...]

    @classmethod
    def from_config(cls, arch: 'str | dict | EfficientViTArch') -> 'EfficientViTArch':
        """Return the arch of a name, or of a dict with the fields of this class."""
        if isinstance(arch, cls):
            return arch
        names = [field.name for field in fields(cls)]
        if isinstance(arch, dict):
            if set(arch) != set(names):
                raise ValueError(f'arch has the keys {list(arch)}. Pass {", ".join(names)}.')
            return cls(**{name: tuple(values) for name, values in arch.items()})
        if not isinstance(arch, str) or arch not in ARCHS:
            raise ValueError(
                f'Unknown EfficientViT arch {arch!r}. Choose from {", ".join(ARCHS)}, or pass a '
                f'dict with {", ".join(names)}.'
            )
        return ARCHS[arch]

    def __post_init__(self) -> None:
        for name in ('depths', 'num_heads'):
            values = getattr(self, name)
            if len(values) != len(self.embed_dims):
                raise ValueError(
                    f'{name}={values} has {len(values)} values, but embed_dims has '
                    f'{len(self.embed_dims)} stages. Pass one value per stage.'
                )
        for channels, num_heads in zip(self.embed_dims, self.num_heads, strict=True):
            if num_heads < 1 or channels % num_heads:
                raise ValueError(
                    f'{channels} channels do not split into {num_heads} heads evenly. Change '
                    'embed_dims or num_heads.'
                )
        if self.embed_dims[0] % 8:
            raise ValueError(
                f'embed_dims={self.embed_dims} starts with {self.embed_dims[0]}. The stem needs a '
                'multiple of 8.'
            )
        if len(self.kernel_sizes) < max(self.num_heads) or any(
            size < 1 or size % 2 == 0 for size in self.kernel_sizes
        ):
            raise ValueError(
                f'kernel_sizes={self.kernel_sizes} does not fit the heads. Pass one odd size for '
                f'each of the {max(self.num_heads)} heads.'
            )


# In this order: embed_dims, depths, num_heads, kernel_sizes. The kernel sizes of m0 are those of
# the released classifier; the released detection code uses 7, 5, 3, 3, with which the released m0
# weights do not load.
ARCHS = {
    'm0': EfficientViTArch((64, 128, 192), (1, 2, 3), (4, 4, 4), (5, 5, 5, 5)),
    'm1': EfficientViTArch((128, 144, 192), (1, 2, 3), (2, 3, 3), (7, 5, 3, 3)),
    'm2': EfficientViTArch((128, 192, 224), (1, 2, 3), (4, 3, 2), (7, 5, 3, 3)),
    'm3': EfficientViTArch((128, 240, 320), (1, 2, 3), (4, 3, 4), (5, 5, 5, 5)),
    'm4': EfficientViTArch((128, 256, 384), (1, 2, 3), (4, 4, 4), (7, 5, 3, 3)),
    'm5': EfficientViTArch((192, 288, 384), (1, 3, 4), (3, 3, 4), (7, 5, 3, 3)),
}


def check_backbone_arguments(
    num_stages: int,
    window_sizes: Sequence[int],
    out_indices: Sequence[int],
    frozen_stages: int,
    drop_path_rate: float,
) -> None:
    """Raise ValueError if an argument of a backbone does not fit its number of stages."""
    if (
        isinstance(window_sizes, int)
        or len(window_sizes) != num_stages
        or not all(isinstance(size, int) and size >= 1 for size in window_sizes)
    ):
        raise ValueError(
            f'window_sizes={window_sizes} does not fit the {num_stages} stages. Pass '
            f'{num_stages} integers, one per stage and none below 1.'
        )
    if (
        isinstance(out_indices, int)
        or not out_indices
        or list(out_indices) != sorted(set(out_indices) & set(range(num_stages)))
    ):
        raise ValueError(
            f'out_indices={out_indices} is invalid. Pass at least one of the stages 0 to '
            f'{num_stages - 1}, each once and in order.'
        )
    if not -1 <= frozen_stages <= max(out_indices) + 1:
        raise ValueError(
            f'frozen_stages={frozen_stages} is out of range. Pass -1 (nothing), 0 (the stem), or '
            f'up to {max(out_indices) + 1} (the stem and all stages that are built).'
        )
    if not 0 <= drop_path_rate < 1:
        raise ValueError(
            f'drop_path_rate={drop_path_rate} is out of range. Pass at least 0 and below 1.'
        )
