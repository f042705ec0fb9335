import functools
import json
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from making_models import build_model, save_model
from making_videos import write_video
from mmengine.config import Config
from mmengine.dataset import Compose
from PIL import Image
from plug_in_table import NECKS, write_config
from pycocotools import mask as mask_api

from mmevit.apis.inference import (
    infer,
    make_classifier,
    make_detector,
    make_predictor,
    make_segmentor,
    prepare_config,
)
from mmevit.checkpoint import convert_checkpoint, forbid_code_in_checkpoints, reading
from mmevit.cli.export import load_model
from mmevit.cli.infer import main
from mmevit.cli.test import main as evaluate
from mmevit.utils.errors import CheckpointError, ConfigError
from mmevit.utils.inputs import name_inputs

CONFIGS = dict(
    retinanet='retinanet_evit_m4_digits',
    mask_rcnn='mask-rcnn_evit_m4_digits',
    segmentor='semantic-fpn_evit_m4_digits',
    classifier='evit_m0_digits',
)
SMALL = dict(model__backbone__arch='m0', model__neck__in_channels=[64, 128, 192])


@pytest.fixture(scope='module')
def make_model(digits, tmp_path_factory):
    """Write the config, for the digits, and a checkpoint of a model of CONFIGS; return both."""
    folder = tmp_path_factory.mktemp('models')

    @functools.cache
    def make(name):
        root = digits / 'classification/val' if name == 'classifier' else digits
        options = dict(test_dataloader__dataset__data_root=str(root))
        options['test_dataloader__num_workers'] = 0
        options['test_dataloader__persistent_workers'] = False
        if name != 'classifier':
            options.update(SMALL)
        if name in ('retinanet', 'mask_rcnn'):
            ann_file = str(root / 'annotations/instances_val.json')
            options['test_evaluator__ann_file'] = ann_file
        torch.manual_seed(0)
        config, checkpoint = folder / f'{name}.py', folder / f'{name}.pth'
        save_model(CONFIGS[name], checkpoint, **options).dump(config)
        return str(config), str(checkpoint)

    return make


