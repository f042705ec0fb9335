"""Inference on images, videos and directories, with JSON and pictures as output."""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.infer import BaseInferencer
from mmengine.registry import DATASETS, TRANSFORMS
from mmengine.runner import load_checkpoint

from mmevit.checkpoint.loader import find_dataset_meta
from mmevit.checkpoint.matching import check_fit
from mmevit.runtime import Prediction
from mmevit.utils.configs import find_step, list_dataset_configs, type_name
from mmevit.utils.errors import ConfigError
from mmevit.utils.images import batch_by_shape
from mmevit.utils.inputs import name_inputs
from mmevit.utils.outputs import NamedImages, Results, predict_files
from mmevit.utils.progress import show_progress

# Default visualizers.
VISUALIZERS = dict(
    mmdet='DetLocalVisualizer', mmpretrain='UniversalVisualizer', mmseg='SegLocalVisualizer'
)
# An image of shape (H, W, 3).
Image = np.ndarray
# Maps BGR images of one size to predictions and RGB pictures.
Predict = Callable[[list[Image]], list[tuple[dict[str, Any], Image | None]]]


def infer(
    cfg: Config,
    checkpoint: str,
    inputs: Iterable[str],
    out_dir: str | Path,
    batch_size: int = 1,
    score_thr: float = 0.3,
    device: str | None = None,
    draw: bool = True,
) -> tuple[int, int]:
    """Run inference on images and videos, and write the results to a directory.

    For an image these are ``preds/NAME.json`` and a picture ``vis/NAME.jpg`` or ``.png``; for a
    video ``preds/NAME.json`` with a list of predictions and ``vis/NAME.mp4``. Segmentation maps
    are in ``preds/NAME.png``, for a video in ``preds/NAME/000000.png`` and so on. Unreadable files
    are skipped with a warning.

    Args:
        cfg: Config of mmdet, mmpretrain or mmsegmentation.
        checkpoint: File or URL of the weights.
        inputs: Images, videos, and directories of them.
        out_dir: Output directory.
        batch_size: Maximum number of consecutive images of the same size in a batch.
        score_thr: Minimum score of detections in pictures. The JSON has all detections.
        device: Device to run on. Default: the best one.
        draw: Whether to write pictures.

    Returns:
        Number of predicted images and frames, and number of skipped files.

    Raises:
        ConfigError: If an input is missing, not supported or in the folders of the results, or if
            the config is incomplete.
        CheckpointError: If the checkpoint does not fit the model.
    """
    files, out_dir = name_inputs(inputs, out_dir), Path(out_dir)
    cfg = prepare_config(cfg)
    read_all = make_reader(cfg)
    predict = make_predictor(cfg, checkpoint, device, score_thr, draw)

    def run(named_images: NamedImages, total: int) -> Results:
        results = predict_in_batches(predict, named_images, batch_size)
        return show_progress(results, 'Inference', total or None)

    return predict_files(files, out_dir, read_all, run)


def prepare_config(cfg: Config) -> Config:
    """Copy a config, and change it to what inferencers support.

    They need an unwrapped test data set, short names in its pipeline and a visualizer.
    """
    if cfg.get('test_dataloader') is None:
        raise ConfigError('Incomplete config: missing test_dataloader.')
    cfg = copy.deepcopy(cfg)
    library = cfg.get('default_scope')
    if cfg.get('visualizer') is None and library in VISUALIZERS:
        cfg.visualizer = dict(type=VISUALIZERS[library])
    dataset = list_dataset_configs(cfg, 'test')[0]
    dataset.pipeline = dataset.get('pipeline') or []
    # Inferencers look for the short names of transforms, not for classes and full names.
    with TRANSFORMS.switch_scope_and_registry(library) as registry:
        for step in dataset.pipeline:
            kind = step['type']
            kind = registry.get(kind) if isinstance(kind, str) else kind
            if registry.get(type_name(step)) is kind:
                step['type'] = type_name(step)
    cfg.test_dataloader.dataset = dataset
    return cfg


def make_reader(cfg: Config) -> Callable[[dict[str, Path]], NamedImages]:
    """Create a function that loads images by name, and skips unreadable ones with a warning."""
    load = find_loader(cfg.test_dataloader.dataset.pipeline) or {}
    load = TRANSFORMS.build({**load, 'type': 'LoadReadableImage', 'on_error': 'skip'})

    def read_all(images: dict[str, Path]) -> NamedImages:
        for name, path in images.items():
            if results := load(dict(img_path=str(path))):
                yield name, results['img']

    return read_all


def find_loader(pipeline: list[dict]) -> dict | None:
    """Find the step that loads images; configs that the test command saves have mmevit's."""
    return find_step(pipeline, 'LoadReadableImage') or find_step(pipeline, 'LoadImageFromFile')


