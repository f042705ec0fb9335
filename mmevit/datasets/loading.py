"""Load images from a data set in which some cannot be decoded."""

import logging
from typing import Any

import cv2
import mmcv
import mmengine.fileio
import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from mmevit.utils.configs import type_name
from mmevit.utils.errors import UserError

from .image_faults import MAX_PIXELS, is_huge


class UnreadableImages:
    """The images that cannot be decoded, at most a share, for all worker processes."""

    def __init__(self, num_images: int, max_share: float) -> None:
        # A byte per image, so that no worker waits for another and none counts twice.
        self.flags = torch.zeros(num_images, dtype=torch.uint8).share_memory_()
        self.max_share = max_share

    def add(self, index: int) -> None:
        """Mark an image, raise UserError if too many are marked."""
        self.flags[index] = 1
        check_share(int(self.flags.sum()), len(self.flags), self.max_share)


def check_share(count: int, num_images: int, max_share: float) -> None:
    """Raise UserError if more than ``max_share`` of the images are unreadable."""
    if count > max_share * num_images:
        raise UserError(
            f'{count} of {num_images} images cannot be decoded (see the warnings above), more than '
            f'max_share={max_share:g} allows. Replace or remove them (tools/check_dataset.py '
            'CONFIG lists all), or pass --cfg-options '
            'default_hooks.unreadable_images.max_share=SHARE.'
        )


@TRANSFORMS.register_module()
class LoadReadableImage(LoadImageFromFile):
    """Load an image; if it cannot be decoded, warn and continue.

    mmcv's own transform ends the run. Images with too many pixels, which could exhaust the memory,
    and training images smaller than annotated are handled alike.
    :class:`mmevit.engine.UnreadableImagesHook` counts all of them. A file that cannot be read ends
    the run, as its disk or its permissions must be fixed.

    Args:
        on_error: ``'skip'`` returns None, so that the data set draws another image, for training.
            ``'blank'`` returns a black image of the annotated size, or that of the segmentation
            map, or of 32x32 pixels, for evaluation, where every image counts.
        max_pixels: Maximum number of pixels, None for any; not checked on remote storage.
        **kwargs: The arguments of :class:`mmcv.transforms.LoadImageFromFile`.

    Raises:
        ValueError: If ``on_error`` is neither.

    Example:
        >>> from mmengine.registry import TRANSFORMS
        >>> TRANSFORMS.build(dict(type='LoadReadableImage', on_error='blank')).on_error
        'blank'
    """

    # Set by UnreadableImagesHook.
    unreadable: UnreadableImages | None = None

    def __init__(
        self, on_error: str = 'skip', max_pixels: int | None = MAX_PIXELS, **kwargs: Any
    ) -> None:
        if on_error not in ('skip', 'blank'):
            raise ValueError(f"on_error is {on_error!r}. Pass 'skip' or 'blank'.")
        super().__init__(**kwargs)
        self.on_error, self.max_pixels = on_error, max_pixels

    def transform(self, results: dict) -> dict | None:
        """Add ``img``, ``img_shape`` and ``ori_shape`` to ``results``, or return None.

        Raises UserError if the file cannot be read, memory is exhausted, or too many images cannot
        be decoded.
        """
        path = results['img_path']
        if self.max_pixels and is_huge(path, self.max_pixels):
            return self.replace(results, f'more than {self.max_pixels} pixels')
        content = self.read(path)
        try:
            image = mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
            if image is None:
                raise ValueError('not a complete image')
            height, width = image.shape[:2]
            annotated = (results.get('height', height), results.get('width', width))
            if self.on_error == 'skip' and (height < annotated[0] or width < annotated[1]):
                raise ValueError(
                    f'size {width} x {height}, but annotated as {annotated[1]} x {annotated[0]}'
                )
            return self.add(image, results)
        # What a decoder raises depends on the backend and the format.
        except Exception as error:
            if isinstance(error, MemoryError) or getattr(error, 'code', 0) == cv2.Error.StsNoMem:
                raise UserError(
                    f'Not enough memory to decode {path} ({error}). Lower num_workers or the '
                    'batch size.'
                ) from error
            reason = ' '.join(str(error).split()) or 'no content'
            return self.replace(results, f'{type(error).__name__}: {reason}')

    def read(self, path: str) -> bytes:
        """Read a file, raise UserError if it cannot be read."""
        try:
            if self.file_client_args is not None:
                client = mmengine.fileio.FileClient.infer_client(self.file_client_args, path)
                return bytes(client.get(path))
            return mmengine.fileio.get(path, backend_args=self.backend_args)
        except OSError as error:
            raise UserError(
                f'The file {path} cannot be read ({error.strerror or error}). Check that it '
                'exists, that its disk is mounted and that you have permission to read it.'
            ) from error

    def add(self, image: np.ndarray, results: dict) -> dict:
        """Add an image and its shape to the results."""
        size = image.shape[:2]
        image = image.astype(np.float32) if self.to_float32 else image
        return {**results, 'img': image, 'img_shape': size, 'ori_shape': size}

    def replace(self, results: dict, reason: str) -> dict | None:
        """Warn of an image that cannot be decoded, and return None or a blank image."""
        consequence = 'skipped' if self.on_error == 'skip' else 'replaced by a blank image'
        print_log(
            f'{results["img_path"]} cannot be read and is {consequence} ({reason}).',
            logger='current',
            # Of the other processes mmengine's logger only prints errors.
            level=logging.WARNING if is_main_process() else logging.ERROR,
        )
        if self.unreadable is not None and 'sample_idx' in results:
            self.unreadable.add(results['sample_idx'])
        if self.on_error == 'skip':
            return None
        if self.color_type == 'unchanged':
            raise UserError(
                f'{results["img_path"]} cannot be decoded ({reason}), and with '
                "color_type='unchanged' a blank image has no known number of channels. Replace or "
                'remove the image.'
            )
        shape = (results.get('height', 32), results.get('width', 32))
        if results.get('seg_map_path'):
            shape = mmcv.imread(results['seg_map_path'], 'unchanged').shape[:2]
        channels = () if self.color_type.startswith('grayscale') else (3,)
        return self.add(np.zeros((*shape, *channels), np.uint8), results)


def load_readable_images(dataset: dict, on_error: str) -> None:
    """Use :class:`LoadReadableImage` in the pipeline of a data set."""
    if dataset.get('pipeline'):
        readable = dict(type='LoadReadableImage', on_error=on_error)
        dataset['pipeline'] = [
            {**step, **readable} if type_name(step) == 'LoadImageFromFile' else step
            for step in dataset['pipeline']
        ]
