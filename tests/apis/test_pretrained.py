"""Saved and uploaded models, against a server that answers as the Hugging Face Hub does."""

import json
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, hf_hub_download
from making_exported import write_exported
from making_models import build_model
from mmengine.config import Config
from safetensors.torch import save_file
from serving_hub import TOKEN

from mmevit.apis import from_pretrained, push_to_hub, save_pretrained
from mmevit.models import EfficientViT
from mmevit.runtime import Predictor
from mmevit.utils.errors import CheckpointError, ConfigError

CLASSES = [str(digit) for digit in range(10)]


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """A trained classifier, loaded as users of mmpretrain do."""
    cfg = Config.fromfile('configs/evit_m0_digits.py')
    path = tmp_path_factory.mktemp('classifier') / 'epoch_1.pth'
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(meta=meta, state_dict=build_model(cfg.copy()).state_dict()), path)
    return mmpretrain.get_model('configs/evit_m0_digits.py', pretrained=str(path)).eval()


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv('HF_TOKEN', TOKEN)


def test_saved_classifier_predicts_the_same_with_mmpretrains_inferencer(classifier, tmp_path):
    save_pretrained(classifier, tmp_path / 'digits')
    loaded = from_pretrained(tmp_path / 'digits')
    assert not loaded.training
    image = np.random.default_rng(0).integers(256, size=(112, 112, 3), dtype=np.uint8)
    ours, theirs = (
        mmpretrain.ImageClassificationInferencer(model)(image)[0] for model in (loaded, classifier)
    )
    assert np.array_equal(ours['pred_scores'], theirs['pred_scores'])
    assert ours['pred_class'] == theirs['pred_class'] and ours['pred_class'] in CLASSES


def test_uploaded_classifier_comes_back_with_its_card(classifier, hub, token):
    url = push_to_hub(classifier, 'me/digits', metrics={'accuracy': 97.5}, license='mit')
    assert url.startswith(f'{hub.url}/me/digits/commit/')
    loaded = from_pretrained('me/digits')
    weights = classifier.state_dict()
    assert all(value.equal(weights[name]) for name, value in loaded.state_dict().items())
    assert list(loaded.dataset_meta['classes']) == CLASSES

    card = ModelCard.load('me/digits')
    assert card.data.library_name == 'mmevit' and card.data.license == 'mit'
    assert card.data.pipeline_tag == 'image-classification'
    assert card.data.tags == ['efficientvit', 'mmpretrain'] and card.data.metrics == ['accuracy']
    assert '| accuracy | 97.5 |' in card.text and "from_pretrained('me/digits')" in card.text
    assert 'EfficientViT-M0' in card.text and '10 classes: 0, 1, 2, 3 and 6 more' in card.text
    saved = json.loads(Path(hf_hub_download('me/digits', 'config.json')).read_text())
    assert saved['model']['backbone']['arch'] == 'm0' and 'train_dataloader' in saved


def test_weights_of_an_uploaded_model_load_by_hf(classifier, hub, token):
    push_to_hub(classifier, 'me/digits')
    for source in ('me/digits', 'hf://me/digits'):
        backbone = EfficientViT.from_pretrained(source)
        weights = classifier.backbone.state_dict()
        assert all(value.equal(weights[name]) for name, value in backbone.state_dict().items())


def test_commands_accept_the_uploaded_config_and_weights(classifier, hub, token, digits, run_tool):
    push_to_hub(classifier, 'me/digits')
    config, out = hf_hub_download('me/digits', 'config.json'), hub.folder / 'out'
    image = digits / 'val/000001.png'
    for repo, sentence in (
        ('hf://me/digits', 'Predictions of 1 images are in'),
        ('hf://me/no', 'error: The repository of hf://me/no does not exist or is private.'),
    ):
        result = run_tool('tools/infer.py', config, repo, image, '--out-dir', out)
        assert sentence in result.stdout.splitlines()[-1]
    assert json.loads((out / 'preds/000001.json').read_text())['pred_class'] in CLASSES


def test_detectors_with_shared_weights_are_saved(tmp_path):
    from mmdet.apis import DetInferencer, inference_detector

    cfg = Config.fromfile('configs/rtmdet_evit_m0_digits.py')
    cfg.model.test_cfg.score_thr = 0.0  # random weights are not sure of anything
    detector = build_model(cfg).eval()
    detector.cfg, detector.dataset_meta = cfg, dict(classes=CLASSES)  # as init_detector() does
    save_pretrained(detector, tmp_path)
    loaded = from_pretrained(tmp_path)
    weights = detector.state_dict()
    assert all(value.equal(weights[name]) for name, value in loaded.state_dict().items())
    image = np.random.default_rng(0).integers(256, size=(96, 96, 3), dtype=np.uint8)
    boxes = [inference_detector(x, image).pred_instances.bboxes for x in (loaded, detector)]
    assert len(boxes[0]) and boxes[0].equal(boxes[1])
    text = (tmp_path / 'README.md').read_text()
    front = yaml.safe_load(text.split('---')[1])
    assert front['pipeline_tag'] == 'object-detection' and front['license'] == 'apache-2.0'
    assert 'metric' not in text
    weights = f'evit://{tmp_path}/model.safetensors'
    inferencer = DetInferencer(str(tmp_path / 'config.json'), weights, show_progress=False)
    assert inferencer.model.dataset_meta['classes'] == CLASSES


