"""Read and write videos."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import mmcv

from mmevit.utils.errors import ConfigError
from mmevit.utils.files import atomic_write


@contextlib.contextmanager
def open_writer(path: Path, rate: float, size: tuple[int, int]) -> Iterator[cv2.VideoWriter]:
    """Yield a writer of BGR frames to an ``.mp4`` file, which is written atomically.

    ``rate`` is in frames per second, ``size`` is width and height.
    """
    # Videos without a frame rate have 0 or a very large one.
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
