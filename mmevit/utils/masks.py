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
    resized = np.zeros((len(masks), *size), bool)
    if kind['kind'] == 'box':
        for mask, box, output in zip(masks, boxes, resized, strict=True):
            values, region = paste(mask, box, size)
            output[region] = values >= kind['threshold']
        return resized
    rows, columns = (
        resize_axis(part, new) @ resize_axis(old, full)[:part]
        for old, full, part, new in zip(masks.shape[1:], padded, content, size, strict=True)
    )
    for mask, output in zip(masks, resized, strict=True):
        output[:] = rows @ mask @ columns.T > kind['threshold']
    return resized


def paste(
    mask: np.ndarray, box: np.ndarray, size: Sequence[int]
) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Resize a mask (h, w) to a box in an image; return the values and their region.

    As mmdet does on the CPU: the region is a little larger than the box (x1, y1, x2, y2), and all
    of a box without area has the value of the center of the mask.
    """
    weights, region = [], []
    for new, old, start, end in zip(size, mask.shape, box[1::-1], box[:1:-1], strict=True):
        first, last = np.clip([np.floor(start) - 1, np.ceil(end) + 1], 0, new).astype(int)
        offset, length = np.arange(first, last) + 0.5 - start, end - start
        position = offset / length * old if length > 0 else np.full_like(offset, old / 2)
        weights.append(interpolate(position - 0.5, old))
        region.append(slice(first, last))
    rows, columns = weights
    return rows @ mask @ columns.T, tuple(region)


def resize_axis(old: int, new: int) -> np.ndarray:
    """Return the weights (new, old) of ``F.interpolate(mode='bilinear')`` along an axis."""
    return interpolate(((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, old - 1), old)


def interpolate(position: np.ndarray, num_pixels: int) -> np.ndarray:
    """Return the weights (N, pixels) of linear interpolation at positions (N,)."""
    return (1 - np.abs(position[:, None] - np.arange(num_pixels))).clip(min=0).astype(np.float32)


def resize_segments(
    segments: np.ndarray, size: Sequence[int], content: Sequence[int]
) -> np.ndarray:
    """Return the nearest pixels (H, W) of a map of labels for an image.

    Args:
        segments: The labels of the padded image.
        size: Height and width of the image.
        content: Height and width of the resized image without padding.
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(int)
        for old, new in zip(content, size, strict=True)
    )
    return segments[rows[:, None], columns]


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
