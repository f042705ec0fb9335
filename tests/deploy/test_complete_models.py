"""Complete dense models against the library's own predictions, in every target and type.

Run as a program, it rewrites the support matrix in docs/deployment.md.
"""

import argparse
import json
import logging
import re
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from dense_models import SIZES, Spread, check, fit_norms, make_model, predict, spread_outputs
from marking import slow_but
from plug_in_table import NECKS
from running_tools import call_in_process

from mmevit.deploy import TARGETS, export, load_exported, to_onnx
from mmevit.deploy.networks import make_exportable
from mmevit.deploy.programs import as_tuple
from mmevit.utils.errors import ConfigError

DOCS = Path(__file__).parents[2] / 'docs/deployment.md'
MARKERS = '<!-- support matrix -->\n', '<!-- end of the support matrix -->\n'


def make_noise(count, height, width):
    return torch.rand(count, 3, height, width)


def make_smooth(count, height, width):
    """On noise, rounding errors of refined boxes grow with every stage."""
    small = torch.rand(count, 3, height // 8, width // 8)
    return F.interpolate(small, (height, width), mode='bicubic') * 3


def make_squares(count, height, width):
    """The features of squares differ more than those of pixels of noise."""
    images = F.interpolate(torch.randn(count, 3, height // 16, width // 16), (height, width))
    return images + 0.2 * torch.randn(count, 3, height, width)


@dataclass
class Case:
    """What a model needs to find something."""

    spreads: tuple = ()  # see spread_outputs()
    make_images: object = make_noise
    # Heights and widths with padding, each with the sizes of its images.
    batches: tuple = (((160, 224), SIZES), ((96, 128), [(96, 120)]))
    options: dict = field(default_factory=dict)  # settings of the config
    # Whether to give batch norms the statistics of the images. Necks of many layers with random
    # weights otherwise return values that are too small for half precision.
    fits_norms: bool = False
    seed: int = 0


def one_stage(classes=1.0, sides=None, **others):
    """A detector whose classifiers, and regressors if needed, are scaled."""
    name = r'\w*conv_cls|\w*conv_obj|[a-z]+_cls|cls_prob_module\.2'
    spreads = [Spread(name, classes, centered=False)]
    if sides:
        name = 'conv_reg|rtm_reg|multi_level_conv_reg'
        spreads.append(Spread(name, sides, mean=1, centered=False))
    return Case(tuple(spreads), **others)


def two_stage(classes=2.0, sides=1.0, masks=False, proposals=True, options=None):
    """A detector whose regions of interest differ."""
    spreads = [Spread('fc_cls', classes), Spread('fc_reg', sides)]
    if proposals:
        spreads += [Spread('rpn_cls', 2), Spread('rpn_reg', 0.3)]
    if masks:  # larger ones, which are more robust
        spreads.append(Spread('conv_logits', 3, mean=3))
    return Case(tuple(spreads), make_smooth, options=options or {}, seed=1)


def one_stage_masks(options=None, fits_norms=False, **outputs):
    """An instance segmentor; the mean and standard deviation of outputs, over pixels."""
    spreads = [Spread(name, std, mean, by_channel=True) for name, (mean, std) in outputs.items()]
    return Case(tuple(spreads), make_squares, options=options or {}, fits_norms=fits_norms)


def transformer(**options):
    """A model of queries, also with maps whose size is not that of the image by the stride."""
    third = (155, 211), [(155, 211), (101, 203)]
    return Case(batches=(*Case.batches, third), options=options)


RTMDET_INS = one_stage_masks(
    rtm_cls=(-4, 1.5),
    rtm_reg=(4, 1),
    rtm_kernel=(0, 0.5),
    projection=(0, 1),
    fits_norms=True,
)
CASES = {
    'mmdet::atss/atss_r50_fpn_1x_coco.py': one_stage(),
    'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py': one_stage_masks(
        conv_cls=(-4, 1.5), conv_reg=(4, 1), controller=(0, 0.5), conv_pred=(0, 1)
    ),
    # The library cannot convolve maps of stride 128 that are smaller than the kernel.
    'mmdet::ddod/ddod_r50_fpn_1x_coco.py': one_stage(
        batches=(((320, 384), ((310, 384), (320, 330))), ((288, 352), [(288, 343)]))
    ),
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': one_stage(sides=0.5),
    'mmdet::foveabox/fovea_r50_fpn_4xb4-1x_coco.py': one_stage(),
    'mmdet::gfl/gfl_r50_fpn_1x_coco.py': one_stage(),
    'mmdet::paa/paa_r50_fpn_1x_coco.py': one_stage(),
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py': Case(),
    'mmdet::tood/tood_r50_fpn_1x_coco.py': one_stage(),
    'mmdet::vfnet/vfnet_r50_fpn_1x_coco.py': one_stage(),
    'mmdet::yolact/yolact_r50_1xb8-55e_coco.py': one_stage_masks(
        conv_cls=(0, 2.5), conv_reg=(0, 1), conv_coeff=(0, 1)
    ),
    # Three stages refine boxes and average scores.
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py': two_stage(3, 0.2, masks=True),
    'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py': two_stage(3, 0.2),
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': two_stage(),
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': two_stage(masks=True),
    # The config keeps boxes with a score of 0.6.
    'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py': two_stage(6, masks=True),
    'mmdet::solov2/solov2_r50_fpn_1x_coco.py': one_stage_masks(
        dict(model__mask_head__feat_channels=64), conv_cls=(-7, 1.5), conv_kernel=(0, 0.1)
    ),
    # Boxes are refined six times.
    'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py': two_stage(1, 0.03, proposals=False),
    'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py': Case(),
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': transformer(),
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py': transformer(),
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py': one_stage(
        sides=0.5, options=dict(model__test_cfg__nms_pre=30000), fits_norms=True
    ),
    'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py': RTMDET_INS,
    'mmdet::yolox/yolox_s_8xb8-300e_coco.py': one_stage(sides=0.5, fits_norms=True),
    # The convolutions after the neck were made for this size; the head has a softmax.
    'mmdet::ssd/ssd300_coco.py': Case(
        (Spread(r'cls_convs\.\d\.0', 3, centered=False),),
        batches=(((300, 300), ((300, 280), (250, 300))), ((320, 352), [(320, 343)])),
    ),
    # It keeps masks although others cover most of them.
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py': transformer(
        model__test_cfg__iou_thr=0.1
    ),
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': transformer(),
    'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py': Case(),
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py': Case(),
    'retinanet_evit_m0': Case(),
    'retinanet_evit_m4_digits': Case(),
    'mask-rcnn_evit_m0': two_stage(masks=True, options=dict(model__test_cfg__rpn__max_per_img=100)),
    'mask-rcnn_evit_m4_digits': two_stage(masks=True),
    'rtmdet_evit_m0': one_stage(sides=0.5, fits_norms=True, make_images=make_squares),
    'rtmdet_evit_m0_digits': one_stage(sides=0.5, fits_norms=True, make_images=make_squares),
    'rtmdet-ins_evit_m4': RTMDET_INS,
    'semantic-fpn_evit_m4': Case(),
    'semantic-fpn_evit_m4_digits': Case(),
}
SLOW = (  # more than 3 s
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'mmdet::ddod/ddod_r50_fpn_1x_coco.py',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
    'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
    'mask-rcnn_evit_m0',
)


def make_case(name, folder):
    """Build a model, and return it with batches of images, their sizes and its predictions."""
    case = CASES[name]
    model = make_model(name, folder, **case.options)
    torch.manual_seed(case.seed)
    batches = [
        (case.make_images(len(sizes), *shape), torch.tensor(sizes).float())
        for shape, sizes in case.batches
    ]
    if case.fits_norms:
        fit_norms(model, batches[0][0])
    if case.spreads:
        spread_outputs(model, batches[0][0], case.spreads)
    return model, [
        (images, sizes, predict(model, images, [tuple(map(int, size)) for size in sizes]))
        for images, sizes in batches
    ]


def check_all(run, network, batches):
    """Compare what a network or a file returns with the library's own predictions."""
    for images, sizes, expected in batches:
        inputs = (images, sizes)[: len(network.input_names)]
        with torch.no_grad():
            outputs = run(*inputs)
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        check(outputs, expected, network.metadata, tuple(images.shape[2:]))


def test_every_dense_config_is_here():
    names = [path.stem for path in Path('configs').glob('*_evit_*.py')]
    # Those of a task differ in the arch only, or in how they are trained.
    names = [name for name in names if not name.endswith(('_bccd', '_cosine', '_distill'))]
    kinds = {re.sub(r'_m\d', '', name): name for name in sorted(names, reverse=True)}
    assert set(CASES) == {*NECKS, *kinds.values()}


@pytest.mark.parametrize(
    'name', slow_but(set(CASES) - set(SLOW), CASES), ids=lambda name: Path(name).stem
)
def test_network_matches_the_librarys_predictions(name, tmp_path):
    model, batches = make_case(name, tmp_path)
    network = make_exportable(model)
    check_all(network, network, batches)


# Columns of the table, and the types in them.
COLUMNS = dict(
    onnx=('float32', 'float16', 'int8'),
    openvino=('float32', 'float16', 'bfloat16', 'int8'),
    torchscript=('float32', 'bfloat16'),
)
CELLS = [(target, dtype) for target, dtypes in COLUMNS.items() for dtype in dtypes]
# Smallest share of detections or pixels that a file of a type and the network have in common.
# Features of random weights hardly differ, so that rounding changes much.
LIMITS = dict(float16=0.8, bfloat16=0.7, int8=0.2)


@contextmanager
def converting_once():
    """Let ONNX and OpenVINO files of a network share the graph of each type."""
    convert, graphs = to_onnx.convert, {}

    def convert_once(job, names):
        dtype = job.dtype.replace('int8', 'float32')  # of which int8 files are made
        if dtype not in graphs:
            graphs[dtype] = convert(job, names)
        return graphs[dtype]

    with patch.object(to_onnx, 'convert', convert_once):
        yield


def check_file(network, batches, target, dtype, folder):
    """Export a network, and compare the file."""
    path = folder / f'{dtype}{TARGETS[target]}'
    images, sizes, _ = batches[0]
    example, calibration = (
        (images[:count], sizes[:count])[: len(network.input_names)] for count in (1, 2)
    )
    export(network, example, path, target, ('batch', 'size'), dtype, batches=[calibration])
    session = load_exported(path)
    if target == 'torchscript':  # runs without mmevit
        assert 'mmevit::' not in str(session.module.inlined_graph)
    if dtype == 'float32':
        check_all(session, network, batches)
        return 1.0
    shares = []
    for images, sizes, _ in batches:
        inputs = (images, sizes)[: len(network.input_names)]
        with torch.no_grad():
            outputs, expected = session(*inputs), as_tuple(network(*inputs))
        assert all(output.isfinite().all() for output in outputs)
        shares.append(measure_share(outputs, expected))
    share = sum(shares) / len(shares)
    assert share >= LIMITS[dtype], f'only {share:.0%} as in float32'
    return share


def measure_share(outputs, expected):
    """Return the share of pixels or detections that are the same, apart from rounding."""
    if len(outputs) == 1:
        return float((outputs[0] == expected[0]).float().mean())
    (boxes, scores, labels), (boxes2, scores2, labels2) = outputs[:3], expected[:3]
    same = (boxes[:, :, None] - boxes2[:, None]).abs().amax(dim=3) < 5  # pixels
    same &= (scores[:, :, None] - scores2[:, None]).abs() < 0.1
    same &= (labels[:, :, None] == labels2[:, None]) & (labels2 >= 0)[:, None]
    found, wanted = same.any(dim=2).sum(), same.any(dim=1).sum()
    return float(min(found / (labels >= 0).sum(), wanted / (labels2 >= 0).sum()))


def measure(name, folder, known=()):
    """Yield targets with types that are not known, and why their files do not pass, '' if they do.

    Other errors than a refusal in one sentence and a difference are raised.
    """
    model, batches = make_case(name, folder)
    network = make_exportable(model)
    with converting_once():
        for target, dtype in CELLS:
            cell, error = f'{target} {dtype}', ''
            if cell in known:
                continue
            try:
                share = check_file(network, batches, target, dtype, folder)
            except (AssertionError, ConfigError) as problem:
                error = str(problem) or 'The outputs differ.'
            print(f'{name}, {cell}: {error or format(share, ".1%")}', flush=True)
            yield cell, error


def measure_all(name, folder):
    return dict(measure(name, folder))


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES, ids=lambda name: Path(name).stem)
def test_files_match_the_support_matrix(name, tmp_path):
    # PyTorch and the runtimes keep so much memory that a process cannot measure all models.
    errors = call_in_process(measure_all, name, tmp_path)
    assert read_rows()[Path(name).stem] == make_row(name, errors), errors


