import pytest
import torch
from mmpretrain.structures import DataSample

from mmevit.models import EfficientViTClsHead


@pytest.fixture
def features():
    return (torch.randn(6, 32),)


@pytest.mark.parametrize('training', [True, False])
def test_logits_equal_batch_norm_and_linear_by_formula(features, training):
    head = EfficientViTClsHead(num_classes=5, in_channels=32).train(training)
    batch_norm, linear = head.head.bn, head.head.linear
    torch.nn.init.normal_(batch_norm.weight)
    torch.nn.init.normal_(batch_norm.running_mean)
    mean, variance = batch_norm.running_mean.clone(), batch_norm.running_var.clone()
    if training:
        mean, variance = features[0].mean(0), features[0].var(0, unbiased=False)
    normalised = (features[0] - mean) / (variance + 1e-5).sqrt() * batch_norm.weight
    wanted = (normalised + batch_norm.bias) @ linear.weight.T + linear.bias
    torch.testing.assert_close(head(features), wanted)


@pytest.mark.parametrize('training', [True, False])
def test_two_heads_are_averaged_and_both_train(features, training):
    head = EfficientViTClsHead(num_classes=5, in_channels=32, distillation=True).train(training)
    pooled = features[0]
    torch.testing.assert_close(head(features), (head.head(pooled) + head.head_dist(pooled)) / 2)
    labels = [DataSample().set_gt_label(label) for label in (0, 1, 2, 3, 4, 0)]
    head.loss(features, labels)['loss'].backward()
    for part in (head.head, head.head_dist):
        assert part.linear.weight.grad.abs().max() > 0


@pytest.mark.parametrize('distillation', [False, True])
def test_linear_layers_start_from_a_normal_distribution_of_0_02(distillation):
    head = EfficientViTClsHead(192, 1000, distillation)
    head.init_weights()
    linears = [module for module in head.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 1 + distillation
    for linear in linears:
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert linear.weight.mean().item() == pytest.approx(0, abs=2e-4)
        assert not linear.bias.any()


@pytest.mark.parametrize('deploy', [False, True])
def test_load_state_dict_is_that_of_any_pytorch_module(deploy):
    weights = EfficientViTClsHead(32, 1000, deploy=deploy).state_dict()
    head = EfficientViTClsHead(32, 5, deploy=deploy)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r'size mismatch for head\..*weight'):
            head.load_state_dict(weights, strict=strict)
    first = next(iter(weights))
    fitting = {name: value for name, value in head.state_dict().items() if name != first}
    assert head.load_state_dict(fitting, strict=False).missing_keys == [first]
