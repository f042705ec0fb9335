"""Description of a backbone's feature maps, with the interface of timm's ``FeatureInfo``."""

from collections.abc import Sequence
from typing import Any


class FeatureInfo(list[dict[str, Any]]):
    """Channels, strides and module names of feature maps.

    The methods return a list for the maps that the backbone returns. With an index or a list of
    indices, they return the values for these maps instead.

    Args:
        info: For each map its ``num_chs``, ``reduction`` (stride) and ``module``.
        out_indices: Maps that the backbone returns, as indices into ``info``.
    """

    def __init__(self, info: list[dict[str, Any]], out_indices: Sequence[int]) -> None:
        super().__init__(info)
        self.out_indices = tuple(out_indices)

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the number of channels of each map."""
        return self.get('num_chs', idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the stride of each map."""
        return self.get('reduction', idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the name of the module that computes each map."""
        return self.get('module', idx)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Return a value of each map by its key in ``info``."""
        if isinstance(idx, int):
            return self[idx][key]
        return [self[index][key] for index in (self.out_indices if idx is None else idx)]


def take_indices(num_maps: int, indices: int | Sequence[int] | None) -> list[int]:
    """Return the indices of maps that timm's argument ``indices`` selects.

    Example:
        >>> take_indices(3, None), take_indices(3, 2), take_indices(3, [0, -1])
        ([0, 1, 2], [1, 2], [0, 2])
    """
    if indices is None:
        return list(range(num_maps))
    wanted = range(-indices, 0) if isinstance(indices, int) else indices
    if not wanted or not all(-num_maps <= index < num_maps for index in wanted):
        raise ValueError(
            f'indices={indices} is out of range. Pass indices of the {num_maps} maps, or how many '
            'of the last ones.'
        )
    return [index % num_maps for index in wanted]
