"""Predictions for images, folders and videos, written as JSON and as pictures."""

import contextlib
import copy
import logging
from collections import Counter
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import cv2
import mmcv
import mmengine
import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS, TRANSFORMS
from mmengine.runner import CheckpointLoader
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmevit.checkpoint.matching import check_fit
from mmevit.datasets.class_folders import SUFFIXES as IMAGE_SUFFIXES
from mmevit.utils.configs import find_datasets, find_step, type_name
from mmevit.utils.errors import ConfigError
from mmevit.utils.files import atomic_write

from .video import VIDEO_SUFFIXES, Frames, open_writer


def infer(cfg, checkpoint, inputs, out_dir, batch_size=1, score_thr=0.3, device=None, draw=True):
    """Predict what is in images and videos, and write it into a folder.

    An image gives ``preds/NAME.json`` and, drawn upon, ``vis/NAME.jpg`` or ``.png``; a video gives
    ``preds/NAME.json``, with a list of its frames' predictions, and ``vis/NAME.mp4``. Segments are
    in ``preds/NAME.png``, a class a pixel, or for a video in ``preds/NAME/000000.png`` and so on.
    What cannot be read is left out with a warning.

    Args:
        cfg (Config): Config of a detector of mmdet, a classifier of mmpretrain or a segmentor of
            mmsegmentation.
        checkpoint (str): Its weights.
        inputs (Sequence[str]): Images, videos, and folders that hold some.
        out_dir (str): Folder to write to.
        batch_size (int): Number of images that are predicted at once, as far as they follow each
            other and are of one size. Defaults to 1.
        score_thr (float): Score from which on a detection is drawn; the JSON has all of them.
            Defaults to 0.3.
        device (str, optional): Device to run on, the best one unless given.
        draw (bool): Whether to make pictures. Defaults to True.

    Returns:
        tuple[int, int]: Number of images and frames predicted, and of files that were left out.

    Raises:
        ConfigError: If an input is missing or of no known kind, or the config is no whole one.
        CheckpointError: If the checkpoint does not fit the model.
    """
    files, out_dir = name_inputs(inputs), Path(out_dir)
    videos, images = (
        {name: path for name, path in files.items() if is_video(path) == wanted}
        for wanted in (True, False)
    )
    cfg = simplify_test_data(cfg)
    predict = make_predictor(cfg, checkpoint, device, score_thr, draw)
    num_frames = sum(len(Frames(str(path))) for path in videos.values())
    columns = TextColumn('Inference'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        task = progress.add_task('', total=len(images) + num_frames)

        def run(named_images):
            for result in predict_in_batches(predict, named_images, batch_size):
                progress.advance(task)
                yield result

        counts = [infer_images(images, make_loader(cfg), run, out_dir)]
        counts += [infer_video(name, path, run, out_dir) for name, path in videos.items()]
    num_left_out = len(images) - counts[0] + counts[1:].count(0)
    return sum(counts), num_left_out


def name_inputs(inputs):
    """List the images and videos that are asked for, by the names of what is written for them.

    Args:
        inputs (Sequence[str]): Files and folders.

    Returns:
        dict[str, Path]: The files, those of a folder in order. A name is that of the file without
        its suffix, or with it where several differ in that alone.

    Raises:
        ConfigError: If a file is missing or of no known kind, a folder holds none, or two files
            have the same name.
    """
    known = IMAGE_SUFFIXES + VIDEO_SUFFIXES
    paths = {}
    for path in map(Path, inputs):
        if not path.exists():
            raise ConfigError(f'{path} is missing: name an image, a video, or a folder of them.')
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        files = [file for file in files if file.suffix.lower() in known]
        if not files:
            kind = (
                'holds no image or video' if path.is_dir() else 'is no image or video by its name'
            )
            raise ConfigError(f'{path} {kind} ({", ".join(known)}).')
        paths.update({file.resolve(): file for file in files})
    stems = Counter(path.stem for path in paths.values())
    named = {}
    for path in paths.values():
        name = path.stem if stems[path.stem] == 1 else path.name
        if name in named:
            raise ConfigError(
                f'{named[name]} and {path} would be written to one file: give them in two runs, '
                'with an --out-dir each.'
            )
        named[name] = path
    return named


def is_video(path):
    """Whether a file is a video by its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def simplify_test_data(cfg):
    """Have a config test on one data set that is not wrapped, which is all that inferencers know.

    Args:
        cfg (Config): The config.

    Returns:
        Config: A copy, whose images are loaded by ``LoadImageFromFile`` if they are by a transform
        of its kind.

    Raises:
        ConfigError: If the config has no test data.
    """
    if cfg.get('test_dataloader') is None:
        raise ConfigError('The config is no whole one: it has no test_dataloader.')
    cfg = copy.deepcopy(cfg)
    dataset = next(find_datasets(cfg.test_dataloader.dataset))
    dataset.pipeline = dataset.get('pipeline') or []
    use_short_names(dataset.pipeline, cfg.get('default_scope'))
    # As tools/test.py leaves it in the configs that it keeps.
    if load := find_step(dataset.pipeline, 'LoadReadableImage'):
        load.pop('on_error', None)
        load.type = 'LoadImageFromFile'
    cfg.test_dataloader.dataset = dataset
    return cfg


def use_short_names(pipeline, library):
    """Name the transforms as inferencers look for them, where a config has classes or full names.

    Args:
        pipeline (list[dict]): Configs of transforms, which are changed.
        library (str | None): The library in which names are looked up.
    """
    with TRANSFORMS.switch_scope_and_registry(library) as registry:
        for step in pipeline:
            kind = registry.get(step.type) if isinstance(step.type, str) else step.type
            if registry.get(type_name(step)) is kind:
                step.type = type_name(step)


def make_loader(cfg):
    """Make the transform that loads an image as the config's test pipeline does.

    Args:
        cfg (Config): The config.

    Returns:
        LoadReadableImage: Gives None for an image that cannot be read, with a warning.
    """
    load = find_step(cfg.test_dataloader.dataset.pipeline, 'LoadImageFromFile') or {}
    return TRANSFORMS.build({**load, 'type': 'LoadReadableImage', 'on_error': 'skip'})


def make_predictor(cfg, checkpoint, device, score_thr, draw):
    """Make a function from images to predictions, by the inferencer of the config's library.

    Args:
        cfg (Config): The config.
        checkpoint (str): The weights.
        device (str | None): Device to run on, the best one if None.
        score_thr (float): Score from which on a detection is drawn.
        draw (bool): Whether to make pictures.

    Returns:
        callable: Maps a list of images of one size, BGR (H, W, 3), to as many pairs of a prediction
        (dict) and a picture, BGR or None.

    Raises:
        ConfigError: If the config is none of a known library.
        CheckpointError: If the checkpoint does not fit the model.
    """
    makers = dict(
        mmdet=partial(make_detector, score_thr=score_thr),
        mmpretrain=make_classifier,
        mmseg=make_segmentor,
    )
    library = cfg.get('default_scope')
    if library not in makers:
        raise ConfigError(
            f'default_scope is {library!r}, but must be {", ".join(makers)}: give a whole config '
            'of one of these libraries.'
        )
    inferencer, infer_batch, draw_one = makers[library](cfg, checkpoint, device)
    content = CheckpointLoader.load_checkpoint(checkpoint, 'cpu')
    check_fit(inferencer.model, content)
    if library != 'mmpretrain' and 'dataset_meta' not in content.get('meta', {}):
        # The inferencers would take the names of COCO or Cityscapes.
        meta = DATASETS.build({**cfg.test_dataloader.dataset, 'lazy_init': True}).metainfo
        named = {name: meta[name] for name in ('classes', 'palette') if name in meta}
        inferencer.model.dataset_meta.update(named)

    def predict(images):
        predictions, samples = infer_batch(images)
        pictures = [
            mmcv.rgb2bgr(draw_one(mmcv.bgr2rgb(image), sample)) if draw else None
            for image, sample in zip(images, samples, strict=True)
        ]
        return list(zip(predictions, pictures, strict=True))

    return predict


def make_detector(cfg, checkpoint, device, score_thr):
    """Detections by mmdet's ``DetInferencer``, described as it does.

    Args:
        cfg (Config): The config.
        checkpoint (str): The weights.
        device (str | None): Device to run on.
        score_thr (float): Score from which on a detection is drawn.

    Returns:
        tuple: The inferencer; a function from images, BGR, to predictions and data samples; and one
        from an image, RGB, and its sample to a picture, RGB.

    Raises:
        ConfigError: If the model is a panoptic one.
    """
    from mmdet.apis import DetInferencer

    if 'Panoptic' in type_name(cfg.test_dataloader.dataset):
        raise ConfigError(
            'The config is of a panoptic model, whose maps cannot be written here: use '
            'mmdet.apis.DetInferencer, with panopticapi installed.'
        )
    inferencer = DetInferencer(cfg, checkpoint, device=device, show_progress=False)

    def infer_batch(images):
        ((_, data),) = inferencer.preprocess(images, batch_size=len(images))
        samples = inferencer.forward(data)
        return [inferencer.pred2dict(sample) for sample in samples], samples

    def draw_one(image, sample):
        return inferencer.visualize([image], [sample], return_vis=True, pred_score_thr=score_thr)[0]

    return inferencer, infer_batch, draw_one


def make_segmentor(cfg, checkpoint, device):
    """As :func:`make_detector`, by mmsegmentation: the classes that are found, and their map."""
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(cfg, checkpoint, device=device)

    def infer_batch(images):
        (data,) = inferencer.preprocess(images, batch_size=len(images))
        samples = inferencer.forward(data)
        return [describe(sample.pred_sem_seg.data[0].cpu().numpy()) for sample in samples], samples

    def describe(segments):
        names = inferencer.model.dataset_meta['classes']
        found = zip(*np.unique(segments, return_counts=True), strict=True)
        classes = [
            dict(label=int(label), name=names[label], pixels=int(pixels)) for label, pixels in found
        ]
        return dict(
            classes=classes, segments=segments.astype(np.uint8 if len(names) < 256 else np.uint16)
        )

    def draw_one(image, sample):
        return inferencer.visualize([image], [sample], return_vis=True)[0]

    return inferencer, infer_batch, draw_one


def make_classifier(cfg, checkpoint, device):
    """As :func:`make_detector`, by mmpretrain: the class, its score, and the scores of all."""
    from mmpretrain import ImageClassificationInferencer
    from mmpretrain.visualization import UniversalVisualizer

    inferencer = ImageClassificationInferencer(cfg, checkpoint, device=device)
    visualizer = UniversalVisualizer()
    # Data sets that are no files but arrays, such as CIFAR, are RGB.
    is_rgb = find_step(cfg.test_dataloader.dataset.pipeline, 'LoadImageFromFile') is None

    def infer_batch(images):
        inputs = [mmcv.bgr2rgb(image) if is_rgb else image for image in images]
        (data,) = inferencer.preprocess(inputs, batch_size=len(images))
        samples = inferencer.forward(data)
        return inferencer.postprocess(samples, None), samples

    def draw_one(image, sample):
        return visualizer.visualize_cls(image, sample, inferencer.classes, draw_gt=False)

    return inferencer, infer_batch, draw_one


def predict_in_batches(predict, named_images, batch_size):
    """Predict images one batch after the other.

    Args:
        predict (callable): What :func:`make_predictor` returns.
        named_images (Iterable[tuple[str, ndarray]]): Names and images.
        batch_size (int): Number of images at once. Only images of one size are put together, since
            padding one to the size of another would change what is found in it.

    Yields:
        tuple[str, dict, ndarray | None]: Name, prediction and picture of each image.
    """
    for _, group in groupby(named_images, key=lambda named: named[1].shape):
        while batch := list(islice(group, batch_size)):
            names, images = zip(*batch, strict=True)
            for name, result in zip(names, predict(list(images)), strict=True):
                yield name, *result


def infer_images(paths, load, run, out_dir):
    """Predict images.

    Args:
        paths (dict[str, Path]): The images by their names.
        load (callable): Loads one.
        run (callable): Maps names and images to names, predictions and pictures.
        out_dir (Path): Folder to write to.

    Returns:
        int: Number of images that could be read.
    """
    loaded = ((name, load(dict(img_path=str(path)))) for name, path in paths.items())
    readable = ((name, results['img']) for name, results in loaded if results is not None)
    count = 0
    for name, prediction, picture in run(readable):
        write_json(move_segments(prediction, name, out_dir), name, out_dir)
        if picture is not None:
            suffix = '.jpg' if paths[name].suffix.lower() in ('.jpg', '.jpeg') else '.png'
            write_image(picture, out_dir / f'vis/{name}{suffix}')
        count += 1
    return count


def infer_video(name, path, run, out_dir):
    """Predict the frames of a video.

    Args:
        name (str): Its name.
        path (Path): The video.
        run (callable): Maps names and images to names, predictions and pictures.
        out_dir (Path): Folder to write to.

    Returns:
        int: Number of frames that could be read.
    """
    video = Frames(str(path))
    frames = ((f'{name}/{index:06d}', image) for index, image in enumerate(video))
    predictions, writer = [], None
    with contextlib.ExitStack() as stack:
        for frame, prediction, picture in run(frames):
            predictions.append(move_segments(prediction, frame, out_dir))
            if picture is None:
                continue
            if writer is None:
                target = out_dir / f'vis/{name}.mp4'
                writer = stack.enter_context(open_writer(target, video.fps, picture.shape[1::-1]))
            writer.write(picture)
    if len(predictions) < max(len(video), 1):
        print_log(
            f'Of {path} {len(predictions)} of {len(video)} frames can be read.',
            logger='current',
            level=logging.WARNING,
        )
    if predictions:
        write_json(dict(frames_per_second=video.fps, frames=predictions), name, out_dir)
    return len(predictions)


def move_segments(prediction, name, out_dir):
    """Write a prediction's map of segments, if it has one, and put the file's name in its place."""
    if 'segments' in prediction:
        write_image(prediction['segments'], out_dir / f'preds/{name}.png')
        prediction['segments'] = f'{name}.png'
    return prediction


def write_image(image, path):
    """Write an image, whole or not at all."""
    with atomic_write(path) as file:
        cv2.imwrite(str(file), image)


def write_json(content, name, out_dir):
    """Write a prediction, whole or not at all."""
    with atomic_write(out_dir / f'preds/{name}.json') as file:
        mmengine.dump(content, file)