def test_uploaded_detector_file_predicts_the_same(hub, token, tmp_path):
    outputs = dict(
        boxes=np.array([[4, 4, 20, 30]], np.float32),
        scores=np.array([0.9], np.float32),
        labels=np.array([1]),
    )
    write_exported(tmp_path / 'model.onnx', outputs)
    push_to_hub(tmp_path / 'model.onnx', 'me/cats', metrics={'mAP': 0.5})
    image = np.zeros((64, 64, 3), np.uint8)
    predict = Predictor(hf_hub_download('me/cats', 'model.onnx'))
    wanted = Predictor(tmp_path / 'model.onnx')(image)
    assert np.array_equal(predict(image).boxes, wanted.boxes)
    card = ModelCard.load('me/cats')
    assert card.data.pipeline_tag == 'object-detection'
    assert card.data.tags == ['efficientvit', 'onnx'] and 'mAP | 0.5' in card.text
    assert "Predictor(hf_hub_download('me/cats', 'model.onnx'))" in card.text


def test_openvino_weights_are_copied_too(tmp_path):
    openvino = pytest.importorskip('openvino')
    outputs = dict(logits=np.zeros(3, np.float32))
    write_exported(tmp_path / 'model.onnx', outputs, sizes=False)
    model = openvino.convert_model(tmp_path / 'model.onnx')
    metadata = Predictor(tmp_path / 'model.onnx').metadata
    model.set_rt_info(json.dumps(metadata), 'mmevit')
    openvino.save_model(model, tmp_path / 'model.xml')
    save_pretrained(tmp_path / 'model.xml', tmp_path / 'saved')
    names = {path.name for path in (tmp_path / 'saved').iterdir()}
    assert names == {'README.md', 'model.bin', 'model.xml'}
    assert Predictor(tmp_path / 'saved/model.xml').metadata == metadata


def test_only_the_weights_of_the_file_are_copied_and_a_file_may_be_in_its_folder(tmp_path):
    path = write_exported(tmp_path / 'model.onnx', dict(logits=np.zeros((1, 10), np.float32)))
    path.with_suffix('.bin').write_bytes(b'weights of another file')
    save_pretrained(path, tmp_path)
    save_pretrained(path, tmp_path / 'saved')
    assert sorted(file.name for file in (tmp_path / 'saved').iterdir()) == [
        'README.md',
        'model.onnx',
    ]
    assert (tmp_path / 'README.md').is_file()


def test_models_without_a_known_config_need_it(tmp_path):
    with pytest.raises(ConfigError, match='config of the EfficientViT is not known. Pass cfg.'):
        save_pretrained(EfficientViT('m0'), tmp_path)


def test_folders_without_a_config_or_of_other_libraries_are_refused(tmp_path):
    with pytest.raises(ConfigError, match='config.json is missing'):
        from_pretrained(tmp_path)
    (tmp_path / 'config.json').write_text('{"architecture": "efficientvit_m0"}')
    with pytest.raises(ConfigError, match='Incomplete config .*config.json: missing model'):
        from_pretrained(tmp_path)


def test_uploads_without_access_are_one_line_errors(classifier, hub):
    with pytest.raises(CheckpointError) as caught:
        push_to_hub(classifier, 'me/digits')
    assert str(caught.value).startswith('hf://me/digits') and '\n' not in str(caught.value)


@pytest.mark.parametrize('form', ['a file', 'a folder', 'a path', 'an address'])
def test_backbones_are_built_for_any_weights(form, tmp_path):
    windows = (5, 7, 4)
    weights = EfficientViT('m1', window_sizes=windows).state_dict()
    save_file(weights, tmp_path / 'model.safetensors')
    path = tmp_path / 'model.safetensors'
    sources = {
        'a file': str(path),
        'a folder': str(tmp_path),
        'a path': path,
        'an address': f'evit://{path}',
    }
    backbone = EfficientViT.from_pretrained(sources[form], out_indices=(1, 2), norm_eval=True)
    assert backbone.out_indices == (1, 2) and backbone.norm_eval and not backbone.training
    assert all(value.equal(weights[name]) for name, value in backbone.state_dict().items())


def test_backbones_of_other_archs_need_the_arch(tmp_path):
    arch = dict(embed_dims=(16, 24), depths=(1, 1), num_heads=(2, 3), kernel_sizes=(5, 3, 3))
    settings = dict(arch=arch, window_sizes=(7, 7), out_indices=(0, 1))
    save_file(EfficientViT(**settings).state_dict(), tmp_path / 'model.safetensors')
    with pytest.raises(CheckpointError, match='fit none of the archs. Pass arch as the dict'):
        EfficientViT.from_pretrained(tmp_path)
    backbone = EfficientViT.from_pretrained(tmp_path, arch=arch, out_indices=(0, 1))
    assert backbone.embed_dims == (16, 24)
