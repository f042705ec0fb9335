"""Masks in COCO's forms: polygons, run lengths as a list or compressed."""

from typing import Any

import numpy as np

from .labels import Size

Box = tuple[float, float, float, float]


def encode_pixels(pixels: np.ndarray) -> dict[str, Any]:
    """Encode a mask of height x width as compressed run lengths."""
    from pycocotools import mask as coco_masks

    code: Any = coco_masks.encode(np.asfortranarray(pixels, dtype=np.uint8))
    return dict(size=list(pixels.shape), counts=code['counts'].decode('ascii'))


def measure_mask(segmentation: Any, size: Size) -> tuple[int, Box]:
    """Measure the area of a mask in pixels, and its box: left, top, right and bottom.

    Args:
        segmentation: As in COCO.
        size: Height and width of the image.
    """
    from pycocotools import mask as coco_masks

    code = compress(segmentation, size)
    left, top, width, height = coco_masks.toBbox(code).tolist()
    return int(coco_masks.area(code)), (left, top, left + width, top + height)


def decode_mask(segmentation: Any, size: Size) -> np.ndarray:
    """Decode a mask of COCO's forms to booleans of height x width."""
    from pycocotools import mask as coco_masks

    return coco_masks.decode(compress(segmentation, size)).astype(bool)


def compress(segmentation: Any, size: Size) -> Any:
    """Convert a mask to compressed run lengths."""
    from pycocotools import mask as coco_masks

    if isinstance(segmentation, list):
        return coco_masks.merge(coco_masks.frPyObjects(segmentation, *size))  # type: ignore[arg-type]
    if isinstance(segmentation['counts'], list):
        return coco_masks.frPyObjects(segmentation, *size)
    return segmentation
