"""Every number of classes in a config is compared with the data, or with the other numbers."""

import pytest
from editing import CLASSIFIER, SEGMENTOR, load
from editing import expect_error as expect

from mmevit.checks.class_counts import check_number_of_classes
from mmevit.models.cls_head import EfficientViTClsHead

RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
MASK_RCNN = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
CASCADE = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'
PANOPTIC_FPN = 'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'
MASK2FORMER = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'
MASK2FORMER_PANOPTIC = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py'
DINO = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
SEESAW = 'mmdet::seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1.py'
UPERNET = 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'
SEG_MASK2FORMER = 'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'
STDC = 'mmseg::stdc/stdc1_in1k-pre_4xb12-80k_cityscapes-512x1024.py'
RESNET = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
LENET = 'mmpretrain::lenet/lenet5_mnist.py'
IMAGENET = 'configs/evit_m0_in1k.py'


def expect_error(cfg, *parts, splits=('train',)):
    with expect(*parts):
        check_number_of_classes(cfg, splits)


@pytest.mark.parametrize(
    ('name', 'setting', 'value', 'data'),
    [
        (SEGMENTOR, 'model.decode_head.num_classes', 150, '11 classes (background, 0, 1, 2 and'),
        (SEGMENTOR, 'model.decode_head.num_classes', 5, '11 classes (background, 0, 1, 2 and'),
        (UPERNET, 'model.auxiliary_head.num_classes', 19, '150 classes (wall, building, sky'),
        (RETINANET, 'model.bbox_head.num_classes', 20, '80 classes (person, bicycle, car'),
        (MASK_RCNN, 'model.roi_head.mask_head.num_classes', 20, '80 classes'),
        (DINO, 'model.bbox_head.num_classes', 91, '80 classes'),
        (PANOPTIC_FPN, 'model.semantic_head.num_things_classes', 81, '133 classes'),
        (PANOPTIC_FPN, 'model.roi_head.bbox_head.num_classes', 133, '133 classes'),
        (MASK2FORMER_PANOPTIC, 'model.panoptic_head.num_stuff_classes', 54, '133 classes'),
        (SEG_MASK2FORMER, 'model.decode_head.num_classes', 19, '150 classes'),
        (SEESAW, 'model.roi_head.bbox_head.loss_cls.num_classes', 80, '1203 classes'),
        (RESNET, 'model.head.num_classes', 10, '1000 classes (tench'),
        (LENET, 'model.backbone.num_classes', 11, '10 classes (0 - zero'),
        (CLASSIFIER, 'model.head.num_classes', 5, '10 classes (0, 1, 2, 3 and 6 more)'),
    ],
)
def test_a_number_that_differs_from_the_data_is_reported(name, setting, value, data):
    cfg = load(name)
    check_number_of_classes(cfg, ['train', 'val', 'test'])
    cfg.merge_from_dict({setting: value})
    expect_error(cfg, f'{setting} is {value}, but the train data has {data}')


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_the_data_of_every_split_are_compared(split):
    cfg = load(CLASSIFIER)
    cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=('a', 'b'))
    expect_error(cfg, f'the {split} data has 2 classes (a, b)', splits=[split])


def test_every_head_of_a_cascade_and_of_a_list_is_compared():
    cfg = load(CASCADE)
    cfg.model.roi_head.bbox_head[2].num_classes = 81
    expect_error(cfg, 'model.roi_head.bbox_head[2].num_classes is 81')
    cfg = load(UPERNET)
    head = cfg.model.auxiliary_head
    cfg.model.auxiliary_head = [head, {**head, 'num_classes': 19}]
    expect_error(cfg, 'model.auxiliary_head[1].num_classes is 19')


def test_every_data_set_of_a_concatenation_is_compared():
    cfg = load(RETINANET)
    own = {**cfg.train_dataloader.dataset, 'metainfo': dict(classes=('cat', 'dog'))}
    joined = dict(type='ConcatDataset', datasets=[cfg.train_dataloader.dataset, own])
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=joined)
    expect_error(cfg, 'num_classes is 80, but the train data has 2 classes (cat, dog)')