@pytest.fixture(scope='module')
def video(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp('video') / 'clip.mp4'
    return write_video(path, sorted((digits / 'val').iterdir())[:2])


@pytest.mark.parametrize(
    'name',
    [
        'retinanet',
        pytest.param('mask_rcnn', marks=pytest.mark.slow),
        'segmentor',
        'classifier',
    ],
)
def test_json_holds_what_the_evaluation_predicts(
    name, make_model, digits, video, own_loading, capsys, tmp_path
):
    model = make_model(name)
    evaluate([*model, '--work-dir', str(tmp_path), '--out', str(tmp_path / 'wanted.pkl')])
    wanted = pickle.loads((tmp_path / 'wanted.pkl').read_bytes())
    wanted = {str(prediction['img_path']): prediction for prediction in wanted}
    folder = digits / ('classification/val/4' if name == 'classifier' else 'val')
    options = ['--out-dir', str(tmp_path), '--batch-size', '3', '--pred-score-thr', '0.0']
    main([*model, str(folder), str(video), *options])
    images = sorted(folder.iterdir())
    assert f'Predictions of {len(images) + 2} images are in {tmp_path}.' in capsys.readouterr().out
    for path in images:
        found = json.loads((tmp_path / f'preds/{path.stem}.json').read_text())
        compare[name](found, wanted[str(path)], tmp_path)
        # Drawn upon a picture of the image's size.
        before, after = (np.asarray(Image.open(p)) for p in (path, tmp_path / 'vis' / path.name))
        assert after.shape[:2] == before.shape[:2]
        assert (after != before.reshape(*before.shape[:2], -1)).any()

    found = json.loads((tmp_path / 'preds/clip.json').read_text())
    assert len(found['frames']) == 2 and found['frames_per_second'] == 5
    drawn = cv2.VideoCapture(str(tmp_path / 'vis/clip.mp4'))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 2
    assert drawn.get(cv2.CAP_PROP_FPS) == 5


def compare_boxes(found, wanted, _):
    instances = wanted['pred_instances']
    assert len(found['bboxes']) == len(instances['bboxes']) > 10
    assert len(set(found['labels'])) > 1
    # Batches are of other sizes, so that sums are added up in other orders.
    for name in ('bboxes', 'scores', 'labels'):
        values = torch.tensor(found[name])
        torch.testing.assert_close(values, instances[name].to(values), rtol=1e-4, atol=1e-3)


def compare_masks(found, wanted, folder):
    compare_boxes(found, wanted, folder)
    for ours, theirs in zip(found['masks'], wanted['pred_instances']['masks'], strict=True):
        ours, theirs = mask_api.decode(ours), mask_api.decode(theirs)
        assert (ours != theirs).mean() < 1e-3


def compare_segments(found, wanted, folder):
    segments = np.asarray(Image.open(folder / 'preds' / found['segments']))
    theirs = wanted['pred_sem_seg']['data'][0].numpy()
    assert segments.shape == theirs.shape == (192, 192)
    assert (segments != theirs).mean() < 1e-3
    classes = {entry['label']: entry['pixels'] for entry in found['classes']}
    assert classes == {label: (segments == label).sum() for label in np.unique(segments)}
    assert len(classes) > 2
    names = ['background', *'0123456789']
    assert all(entry['name'] == names[entry['label']] for entry in found['classes'])


def compare_scores(found, wanted, _):
    scores = torch.tensor(found['pred_scores'])
    torch.testing.assert_close(scores, wanted['pred_score'], rtol=1e-4, atol=1e-6)
    assert found['pred_label'] == int(scores.argmax())
    assert found['pred_class'] == '0123456789'[found['pred_label']]


compare = dict(
    retinanet=compare_boxes,
    mask_rcnn=compare_masks,
    segmentor=compare_segments,
    classifier=compare_scores,
)


@pytest.fixture
def predict(make_model):
    """Predict into a folder, by default with the fastest model."""

    def run(inputs, out_dir, model='classifier', **options):
        config, checkpoint = make_model(model)
        cfg = Config.fromfile(config)
        return infer(cfg, checkpoint, map(str, inputs), out_dir, **options)

    return run


def test_unreadable_files_are_named_and_skipped(predict, digits, video, tmp_path, log):
    folder = tmp_path / 'in'
    folder.mkdir()
    shutil.copy(digits / 'val/000001.png', folder / 'whole.png')
    Image.open(digits / 'val/000002.png').convert('L').resize((50, 30)).save(folder / 'grey.jpg')
    (folder / 'torn.png').write_bytes(b'torn')
    (folder / 'notes.txt').write_text('no image')
    (folder / 'cut.mp4').write_bytes(video.read_bytes()[:500])
    (folder / 'empty.avi').touch()
    assert predict([folder], tmp_path / 'out', batch_size=8) == (2, 3)
    written = {str(path.relative_to(tmp_path / 'out')) for path in tmp_path.glob('out/*/*')}
    assert written == {'preds/whole.json', 'preds/grey.json', 'vis/whole.png', 'vis/grey.jpg'}
    assert Image.open(tmp_path / 'out/vis/grey.jpg').size == (50, 30)
    warnings = log.read_text()
    assert 'torn.png cannot be read and is skipped' in warnings
    assert 'cut.mp4 cannot be read' in warnings and 'empty.avi cannot be read' in warnings


def test_no_save_vis_writes_no_pictures(predict, digits, video, tmp_path):
    assert predict([digits / 'val/000001.png', video], tmp_path, draw=False) == (3, 0)
    assert {path.name for path in tmp_path.rglob('*')} == {'preds', '000001.json', 'clip.json'}


def test_predictions_do_not_depend_on_the_other_images_of_a_batch(predict, digits, tmp_path):
    # In a batch with a larger image, one is padded, and other windows would be attended to.
    folder = tmp_path / 'in'
    folder.mkdir()
    for index, side in enumerate((192, 192, 130, 192)):
        image = Image.open(digits / 'val/000001.png').resize((side, 192))
        image.save(folder / f'{index}.png')
    predict([folder], tmp_path / 'out', 'retinanet', batch_size=4, draw=False)
    predict([folder / '2.png'], tmp_path / 'alone', 'retinanet', draw=False)
    found = [json.loads((tmp_path / f'out/preds/{i}.json').read_text()) for i in range(4)]
    assert found[0]['labels'] == found[1]['labels'] == found[3]['labels'] != found[2]['labels']
    assert found[2] == json.loads((tmp_path / 'alone/preds/2.json').read_text())


def test_detections_below_the_threshold_are_written_but_not_drawn(predict, digits, tmp_path):
    image = digits / 'val/000001.png'
    predict([image], tmp_path, 'retinanet', score_thr=1.1)
    drawn, plain = (np.asarray(Image.open(path)) for path in (tmp_path / 'vis/000001.png', image))
    assert (drawn == plain).all()
    assert len(json.loads((tmp_path / 'preds/000001.json').read_text())['labels']) > 10


def test_classifier_of_arrays_gets_rgb_images(tmp_path):
    cfg = save_model('evit_m0_cifar10', tmp_path / 'cifar.pth')
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image[..., 0] //= 8
    predict = make_predictor(cfg, str(tmp_path / 'cifar.pth'), 'cpu', 0.3, draw=False)
    ((found, _),) = predict([image[..., ::-1].copy()])

    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(tmp_path / 'cifar.pth')['state_dict'])
    data = Compose(cfg.test_dataloader.dataset.pipeline)(dict(img=image))
    data = {name: [value] for name, value in data.items()}
    with torch.no_grad():
        wanted = model.test_step(dict(inputs=data['inputs'][0][None], data_samples=None))
    np.testing.assert_allclose(found['pred_scores'], wanted[0].pred_score, rtol=1e-4)


