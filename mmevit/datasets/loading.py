"""Loading images from a data set in which some cannot be read."""

import logging

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from .faults import MAX_PIXELS, is_huge


@TRANSFORMS.register_module()
class LoadReadableImage(LoadImageFromFile):
    """Load an image; if it cannot be read, warn and go on.

    mmcv's own transform ends the run there, hours into it. A file of very many pixels, which could
    fill the memory, is not read either, nor is an image to train on that is smaller than annotated.

    Args:
        on_error (str): What an unreadable image becomes. ``'skip'``: none, so that the data set
            draws another in its place, for training. ``'blank'``: a black one of the annotated
            size, or that of the annotated segments, or of 32x32 pixels where nothing is annotated,
            for evaluation, where every image counts. Defaults to ``'skip'``.
        max_pixels (int, optional): How many pixels a file may have, or None for any number; files
            on remote storage are not looked at. Defaults to 100 million.
        **kwargs: The arguments of :class:`mmcv.transforms.LoadImageFromFile`.

    Raises:
        ValueError: If ``on_error`` is neither.

    Example:
        >>> from mmengine.registry import TRANSFORMS
        >>> TRANSFORMS.build(dict(type='LoadReadableImage', on_error='blank')).on_error
        'blank'
    """

    def __init__(self, on_error='skip', max_pixels=MAX_PIXELS, **kwargs):
        if on_error not in ('skip', 'blank'):
            raise ValueError(f"on_error is {on_error!r}, but must be 'skip' or 'blank'.")
        super().__init__(**kwargs)
        self.on_error, self.max_pixels = on_error, max_pixels

    def transform(self, results):
        """Add ``img``, ``img_shape`` and ``ori_shape`` to ``results``, or return None."""
        try:
            if self.max_pixels and is_huge(results['img_path'], self.max_pixels):
                raise ValueError(f'more than {self.max_pixels} pixels')
            loaded = super().transform(dict(results))
            if self.on_error == 'skip':
                check_size(loaded)
            return loaded
        # What a decoder raises at hostile bytes depends on the backend and the format.
        except Exception as error:
            consequence = 'skipped' if self.on_error == 'skip' else 'taken as a blank image'
            print_log(
                f'{results["img_path"]} cannot be read and is {consequence} '
                f'({type(error).__name__}: {str(error).strip() or "no content"}).',
                logger='current',
                # mmengine's logger shows nothing below an error of the other processes.
                level=logging.WARNING if is_main_process() else logging.ERROR,
            )
            if self.on_error == 'skip':
                return None
            shape = (results.get('height', 32), results.get('width', 32))
            if results.get('seg_map_path'):
                shape = mmcv.imread(results['seg_map_path'], 'unchanged').shape[:2]
            channels = () if self.color_type == 'grayscale' else (3,)
            dtype = np.float32 if self.to_float32 else np.uint8
            results['img'] = np.zeros((*shape, *channels), dtype=dtype)
            results['img_shape'] = results['ori_shape'] = shape
            return results


def check_size(results):
    """Check that an image is not smaller than annotated, so that boxes would be outside it.

    Args:
        results (dict): The image, and its annotated ``height`` and ``width`` if there are any.

    Raises:
        ValueError: If it is.
    """
    height, width = results['img_shape']
    annotated = (results.get('height', height), results.get('width', width))
    if height < annotated[0] or width < annotated[1]:
        raise ValueError(f'of {width} x {height} pixels, but annotated for {annotated[::-1]}')