def test_the_support_matrix_has_every_model():
    assert set(read_rows()) == {Path(name).stem for name in CASES}


def make_row(name, errors):
    """Return the row of the table in the docs."""
    types = {target: [] for target in COLUMNS}
    for target, dtype in CELLS:
        if (error := errors.get(f'{target} {dtype}', 'not measured')) == 'not measured':
            types[target].append(f'{dtype}?')
        elif not error:
            types[target].append(dtype)
    cells = [', '.join(found) or 'none' for found in types.values()]
    return f'| `{Path(name).stem}` | {" | ".join(cells)} |'


def read_rows():
    """Return the rows of the table in the docs by the name of the config."""
    table = DOCS.read_text().partition(MARKERS[0])[2].partition(MARKERS[1])[0]
    return {row.split('`')[1]: row for row in table.splitlines() if '`' in row}


def write_rows(results):
    """Rewrite the table in the docs, with the results of ``measure()`` by config."""
    before, _, rest = DOCS.read_text().partition(MARKERS[0])
    after = rest.partition(MARKERS[1])[2]
    titles = f'| config | {" | ".join(COLUMNS)} |\n|---|{"---|" * len(COLUMNS)}\n'
    rows = ''.join(f'{make_row(name, results.get(name, {}))}\n' for name in CASES)
    DOCS.write_text(f'{before}{MARKERS[0]}\n{titles}{rows}\n{MARKERS[1]}{after}')


def main():
    """Measure all models, about 2 minutes each, and rewrite the table in the docs."""
    warnings.simplefilter('ignore')
    logging.disable(logging.INFO)
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument('--results', help='folder that a stopped run resumes from', type=Path)
    folder = parser.parse_args().results or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in CASES:
        file = folder / f'{Path(name).stem}.json'
        errors = results[name] = json.loads(file.read_text()) if file.exists() else {}
        if len(errors) < len(CELLS):
            with tempfile.TemporaryDirectory() as files:
                for cell, error in measure(name, Path(files), errors):
                    errors[cell] = error
                    file.write_text(json.dumps(errors))
        write_rows(results)


if __name__ == '__main__':
    main()