@pytest.mark.filterwarnings('ignore:.*copying from a non-meta parameter')
def test_classifier_is_on_the_best_device_by_default(make_model, monkeypatch):
    monkeypatch.setattr('mmevit.apis.inference.get_device', lambda: 'meta')
    config, checkpoint = make_model('classifier')
    inferencer, _, _ = make_classifier(Config.fromfile(config), checkpoint, None, 0.3)
    assert all(parameter.is_meta for parameter in inferencer.model.parameters())


@pytest.mark.parametrize(
    ('inputs', 'sentence'),
    [
        (['missing.png'], 'missing.png is missing'),
        (['notes.txt'], 'notes.txt is not an image or video'),
        (['empty'], 'empty contains no image or video'),
        (['a/1.png', 'b/1.png'], 'have the same output file'),
    ],
)
def test_invalid_inputs_are_one_line_errors(inputs, sentence, tmp_path):
    for name in ('empty', 'a', 'b'):
        (tmp_path / name).mkdir()
    for name in ('notes.txt', 'a/1.png', 'b/1.png'):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=sentence):
        name_inputs([tmp_path / name for name in inputs])


def test_names_that_differ_only_in_their_suffix_keep_it(tmp_path):
    for name in ('1.jpg', '1.mov', '2.png'):
        (tmp_path / name).touch()
    named = name_inputs([tmp_path, tmp_path / '2.png'])
    assert {name: path.name for name, path in named.items()} == {
        '1.jpg': '1.jpg',
        '1.mov': '1.mov',
        '2': '2.png',
    }


def test_wrapped_data_sets_and_saved_configs_are_supported(make_model, digits, tmp_path):
    config, checkpoint = make_model('classifier')
    cfg = Config.fromfile(config)
    dataset = cfg.test_dataloader.dataset
    dataset.pipeline[0] = dict(type='LoadReadableImage', on_error='blank', max_pixels=None)
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[dataset, dataset])
    assert prepare_config(cfg).test_dataloader.dataset.type == 'CustomDataset'
    assert infer(cfg, checkpoint, [str(digits / 'val/000001.png')], tmp_path) == (1, 0)


@pytest.mark.parametrize('name', ['retinanet', 'segmentor', 'classifier'])
def test_visualizer_and_classes_have_defaults(name, make_model, digits, tmp_path):
    config, checkpoint = make_model(name)
    cfg, image = Config.fromfile(config), cv2.imread(str(digits / 'val/000001.png'))
    predict = make_predictor(prepare_config(cfg), checkpoint, 'cpu', 0.0, draw=True)
    ((wanted, picture),) = predict([image])
    cfg.visualizer = None
    bare = tmp_path / 'bare.pth'
    if name == 'classifier':
        bare = checkpoint  # the config does not have its classes
    else:
        torch.save(dict(state_dict=torch.load(checkpoint)['state_dict']), bare)
    predict = make_predictor(prepare_config(cfg), str(bare), 'cpu', 0.0, draw=True)
    ((found, other_picture),) = predict([image])
    assert found.keys() == wanted.keys()
    if name == 'segmentor':
        assert found['classes'] == wanted['classes']
    assert (picture == other_picture).all()  # with labels
    assert (picture != image[..., ::-1]).any()