@pytest.mark.parametrize(
    'kind', ['EfficientViTClsHead', 'mmengine.EfficientViTClsHead', EfficientViTClsHead]
)
def test_the_default_of_a_head_is_compared(kind):
    cfg = load(CLASSIFIER)
    cfg.model.head = dict(type=kind, in_channels=192)
    expect_error(cfg, 'model.head.num_classes is 1000')
    cfg = load(RETINANET)
    cfg.train_dataloader.dataset.metainfo = dict(classes=('cat',))
    cfg.model.roi_head = dict(mask_head=dict(type='FCNMaskHead'))
    cfg.model.bbox_head.num_classes = 1
    expect_error(cfg, 'model.roi_head.mask_head.num_classes is 80')


def test_classes_of_a_file_and_of_mmpretrains_own_argument_are_counted(tmp_path):
    path = tmp_path / 'classes.txt'
    path.write_text('cat\ndog\n')
    cfg = load(CLASSIFIER)
    cfg.train_dataloader.dataset.metainfo = dict(classes=str(path))
    expect_error(cfg, 'has 2 classes (cat, dog)')
    cfg.train_dataloader.dataset = dict(type='CustomDataset', classes=['a', 'b', 'c'])
    expect_error(cfg, 'has 3 classes (a, b, c)')


@pytest.mark.parametrize('num_classes', [9, 11])
def test_class_folders_are_counted(digits, num_classes):
    cfg = load(CLASSIFIER)
    root = str(digits / 'classification/train')
    cfg.train_dataloader.dataset = dict(type='CustomDataset', data_root=root)
    check_number_of_classes(cfg, ['train'])
    cfg.model.head.num_classes = num_classes
    expect_error(cfg, f'model.head.num_classes is {num_classes}', '10 class folders (0, 1, 2')


def test_a_list_of_images_may_have_other_classes_than_imagenet(tmp_path):
    cfg = load(RESNET)
    cfg.model.head.num_classes = 100
    dataset = dict(type='ImageNet', data_root=str(tmp_path), data_prefix='train')
    cfg.train_dataloader.dataset = dataset
    expect_error(cfg, 'num_classes is 100, but the train data has 1000 classes', 'by default')
    cfg.train_dataloader.dataset = dict(**dataset, ann_file='train.txt')
    cfg.data_preprocessor.num_classes = 100
    check_number_of_classes(cfg, ['train'])
    cfg.train_dataloader.dataset.metainfo = dict(classes=['a', 'b'])
    expect_error(cfg, 'model.head.num_classes is 100, but the train data has 2 classes')


def test_without_names_the_numbers_are_compared_with_the_first_head():
    cfg = load(UPERNET)
    cfg.train_dataloader.dataset = dict(type='BaseSegDataset')
    check_number_of_classes(cfg, ['train'])
    cfg.model.auxiliary_head.num_classes = 5
    expect_error(cfg, 'model.auxiliary_head.num_classes is 5', 'model.decode_head.num_classes')
    expect_error(cfg, 'model.auxiliary_head.num_classes is 5', splits=())  # as in infer.py


def test_three_classes_on_an_imagenet_config_are_refused_until_all_numbers_agree():
    cfg = load(IMAGENET)
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset = dict(type='CustomDataset', data_root='no/such')
    cfg.model.head.num_classes = 3
    expect_error(cfg, 'data_preprocessor.num_classes is 1000, but model.head.num_classes is 3')
    cfg.data_preprocessor.num_classes = 3
    check_number_of_classes(cfg, ['train'])
    splits = ('train', 'val')
    expect_error(cfg, 'val_evaluator.topk is (1, 5)', 'at most 3', splits=splits)
    cfg.val_evaluator.topk = (1, 3)
    check_number_of_classes(cfg, splits)
    # A head uses its own topk only where it logs an accuracy.
    cfg.model.head.topk = (1, 5)
    check_number_of_classes(cfg, splits)
    cfg.model.head.cal_acc = True
    expect_error(cfg, 'model.head.topk is (1, 5)', 'at most 3')


