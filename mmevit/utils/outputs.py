"""Predict images and videos by name, and write JSON, pictures and maps of segments."""

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import ConfigError, UserError, warn
from .files import atomic_write
from .inputs import VIDEO_SUFFIXES
from .videos import Video, open_writer

# Names and images, BGR (H, W, 3).
NamedImages = Iterable[tuple[str, np.ndarray]]
# Names, predictions for JSON, and pictures, RGB (H, W, 3), or None. Segments are an array.
Results = Iterable[tuple[str, dict[str, Any], np.ndarray | None]]
# Predicts images, the number of which is the second argument, 0 if it is unknown.
Run = Callable[[NamedImages, int], Results]


def predict_files(
    files: Mapping[str, Path],
    out_dir: Path,
    read_all: Callable[[dict[str, Path]], NamedImages],
    run: Run,
) -> tuple[int, int]:
    """Predict images and videos, and write the results to ``preds/`` and ``vis/``.

    Args:
        files: Images and videos, see :func:`mmevit.utils.inputs.name_inputs`.
        out_dir: Output directory.
        read_all: Yields the readable ones of images, and warns of the others.
        run: Yields the results of images.

    Returns:
        Number of predicted images and frames, and number of skipped files.
    """
    videos = {name: path for name, path in files.items() if path.suffix.lower() in VIDEO_SUFFIXES}
    images = {name: path for name, path in files.items() if name not in videos}
    num_images = 0
    for name, content, picture in run(read_all(images), len(images)):
        write(move_segments(content, name, out_dir), out_dir / f'preds/{name}.json')
        if picture is not None:
            suffix = '.jpg' if images[name].suffix.lower() in ('.jpg', '.jpeg') else '.png'
            write(picture, out_dir / f'vis/{name}{suffix}')
        num_images += 1
    counts = [predict_video(name, path, out_dir, run) for name, path in videos.items()]
    return num_images + sum(counts), len(images) - num_images + counts.count(0)


def print_summary(num_predicted: int, num_skipped: int, out_dir: str | Path) -> None:
    """Print what :func:`predict_files` did, or raise ConfigError if nothing was predicted."""
    if not num_predicted:
        raise ConfigError('None of the files can be read. See the warnings above.')
    skipped = f' ({num_skipped} files could not be read)' if num_skipped else ''
    print(f'Predictions of {num_predicted} images are in {out_dir}{skipped}.')


def predict_video(name: str, path: Path, out_dir: Path, run: Run) -> int:
    """Predict the frames of a video, and return the number of readable ones."""
    try:
        video = Video(path)
    except ConfigError:
        raise
    except UserError as error:
        warn(f'{error} It is skipped.')
        return 0
    images = ((f'{name}/{index:06d}', image) for index, image in enumerate(video))
    frames, writer = [], None
    with contextlib.ExitStack() as stack:
        for frame, content, picture in run(images, len(video)):
            frames.append(move_segments(content, frame, out_dir))
            if picture is None:
                continue
            if writer is None:
                target = open_writer(out_dir / f'vis/{name}.mp4', video.rate, picture.shape[1::-1])
                writer = stack.enter_context(target)
            writer.write(picture[..., ::-1].copy())
    if len(frames) < len(video):
        warn(f'{path}: {len(frames)} of {len(video)} frames can be read.')
    content = dict(frames_per_second=video.rate, frames=frames)
    write(content, out_dir / f'preds/{name}.json')
    return len(frames)


def move_segments(content: dict[str, Any], name: str, out_dir: Path) -> dict[str, Any]:
    """Write the segments of a prediction to a file, and replace them by its name."""
    if 'segments' not in content:
        return content
    write(content['segments'], out_dir / f'preds/{name}.png')
    return {**content, 'segments': f'{name}.png'}


def write(content: np.ndarray | dict[str, Any], path: Path) -> None:
    """Write an image or JSON, of which values may be arrays, atomically."""
    with atomic_write(path) as file:
        if isinstance(content, dict):
            file.write_text(json.dumps(content, default=lambda array: array.tolist()))
        else:
            Image.fromarray(content).save(file, quality=95)
