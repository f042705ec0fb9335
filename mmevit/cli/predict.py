"""Predict images, videos and directories with an exported file, without PyTorch and OpenMMLab.

Writes JSON and pictures as infer does.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from mmevit.cli.command import add_prediction_arguments, argument, command, positive_int
from mmevit.runtime import Predictor
from mmevit.runtime.sessions import OPENERS
from mmevit.utils.inputs import name_inputs
from mmevit.utils.outputs import NamedImages, Results, predict_files, print_summary

Item = TypeVar('Item')


@command(
    argument('model', f'file written by export ({", ".join(OPENERS)})'),
    add_prediction_arguments,
    argument('--threads', 'number of CPU threads (default: all)', type=positive_int, default=0),
)
def main(args: Namespace) -> None:
    """Load the file, then predict."""
    files, out_dir = name_inputs(args.inputs, args.out_dir), Path(args.out_dir)
    predictor = Predictor(args.model, args.threads, args.batch_size)

    def run(images: NamedImages, total: int) -> Results:
        for name, image, prediction in show_progress(predictor.stream(images), total):
            picture = None
            if not args.no_save_vis:
                picture = np.asarray(prediction.draw(image, args.pred_score_thr))
            yield name, prediction.to_dict(), picture

    num_predicted, num_skipped = predict_files(files, out_dir, predictor.read_all, run)
    print_summary(num_predicted, num_skipped, args.out_dir)


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
