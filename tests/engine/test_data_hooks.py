import contextlib
import json
import multiprocessing
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from PIL import Image
from torch.utils.data import ConcatDataset

from mmevit.datasets.loading import LoadReadableImage, UnreadableImages
from mmevit.engine.data_hooks import (
    InvalidLabelsHook,
    UnreadableImagesHook,
    add_data_hooks,
    find_loading_steps,
)
from mmevit.utils.errors import UserError

NUM_IMAGES = 12


class MeanPixel(BaseModel):
    """Learns nothing; predicts the mean of each image."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, img, mode='tensor', **_):
        means = torch.stack([torch.as_tensor(image).float().mean() for image in img])
        return dict(loss=self.weight.sum()) if mode == 'loss' else list(means)


class Brightness(BaseMetric):
    """The mean of the predictions, or no metric."""

    is_measured = True

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(brightness=float(np.mean(results))) if self.is_measured else {}


@pytest.fixture
def make_runner(tmp_path):
    """Make a runner with images of value 100, of which some are corrupt."""

    def make(num_corrupt, num_workers=0, is_persistent=False, **settings):
        for index in range(NUM_IMAGES):
            path = tmp_path / f'{index}.png'
            Image.fromarray(np.full((4, 4, 3), 100, np.uint8)).save(path)
            if index < num_corrupt:
                path.write_bytes(b'corrupt')
        names = [dict(img_path=f'{index}.png') for index in range(NUM_IMAGES)]
        (tmp_path / 'list.json').write_text(json.dumps(dict(metainfo={}, data_list=names)))

        def loader(on_error):
            return dict(
                dataset=dict(
                    type=BaseDataset,
                    data_root=str(tmp_path),
                    ann_file='list.json',
                    serialize_data=False,  # garbage collection takes longer than the run
                    test_mode=on_error == 'blank',
                    pipeline=[dict(type='LoadReadableImage', on_error=on_error)],
                ),
                sampler=dict(type='DefaultSampler', shuffle=False),
                batch_size=2,
                num_workers=num_workers,
                persistent_workers=is_persistent,
            )

        cfg = Config(
            dict(
                work_dir=str(tmp_path / 'work'),
                train_dataloader=loader('skip'),
                val_dataloader=loader('blank'),
                train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
                val_cfg=dict(),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
                default_hooks=settings,
                experiment_name=tmp_path.name,
            ),
            # Formatting takes most of the time of saving a config.
            format_python_code=False,
        )
        add_data_hooks(cfg)
        parts = dict(model=MeanPixel(), val_evaluator=Evaluator(Brightness()))
        return Runner(**cfg.to_dict(), **parts, cfg=cfg)

    return make


def test_hooks_can_be_disabled():
    cfg = Config(dict(default_hooks=dict(unreadable_images=None)))
    add_data_hooks(cfg)
    assert cfg.default_hooks == dict(invalid_labels=dict(type='InvalidLabelsHook'))


def test_unreadable_images_of_all_workers_are_counted_in_addition_to_the_metric(
    make_runner, tmp_path
):
    runner = make_runner(3, num_workers=2, unreadable_images=dict(max_share=0.25))
    runner.train()
    scalars = runner.message_hub.log_scalars
    # Blank images make it 75 instead of 100.
    assert list(scalars['val/brightness'].data[0]) == [75, 75]
    assert list(scalars['val/unreadable_images'].data[0]) == [3, 3]
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    for epoch in (1, 2):
        assert f'Epoch(train) [{epoch}]  unreadable_images: 3 of 12' in log
        assert f'Epoch(val) [{epoch}][6/6]    brightness: 75.0000  unreadable_images: 3 ' in log


def test_persistent_workers_reset_the_count_before_each_evaluation(make_runner, tmp_path):
    runner = make_runner(3, 2, is_persistent=True, unreadable_images=dict(max_share=0.25))
    assert runner.val() == dict(brightness=75, unreadable_images=3)
    for index in range(3):
        shutil.copy(tmp_path / '11.png', tmp_path / f'{index}.png')
    assert runner.val() == dict(brightness=100, unreadable_images=0)
    # Left to the garbage collection, they are waited for.
    runner.val_dataloader._iterator._shutdown_workers()


def test_count_is_zero_without_unreadable_images(make_runner):
    runner = make_runner(0)
    assert runner.val() == dict(brightness=100, unreadable_images=0)


def test_count_is_not_a_metric_if_there_is_no_other(make_runner, monkeypatch, tmp_path):
    monkeypatch.setattr(Brightness, 'is_measured', False)
    runner = make_runner(3, unreadable_images=dict(max_share=0.25))
    # Otherwise the best checkpoint would be chosen by it.
    assert runner.val() == {}
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert ' unreadable_images: 3 of 12\n' in log


@pytest.mark.parametrize('run', ['train', 'val'])
def test_too_many_unreadable_images_stop_the_run(make_runner, run):
    runner = make_runner(4, unreadable_images=dict(max_share=0.25))
    with pytest.raises(UserError, match=r'4 of 12 images cannot be decoded .* max_share=0.25 '):
        getattr(runner, run)()


class Wrapper:
    """A data set with attributes of the names that wrappers use."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __getitem__(self, index):
        raise NotImplementedError

    def __len__(self):
        return 10


