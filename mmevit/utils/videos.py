"""Read and write videos with OpenCV, which is imported only where it is needed."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .errors import ConfigError, UserError
from .files import atomic_write


def import_opencv() -> ModuleType:
    """Import OpenCV, or raise ConfigError."""
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ConfigError(
            'Videos need OpenCV, which is not installed. Run pip install opencv-python-headless.'
        ) from error
    return cv2


class Video:
    """The frames of a video, BGR (H, W, 3), read one by one.

    ``len()`` is 0 if the video does not contain its number of frames.

    Raises:
        UserError: If there are none.
    """

    def __init__(self, path: str | Path) -> None:
        cv2 = import_opencv()
        self.open: Callable[[], Any] = partial(cv2.VideoCapture, str(path))
        capture = self.open()
        self.rate: float = capture.get(cv2.CAP_PROP_FPS)  # frames per second
        self.length = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        if capture.read()[1] is None:
            raise UserError(f'The video {path} cannot be read. Check that the file is a video.')

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[np.ndarray]:
        capture = self.open()
        while (frame := capture.read()[1]) is not None:
            yield frame


@contextlib.contextmanager
def open_writer(path: Path, rate: float, size: tuple[int, int]) -> Iterator[Any]:
    """Yield a writer of BGR frames to an ``.mp4`` file, which is written atomically.

    ``rate`` is in frames per second, ``size`` is width and height.
    """
    cv2 = import_opencv()
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