def make_predictor(
    cfg: Config, checkpoint: str, device: str | None, score_thr: float, draw: bool
) -> Predict:
    """Create a predictor from the inferencer of the config's library; see :func:`infer`."""
    makers = dict(mmdet=make_detector, mmpretrain=make_classifier, mmseg=make_segmentor)
    library, dataset = cfg.get('default_scope'), cfg.test_dataloader.dataset
    if library not in makers:
        raise ConfigError(
            f'default_scope={library!r} is not supported. Use a config of {", ".join(makers)}.'
        )
    if library == 'mmdet' and 'Panoptic' in type_name(dataset):
        raise ConfigError(
            'Panoptic models are not supported. Use mmdet.apis.DetInferencer, with panopticapi '
            'installed.'
        )
    if load := find_loader(dataset.pipeline):
        load['type'] = 'LoadImageFromFile'  # which inferencers look for
        for name in ('on_error', 'max_pixels'):
            load.pop(name, None)
    # The images of data sets without files, such as CIFAR, are RGB.
    is_rgb = load is None
    inferencer, describe, draw_one = makers[library](cfg, checkpoint, device, score_thr)

    def predict(images: list[Image]) -> list[tuple[dict[str, Any], Image | None]]:
        inputs = [mmcv.bgr2rgb(image) if is_rgb else image for image in images]
        (data,) = inferencer.preprocess(inputs, batch_size=len(images))
        # mmdet has the inputs before the data.
        samples = inferencer.forward(data if isinstance(data, dict) else data[1])
        predictions = [describe(sample) for sample in samples]
        pictures = [
            draw_one(mmcv.bgr2rgb(image), sample) if draw else None
            for image, sample in zip(images, samples, strict=True)
        ]
        return list(zip(predictions, pictures, strict=True))

    return predict


# An inferencer, a function from a data sample to a prediction, and one from an RGB image and its
# data sample to an RGB picture.
InferencerParts = tuple[Any, Callable[[Any], dict[str, Any]], Callable[[Image, Any], Image]]


class StrictInferencer(BaseInferencer):
    """Mixin for mmdet's and mmsegmentation's inferencers that checks the checkpoint."""

    def _load_weights_to_model(self, model: Any, checkpoint: Any, cfg: Any) -> None:
        """Load weights that fit, and the classes of the config if the checkpoint has none."""
        super()._load_weights_to_model(model, checkpoint, cfg)
        check_fit(model, checkpoint)
        if not find_dataset_meta(checkpoint.get('meta')):
            # The default of the inferencers are the names of COCO or Cityscapes.
            meta = DATASETS.build({**cfg.test_dataloader.dataset, 'lazy_init': True}).metainfo
            named = {name: meta[name] for name in ('classes', 'palette') if name in meta}
            model.dataset_meta.update(named)


def make_detector(
    cfg: Config, checkpoint: str, device: str | None, score_thr: float
) -> InferencerParts:
    """Detect objects with mmdet's ``DetInferencer``, with its output format."""
    from mmdet.apis import DetInferencer

    class StrictDetInferencer(StrictInferencer, DetInferencer):
        pass

    inferencer: Any = StrictDetInferencer(cfg, checkpoint, device=device, show_progress=False)

    def draw_one(image: Image, sample: Any) -> Image:
        return inferencer.visualize([image], [sample], return_vis=True, pred_score_thr=score_thr)[0]

    return inferencer, inferencer.pred2dict, draw_one


def make_segmentor(cfg: Config, checkpoint: str, device: str | None, _: float) -> InferencerParts:
    """Segment images with mmsegmentation, to the found classes and a map of labels."""
    from mmseg.apis import MMSegInferencer

    class StrictSegInferencer(StrictInferencer, MMSegInferencer):
        pass

    inferencer: Any = StrictSegInferencer(cfg, checkpoint, device=device)

    def describe(sample: Any) -> dict[str, Any]:
        segments = sample.pred_sem_seg.data[0].cpu().numpy()
        classes = inferencer.model.dataset_meta['classes']
        return Prediction(segments.shape, classes, segments=segments).to_dict()

    def draw_one(image: Image, sample: Any) -> Image:
        return inferencer.visualize([image], [sample], return_vis=True)[0]

    return inferencer, describe, draw_one


def make_classifier(cfg: Config, checkpoint: str, device: str | None, _: float) -> InferencerParts:
    """Classify images with mmpretrain, to a class and the scores of all classes."""
    from mmpretrain.visualization import UniversalVisualizer

    # Unlike the other inferencers, mmpretrain's is on the CPU by default.
    inferencer = load_classifier(cfg, checkpoint, device or get_device())
    visualizer = UniversalVisualizer()

    def draw_one(image: Image, sample: Any) -> Image:
        return visualizer.visualize_cls(image, sample, inferencer.classes, draw_gt=False)

    return inferencer, lambda sample: inferencer.postprocess([sample], None)[0], draw_one


def load_classifier(cfg: Config, checkpoint: str, device: str | None = None) -> Any:
    """Create mmpretrain's ``ImageClassificationInferencer`` of a checkpoint that fits."""
    from mmpretrain import ImageClassificationInferencer, get_model

    model: Any = get_model(cfg, pretrained=False, device=device)
    content = load_checkpoint(model, checkpoint, 'cpu')
    check_fit(model, content)
    classes = find_dataset_meta(content.get('meta')).get('classes')
    return ImageClassificationInferencer(model, classes=classes)


def predict_in_batches(predict: Predict, named_images: NamedImages, batch_size: int) -> Results:
    """Predict batches of images of the same size; padding would change their predictions."""
    for names, images in batch_by_shape(named_images, batch_size):
        for name, result in zip(names, predict(list(images)), strict=True):
            yield name, *result
