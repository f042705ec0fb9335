"""Loading images from a data set in which some cannot be decoded."""

import logging

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

from .faults import MAX_PIXELS, is_huge


class UnreadableImages:
    """Which images of a data set could not be decoded; shared by all its worker processes.

    Args:
        num_images (int): Length of the data set.
        max_share (float): Largest share of the images that may be unreadable, from 0 to 1.
    """

    def __init__(self, num_images: int, max_share: float):
        # A byte for each image, so that no worker waits for another and none counts twice.
        self.flags = torch.zeros(num_images, dtype=torch.uint8).share_memory_()
        self.max_share = max_share

    def add(self, index: int):
        """Mark an image.

        Raises:
            UserError: If too many are marked.
        """
        self.flags[index] = 1
        check_share(int(self.flags.sum()), len(self.flags), self.max_share)


def check_share(count: int, num_images: int, max_share: float):
    """Check that not too many images are unreadable.

    Raises:
        UserError: If they are more than ``max_share`` of all.
    """
    if count > max_share * num_images:
        raise UserError(
            f'{count} of {num_images} images cannot be decoded, more than the share of '
            f'{max_share:g} that may be (the warnings above name them). Replace or remove them, '
            'tools/check_dataset.py CONFIG lists all, or give --cfg-options '
            'default_hooks.unreadable_images.max_share=SHARE.'
        )


@TRANSFORMS.register_module()
class LoadReadableImage(LoadImageFromFile):
    """Load an image; if it cannot be decoded, warn and continue.

    mmcv's own transform ends the run there, hours into it. A file of very many pixels, which could
    fill the memory, is not decoded either, nor is an image to train on that is smaller than
    annotated. :class:`mmevit.engine.UnreadableImagesHook` counts such images. A file that cannot be
    read is not skipped: the disk or its permissions are at fault, not the image.

    Args:
        on_error (str): What an undecodable image becomes. ``'skip'``: none, so that the data set
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

    # Set by UnreadableImagesHook.
    unreadable: UnreadableImages | None = None

    def __init__(self, on_error='skip', max_pixels=MAX_PIXELS, **kwargs):
        if on_error not in ('skip', 'blank'):
            raise ValueError(f"on_error is {on_error!r}, but must be 'skip' or 'blank'.")
        super().__init__(**kwargs)
        self.on_error, self.max_pixels = on_error, max_pixels

    def transform(self, results):
        """Add ``img``, ``img_shape`` and ``ori_shape`` to ``results``, or return None.

        Raises:
            UserError: If the file cannot be read, memory is lacking, or too many images are
                undecodable.
        """
        path = results['img_path']
        if self.max_pixels and is_huge(path, self.max_pixels):
            return self.replace(results, f'more than {self.max_pixels} pixels')
        content = self.read(path)
        try:
            image = self.decode(content)
            if self.on_error == 'skip':
                check_size(image, results)
        # What a decoder raises at hostile bytes depends on the backend and the format.
        except Exception as error:
            if isinstance(error, MemoryError) or getattr(error, 'code', 0) == cv2.Error.StsNoMem:
                raise UserError(
                    f'Not enough memory to decode {path} ({error}). Lower num_workers or the '
                    'batch size.'
                ) from error
            reason = ' '.join(str(error).split()) or 'no content'
            return self.replace(results, f'{type(error).__name__}: {reason}')
        return {**results, 'img': image, **shapes(image)}

    def read(self, path: str) -> bytes:
        """Read a file.

        Raises:
            UserError: If it cannot be read.
        """
        try:
            if self.file_client_args is not None:
                client = mmengine.fileio.FileClient.infer_client(self.file_client_args, path)
                return client.get(path)
            return mmengine.fileio.get(path, backend_args=self.backend_args)
        except OSError as error:
            raise UserError(
                f'The file {path} cannot be read ({error.strerror or error}). Check that it is '
                'there, that its disk is mounted and that you may read it, and run again.'
            ) from error

    def decode(self, content: bytes) -> np.ndarray:
        """Decode an image as the parent class does.

        Raises:
            ValueError: If OpenCV cannot, without saying why; other decoders raise what they like.
        """
        image = mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
        if image is None:
            raise ValueError('not a complete image')
        return image.astype(np.float32) if self.to_float32 else image

    def replace(self, results: dict, reason: str) -> dict | None:
        """Warn of an image and give what takes its place.

        Raises:
            UserError: If too many images are undecodable, or the form of a blank one is unknown.
        """
        consequence = 'skipped' if self.on_error == 'skip' else 'taken as a blank image'
        print_log(
            f'{results["img_path"]} cannot be read and is {consequence} ({reason}).',
            logger='current',
            # mmengine's logger shows nothing below an error of the other processes.
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
        image = np.zeros((*shape, *channels), dtype=np.float32 if self.to_float32 else np.uint8)
        return {**results, 'img': image, **shapes(image)}


def shapes(image: np.ndarray) -> dict:
    """Tell the height and width of an image that has just been loaded."""
    return dict(img_shape=image.shape[:2], ori_shape=image.shape[:2])


def check_size(image: np.ndarray, results: dict):
    """Check that an image is not smaller than annotated, so that boxes would be outside it.

    Args:
        image: The image.
        results: Its annotated ``height`` and ``width`` if there are any.

    Raises:
        ValueError: If it is.
    """
    height, width = image.shape[:2]
    annotated = (results.get('height', height), results.get('width', width))
    if height < annotated[0] or width < annotated[1]:
        raise ValueError(f'of {width} x {height} pixels, but annotated for {annotated[::-1]}')


def load_readable_images(dataset, on_error):
    """Have a data set survive images that cannot be read.

    Args:
        dataset (ConfigDict): Config of a data set, whose pipeline is replaced.
        on_error (str): What becomes of such an image, see :class:`LoadReadableImage`.
    """
    if dataset.get('pipeline'):
        readable = dict(type='LoadReadableImage', on_error=on_error)
        dataset.pipeline = [
            {**step, **readable} if type_name(step) == 'LoadImageFromFile' else step
            for step in dataset.pipeline
        ]