def test_mixing_labels_needs_their_number():
    cfg = load(IMAGENET)
    del cfg.data_preprocessor['num_classes']
    expect_error(cfg, 'data_preprocessor.num_classes is None', '1000 classes')
    cfg.model.train_cfg = None
    check_number_of_classes(cfg, ['train'])
    cfg.model.data_preprocessor = dict(to_onehot=True, num_classes=5)
    expect_error(cfg, 'model.data_preprocessor.num_classes is 5')


def test_weights_of_classes_are_counted():
    cfg = load(SEGMENTOR)
    cfg.model.decode_head.loss_decode.class_weight = [1.0] * 10
    expect_error(cfg, 'model.decode_head.loss_decode.class_weight has 10 values', '11 classes')
    cfg = load(MASK2FORMER)
    cfg.model.panoptic_head.loss_cls.class_weight = [1.0] * 81  # with "no object"
    check_number_of_classes(cfg, ['train'])
    cfg.model.panoptic_head.loss_cls.class_weight = [1.0] * 134
    expect_error(cfg, 'class_weight has 134 values', '80 classes')


def test_numbers_of_metrics_are_compared():
    cfg = load(CLASSIFIER)
    cfg.val_evaluator = [dict(type='ConfusionMatrix', num_classes=4)]
    expect_error(cfg, 'val_evaluator[0].num_classes is 4', '10 classes', splits=('val',))


@pytest.mark.parametrize(
    ('setting', 'total'),
    [
        ('panoptic_head.num_things_classes', 3),
        ('panoptic_head.num_stuff_classes', 83),
        ('panoptic_fusion_head.num_things_classes', 3),
    ],
)
def test_things_and_stuff_together_are_compared(setting, total):
    cfg = load(MASK2FORMER)
    cfg.merge_from_dict({f'model.{setting}': 3})
    head = setting.partition('.')[0]
    expect_error(cfg, f'model.{head}.num_', f'together: {total}), but the train data has 80')


def test_things_and_stuff_of_own_classes_together_are_all():
    cfg = load(MASK2FORMER_PANOPTIC)
    cfg.train_dataloader.dataset.metainfo = dict(classes=('cat', 'dog', 'sky'))
    numbers = dict(num_things_classes=2, num_stuff_classes=1)
    cfg.model.panoptic_head.update(numbers)
    cfg.model.panoptic_fusion_head.update(numbers)
    cfg.model.panoptic_head.loss_cls.class_weight = [1.0] * 4
    check_number_of_classes(cfg, ['train'])
    cfg.model.panoptic_head.num_stuff_classes = 2
    expect_error(cfg, 'the train data has 3 classes')


# Their own classes are whether there is an object, edges, stuff of other files, or text.
@pytest.mark.parametrize(
    'name',
    [
        STDC,
        'mmdet::htc/htc_r50_fpn_1x_coco.py',
        'mmdet::grounding_dino/grounding_dino_swin-t_pretrain_obj365_goldg_cap4m.py',
        'mmdet::bytetrack/bytetrack_yolox_x_8xb4-amp-80e_crowdhuman-mot17halftrain_test-mot17halfval.py',
        'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',
        'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py',
        'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py',
        'mmpretrain::resnet/resnet50_8xb16_cifar10.py',
    ],
)
def test_stock_configs_pass(name):
    check_number_of_classes(load(name), ['train', 'val', 'test'])


def test_class_agnostic_masks_need_no_number():
    cfg = load(MASK_RCNN)
    cfg.model.roi_head.mask_head.update(num_classes=1)
    expect_error(cfg, 'mask_head.num_classes is 1')
    cfg.model.roi_head.mask_head.class_agnostic = True
    check_number_of_classes(cfg, ['train'])
