"""Predict images, videos and directories with an exported file, without PyTorch and OpenMMLab.

Writes JSON and pictures as infer does.
"""

import contextlib
import json
import sys
import time
from argparse import ArgumentError, Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from mmevit.cli.command import argument, command, flag
from mmevit.runtime import Prediction, Predictor
from mmevit.utils.errors import ConfigError, UserError, warn
from mmevit.utils.files import atomic_write
from mmevit.utils.inputs import VIDEO_SUFFIXES, name_inputs, picture_name
from mmevit.utils.videos import Video, open_writer

Item = TypeVar('Item')


@command(
    argument('model', 'file written by export, .onnx or .xml'),
    argument('inputs', 'images, videos or directories', nargs='+'),
    argument('--out-dir', 'directory for vis/ and preds/ (default: outputs)', default='outputs'),
    argument('--batch-size', 'batch size (default: 1)', type=int, default=1),
    argument('--pred-score-thr', 'minimum score to draw (default: 0.3)', type=float, default=0.3),
    argument('--threads', 'number of CPU threads (default: all)', type=int, default=0),
    flag('--no-save-vis', 'do not write pictures'),
)
def main(args: Namespace) -> None:
    """Load the file, then predict."""
    if args.batch_size < 1 or args.threads < 0:
        raise ArgumentError(None, '--batch-size and --threads must be at least 1.')
    files, out_dir = name_inputs(args.inputs), Path(args.out_dir)
    predictor = Predictor(args.model, args.threads, args.batch_size)
    threshold = None if args.no_save_vis else args.pred_score_thr
    videos = {name: file for name, file in files.items() if file.suffix.lower() in VIDEO_SUFFIXES}
    images = {name: file for name, file in files.items() if name not in videos}
    counts = [predict_images(predictor, images, out_dir, threshold)]
    for name, path in videos.items():
        counts.append(predict_video(predictor, name, path, out_dir, threshold))
    if not any(counts):
        raise ConfigError('None of the files can be read. See the warnings above.')
    num_skipped = len(images) - counts[0] + counts[1:].count(0)
    skipped = f' ({num_skipped} files could not be read)' if num_skipped else ''
    print(f'Predictions of {sum(counts)} images are in {out_dir}{skipped}.')


def predict_images(
    predictor: Predictor, paths: dict[str, Path], out_dir: Path, threshold: float | None
) -> int:
    """Predict images by name, and return the number of readable ones."""
    count = 0
    results = predictor.stream(predictor.read_all(paths))
    for name, image, prediction in show_progress(results, len(paths)):
        write(describe(prediction, name, out_dir), out_dir / f'preds/{name}.json')
        if threshold is not None:
            picture = prediction.draw(image, threshold)
            write(picture, out_dir / 'vis' / picture_name(name, paths[name]))
        count += 1
    return count


def predict_video(
    predictor: Predictor, name: str, path: Path, out_dir: Path, threshold: float | None
) -> int:
    """Predict the frames of a video, and return the number of readable ones."""
    try:
        video = Video(path)
    except ConfigError:
        raise
    except UserError as error:
        warn(f'{error} It is skipped.')
        return 0
    frames = ((f'{name}/{index:06d}', image) for index, image in enumerate(video))
    contents, writer = [], None
    with contextlib.ExitStack() as stack:
        for frame, image, prediction in show_progress(predictor.stream(frames), video.num_frames):
            contents.append(describe(prediction, frame, out_dir))
            if threshold is None:
                continue
            if writer is None:
                target = open_writer(out_dir / f'vis/{name}.mp4', video.rate, image.shape[1::-1])
                writer = stack.enter_context(target)
            writer.write(np.asarray(prediction.draw(image, threshold))[..., ::-1].copy())
    if len(contents) < video.num_frames:
        warn(f'{path}: {len(contents)} of {video.num_frames} frames can be read.')
    content = dict(frames_per_second=video.rate, frames=contents)
    write(content, out_dir / f'preds/{name}.json')
    return len(contents)


def describe(prediction: Prediction, name: str, out_dir: Path) -> dict[str, Any]:
    """Return the JSON of a prediction, and write its segments to a file, which it names."""
    content = prediction.to_dict()
    if 'segments' in content:
        write(Image.fromarray(content['segments']), out_dir / f'preds/{name}.png')
        content['segments'] = f'{name}.png'
    return content


def write(content: Image.Image | dict, path: Path) -> None:
    """Write an image or JSON atomically."""
    with atomic_write(path) as file:
        if isinstance(content, dict):
            file.write_text(json.dumps(content))
        else:
            content.save(file, quality=95)


def show_progress(items: Iterable[Item], total: int) -> Iterator[Item]:
    """Yield items, and show their number, and how many there are per second, on a terminal."""
    start = time.perf_counter()
    for count, item in enumerate(items, 1):
        yield item
        if sys.stderr.isatty():
            rate = count / (time.perf_counter() - start)
            bar = '#' * (30 * count // total) if total else ''
            sys.stderr.write(f'\rPredict [{bar:30}] {count}/{total or "?"}, {rate:.1f} images/s ')
    if sys.stderr.isatty():
        sys.stderr.write('\n')
