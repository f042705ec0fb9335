import re

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='it would train on the GPU')

CLASSIFICATION, DETECTION = 'evit_m0_digits', 'retinanet_evit_m4_digits'


@pytest.fixture
def train(run_tool, digits, tmp_path):
    """Train for three steps: their losses, the weights, and the log."""

    def run(config, *arguments):
        folder = digits / 'classification/train' if config == CLASSIFICATION else digits
        small = dict(batch_size=2, num_workers=0, persistent_workers=False)
        work_dir = tmp_path / f'run{len(list(tmp_path.iterdir()))}'
        result = run_tool(
            *('tools/train.py', f'configs/{config}.py', '--work-dir', work_dir, '--no-validate'),
            *('--cfg-options', 'randomness.seed=0', 'param_scheduler=None'),
            *('custom_hooks=None', 'train_cfg.max_epochs=1', 'default_hooks.logger.interval=1'),
            *(f'train_dataloader.{name}={value}' for name, value in small.items()),
            *(f'train_dataloader.dataset.data_root={folder}', 'train_dataloader.dataset.indices=6'),
            *arguments,
            env=dict(OMP_NUM_THREADS='1'),
        )
        assert result.returncode == 0, result.stdout[-3000:]
        losses = [float(loss) for loss in re.findall(r'  loss: ([0-9.]+)', result.stdout)]
        state = torch.load(work_dir / 'epoch_1.pth', weights_only=False)['state_dict']
        assert len(losses) == 3
        return torch.tensor(losses), state, result.stdout

    return run


@pytest.mark.parametrize(
    'config', [CLASSIFICATION, pytest.param(DETECTION, marks=pytest.mark.slow)]
)
def test_all_that_makes_training_faster_together_trains_as_without_on_a_cpu(train, config):
    wanted, weights, _ = train(config)
    hooks = ['compile.type=CompileHook', 'compile.backend=eager', 'layout.type=ChannelsLastHook']
    losses, same, output = train(config, *(f'default_hooks.{hook}' for hook in hooks), '--amp')
    prefix = 'AdaptiveClip' if config == CLASSIFICATION else ''
    assert f"type='{prefix}Bfloat16OptimWrapper'" in output
    assert not torch.equal(losses, wanted)
    torch.testing.assert_close(losses, wanted, rtol=0.02, atol=0)
    # Compiled modules are often saved under other names.
    assert list(same) == list(weights)
    assert [value.dtype for value in same.values()] == [value.dtype for value in weights.values()]
