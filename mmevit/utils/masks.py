"""Masks: resize them to boxes and images, and encode them."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def resize_masks(
    masks: np.ndarray,
    boxes: np.ndarray,
    kind: dict[str, Any],
    sizes: tuple[Sequence[int], Sequence[int], Sequence[int]],
) -> np.ndarray:
    """Resize the masks of an exported file (N, h, w) to an image: (N, H, W), bool.

    Args:
        masks: Masks of the boxes, or of the padded image.
        boxes: (N, 4), in pixels of the image.
        kind: Metadata ``masks`` of the file.
        sizes: Height and width of the image, of the resized image, and of it with padding.
    """
    size, content, padded = sizes
    rows, columns = (
        resize_axis(part, new) @ resize_axis(old, full)[:part]
        for old, full, part, new in zip(masks.shape[1:], padded, content, size, strict=True)
    )
    resized = np.empty((len(masks), *size), bool)
    for index, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
        if kind['kind'] == 'box':
            resized[index] = paste(mask, box, size) >= kind['threshold']
        else:
            resized[index] = rows @ mask @ columns.T > kind['threshold']
    return resized


def paste(mask: np.ndarray, box: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resize a mask (h, w) to a box (x1, y1, x2, y2) in an image, with 0 outside of it."""
    rows, columns = (
        interpolate((np.arange(new) + 0.5 - start) / (end - start) * old - 0.5, old)
        for new, old, start, end in zip(size, mask.shape, box[1::-1], box[:1:-1], strict=True)
    )
    return rows @ mask @ columns.T


def resize_axis(old: int, new: int) -> np.ndarray:
    """Return the weights (new, old) of ``F.interpolate(mode='bilinear')`` along an axis."""
    return interpolate(((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, old - 1), old)


def interpolate(position: np.ndarray, num_pixels: int) -> np.ndarray:
    """Return the weights (N, pixels) of linear interpolation at positions (N,)."""
    return (1 - np.abs(position[:, None] - np.arange(num_pixels))).clip(min=0).astype(np.float32)


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask (H, W) as COCO's compressed run lengths."""
    starts = np.flatnonzero(np.diff(mask.T.ravel().astype(np.int8), prepend=0))
    runs = np.diff(starts, prepend=0, append=mask.size)
    runs[3:] -= runs[1:-2].copy()  # pixels of one kind differ little from run to run
    text = []
    for run in runs.tolist():
        # Groups of 5 bits, the lowest first; the next bit says that more follow.
        while not -16 <= run < 16:
            text.append((run & 31) + 80)
            run >>= 5
        text.append((run & 31) + 48)
    return dict(size=list(mask.shape), counts=bytes(text).decode())


def find_boxes(masks: np.ndarray) -> np.ndarray:
    """Return the boxes (N, 4) around masks (N, H, W), as x1, y1, x2, y2, 0 for empty ones."""
    edges = []
    for axis in (1, 2):
        is_used: Any = masks.any(axis=axis)
        first, last = is_used.argmax(axis=1), is_used.shape[1] - is_used[:, ::-1].argmax(axis=1)
        edges.append((first, np.where(is_used.any(axis=1), last, 0)))
    return np.stack([*zip(*edges, strict=True)]).reshape(4, -1).T.astype(np.float32)
