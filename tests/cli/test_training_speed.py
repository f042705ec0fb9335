import re

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='it would train on the GPU')


@pytest.fixture
def train(run_tool, tmp_path):
    """Train for two steps: their losses, the weights, and the log."""

    def run(config, batch_size, *flags):
        options = ['randomness.seed=0', 'param_scheduler=None', 'custom_hooks=None']
        options += ['train_cfg.max_epochs=1', 'default_hooks.logger.interval=1']
        options += [f'train_dataloader.batch_size={batch_size}']
        work_dir = tmp_path / f'run{len(list(tmp_path.iterdir()))}'
        result = run_tool(
            *('tools/train.py', config, '--work-dir', work_dir, '--no-validate'),
            *('--cfg-options', *options, *flags),
            env=dict(OMP_NUM_THREADS='1'),
        )
        assert result.returncode == 0, result.stdout[-3000:]
        losses = [float(loss) for loss in re.findall(r'  loss: ([0-9.]+)', result.stdout)]
        state = torch.load(work_dir / 'epoch_1.pth', weights_only=False)['state_dict']
        assert len(losses) == 2
        return torch.tensor(losses), state, result.stdout

    return run


@pytest.mark.parametrize('kind', ['classifier', pytest.param('detector', marks=pytest.mark.slow)])
def test_all_that_makes_training_faster_together_trains_as_without_on_a_cpu(
    kind, train, classifier, detector_config
):
    run = dict(classifier=(classifier[0], 5), detector=(detector_config, 8))[kind]
    wanted, weights, _ = train(*run)
    hooks = ['compile.type=CompileHook', 'compile.backend=eager', 'layout.type=ChannelsLastHook']
    losses, same, output = train(*run, *(f'default_hooks.{hook}' for hook in hooks), '--amp')
    prefix = 'AdaptiveClip' if kind == 'classifier' else ''
    assert f"type='{prefix}Bfloat16OptimWrapper'" in output
    assert not torch.equal(losses, wanted)
    torch.testing.assert_close(losses, wanted, rtol=0.02, atol=0)
    # Compiled modules are often saved under other names.
    assert list(same) == list(weights)
    assert [value.dtype for value in same.values()] == [value.dtype for value in weights.values()]