@pytest.mark.parametrize(
    'attributes',
    [
        dict(),
        dict(dataset='coco'),
        dict(datasets='coco'),
        dict(dataset=dict(name='coco')),
        dict(datasets=dict(name='coco')),
        dict(datasets=['coco', 'lvis']),
        dict(datasets=[]),
        dict(datasets=2),
    ],
    ids=str,
)
def test_only_data_sets_count_as_wrapped_data_sets(attributes):
    load = LoadReadableImage()
    dataset = Wrapper(pipeline=SimpleNamespace(transforms=[load]), **attributes)
    assert list(find_loading_steps(dataset)) == [(dataset, load)]
    for wrapper in (
        Wrapper(dataset=dataset),
        Wrapper(datasets=[dataset]),
        Wrapper(datasets=dict(train=dataset)),
        ConcatDataset([dataset]),
    ):
        assert list(find_loading_steps(wrapper)) == [(dataset, load)]


def count_in_process(rank, file, queue):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{file}', rank=rank, world_size=2
    )
    load = LoadReadableImage()
    load.unreadable = UnreadableImages(10, max_share=0.3)
    # The last batch of a sampler may have an image that another process has too.
    for index in ([2, 5], [5, 7])[rank]:
        load.unreadable.add(index)
    dataset = Config()
    dataset.__dict__['pipeline'] = torch.nn.Module()
    dataset.__dict__['pipeline'].transforms = [load]
    queue.put(UnreadableImagesHook(max_share=0.3).count(dataset))


def test_images_of_several_processes_are_counted_once(tmp_path):
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    processes = [
        context.Process(target=count_in_process, args=(rank, tmp_path / 'store', queue))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [(3, 10), (3, 10)]
    for process in processes:
        process.join()


@pytest.fixture
def check():
    """Check a batch of a model."""

    def check(model, samples, inputs=None, mode='val'):
        hook = InvalidLabelsHook()
        hook.before_run(Config(dict(cfg=dict(model=model))))
        batch = dict(data_samples=samples, inputs=inputs)
        getattr(hook, f'before_{mode}_iter')(None, 0, batch)

    return check


def segmented(labels, **metainfo):
    """A sample with a segmentation map."""
    return SegDataSample(metainfo=metainfo, gt_sem_seg=PixelData(data=torch.as_tensor(labels)))


@pytest.mark.parametrize('label', [-1, 3, 1000])
def test_label_out_of_range_stops_the_run(check, label):
    model = dict(type='ImageClassifier', head=dict(num_classes=3))
    right, wrong = (
        DataSample(metainfo=dict(img_path=f'{value}.png')).set_gt_label(value)
        for value in (2, label)
    )
    check(model, [right])
    with pytest.raises(UserError, match=f'{label}.png has the label {label}, but the model has 3 '):
        check(model, [right, wrong])


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        (np.full((1, 4, 6), 2), None),
        (np.full((1, 4, 6), 255), None),
        (np.full((1, 4, 6), 3), 'seg.png has the label 3, but the model has 3 classes, 0 to 2'),
        (np.full((4, 6, 3), 1), 'seg.png has 3 channels'),
        (np.full((1, 4, 5), 1), 'seg.png has a different size than its image a.png'),
    ],
)
@pytest.mark.parametrize('is_nested', [False, True])
def test_invalid_segmentation_map_stops_the_run(check, labels, message, is_nested):
    sample = segmented(labels, img_path='a.png', seg_map_path='seg.png', img_shape=(4, 6))
    samples = [[sample], [sample]] if is_nested else [sample]
    model = dict(decode_head=[dict(num_classes=7), dict(num_classes=3)])
    if message is None:
        check(model, samples)
    else:
        with pytest.raises(UserError, match=message):
            check(model, samples)


def test_single_output_has_two_classes(check):
    check(dict(module=dict(decode_head=dict(num_classes=1))), [segmented(np.ones((1, 4, 6), int))])


@pytest.mark.parametrize(('width', 'is_right'), [(5, True), (6, False)])
def test_segmentation_map_may_have_the_size_of_the_batch_image(check, width, is_right):
    """Crops of Albu do not update img_shape and pad_shape."""
    sample = segmented(np.ones((1, 4, 5), int), img_shape=(8, 8), ori_shape=(8, 8))
    model, image = dict(decode_head=dict(num_classes=3)), torch.zeros(3, 4, width)
    with contextlib.nullcontext() if is_right else pytest.raises(UserError, match='different size'):
        check(model, [sample, sample], [image, image])


def test_query_labels_of_a_retriever_are_not_checked(check):
    model = dict(type='mmpretrain.ImageToImageRetriever', head=dict(num_classes=3))
    sample = DataSample(metainfo=dict(img_path='a.png')).set_gt_label([2, 7])
    check(model, [sample])
    with pytest.raises(UserError, match='a.png has the label 7'):
        check(model, [sample], mode='train')


@pytest.mark.parametrize('kind', [torch.uint8, torch.int64])
@pytest.mark.parametrize('value', [7, 255, -1, 2**40])
def test_labels_of_any_dtype_and_value_are_checked(kind, value):
    hook = InvalidLabelsHook()
    hook.num_classes, hook.ignored = 3, 255
    hook.check(torch.tensor([], dtype=kind), 'a.png')
    labels = torch.tensor([0, value, 2]).to(kind)
    is_right = int(labels[1]) in (0, 255)  # as bytes -1 is 255 and 2**40 is 0
    with contextlib.nullcontext() if is_right else pytest.raises(UserError, match='has the label'):
        hook.check(labels, 'a.png')
