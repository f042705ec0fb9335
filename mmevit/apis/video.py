"""Read and write videos."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import mmcv

from mmevit.utils.errors import ConfigError
from mmevit.utils.files import atomic_write

VIDEO_SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.webm')


@contextlib.contextmanager
def open_writer(path: Path, rate: float, size: tuple[int, int]) -> Iterator[cv2.VideoWriter]:
    """Write a video atomically.

    Args:
        path: The file, ``.mp4``.
        rate: Frames per second. Outside 1 to 240, as in videos without a frame rate, 25 is used.
        size: Width and height.

    Yields:
        Writer for BGR frames.

    Raises:
        ConfigError: If OpenCV does not support the video.
    """
    rate = rate if 1 <= rate <= 240 else 25
    with atomic_write(path) as file:
        codec = cv2.VideoWriter.fourcc(*'mp4v')
        writer = cv2.VideoWriter(str(file), codec, rate, size)
        if not writer.isOpened():
            raise ConfigError(
                f'OpenCV cannot write {path} of size {size[0]}x{size[1]}. Use --no-save-vis.'
            )
        try:
            yield writer
        finally:
            writer.release()


class Frames(mmcv.VideoReader):
    """The frames of a video, BGR (H, W, 3), read one by one.

    There are none if the video cannot be read. If it does not contain its number of frames,
    ``len()`` is 0.
    """

    def __len__(self) -> int:
        return max(self.frame_cnt, 0)