@pytest.mark.parametrize('make', [make_detector, make_segmentor])
@pytest.mark.parametrize('kind', ['safetensors', 'mmcv 1.x'])
def test_classes_of_checkpoints_of_other_kinds_are_kept(
    make, kind, make_model, own_loading, tmp_path
):
    forbid_code_in_checkpoints()
    config, checkpoint = make_model('retinanet' if make is make_detector else 'segmentor')
    content, classes = torch.load(checkpoint), tuple('abcdefghij')
    if kind == 'safetensors':
        content['meta'] = dict(dataset_meta=dict(classes=classes))
    else:
        content['meta'] = dict(CLASSES=classes)
    path = tmp_path / 'model.pth'
    torch.save(content, path)
    if kind == 'safetensors':
        convert_checkpoint(path, path.with_suffix('.safetensors'), 'mmevit')
        path = path.with_suffix('.safetensors')
    inferencer, *_ = make(prepare_config(Config.fromfile(config)), str(path), 'cpu', 0.3)
    assert tuple(inferencer.model.dataset_meta['classes']) == classes


@pytest.mark.parametrize('name', ['retinanet', 'segmentor', 'classifier'])
def test_predictor_and_export_read_the_checkpoint_once_and_log_its_path(
    name, make_model, monkeypatch, capsys, log
):
    config, checkpoint = make_model(name)
    paths, read = [], reading.read_pickle
    monkeypatch.setattr(reading, 'read_pickle', lambda *args: paths.append(args[0]) or read(*args))
    cfg, url = Config.fromfile(config), f'evit://{checkpoint}'
    make_predictor(prepare_config(cfg), url, 'cpu', 0.3, draw=False)
    load_model(cfg, url)
    assert list(map(str, paths)) == [checkpoint] * 2
    # mmdet's and mmpretrain's inferencers print the line instead of logging it.
    for lines in (capsys.readouterr().out.splitlines(), log.read_text().splitlines()):
        (line,) = [line for line in lines if 'Loads checkpoint' in line]
        assert line.endswith(f'Loads checkpoint by evit backend from path: {url}')


def test_panoptic_model_is_refused(digits, tmp_path):
    path = tmp_path / 'panoptic.py'
    name = 'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'
    cfg = Config.fromfile(write_config(path, name, NECKS[name]))
    with pytest.raises(ConfigError, match='Panoptic models are not supported'):
        infer(cfg, 'none.pth', [str(digits / 'val/000001.png')], tmp_path)


def test_config_of_another_library_or_without_data_is_refused(digits, tmp_path):
    inputs = [str(digits / 'val/000001.png')]
    with pytest.raises(ConfigError, match='missing test_dataloader'):
        infer(Config(dict(default_scope='mmdet')), 'x.pth', inputs, tmp_path)
    cfg = Config.fromfile('configs/evit_m0_digits.py')
    cfg.default_scope = 'mmpose'
    with pytest.raises(ConfigError, match="default_scope='mmpose' is not supported"):
        infer(cfg, 'x.pth', inputs, tmp_path)


def test_a_checkpoint_of_another_model_is_refused(make_model, digits, tmp_path):
    config, checkpoint = make_model('classifier')
    cfg = Config.fromfile(config)
    cfg.model.head.num_classes = 7
    with pytest.raises(CheckpointError, match='does not fit the model'):
        infer(cfg, checkpoint, [str(digits / 'val/000001.png')], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('flags', 'sentence'),
    [
        (['no_config.py', 'x.pth', '.'], 'The config no_config.py is missing'),
        (['mmevit::efficientvit/no.py', 'x.pth', '.'], 'mmevit::efficientvit/no.py cannot be read'),
        (['configs/evit_m0_digits.py', 'x.pth', '.'], 'The checkpoint x.pth is missing'),
        (['a', 'b', 'c', '--batch-size', '0'], '--batch-size: 0 is not an integer above 0'),
        (['a', 'b', 'c', '--device', 'cuda:99'], 'device cuda:99 is not available'),
    ],
)
def test_invalid_command_lines_are_one_line_errors(flags, sentence, capsys, own_loading):
    with pytest.raises(SystemExit) as caught:
        main(flags)
    assert sentence in f'{caught.value.code} {capsys.readouterr().err}'


def test_nothing_readable_is_an_error(make_model, run_tool, tmp_path):
    (tmp_path / 'torn.png').write_bytes(b'torn')
    _, checkpoint = make_model('classifier')
    result = run_tool(
        *('tools/infer.py', 'mmevit::efficientvit/evit_m0_digits.py', checkpoint),
        *(tmp_path / 'torn.png', '--out-dir', tmp_path / 'out'),
    )
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1].startswith('error: None of the files can be read')
    assert not Path(tmp_path / 'out').exists()
