"""Check the checkpoint that a run loads."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner

from mmevit.checkpoint.matching import (
    check_fit,
    check_resumable,
    drop_mismatched_weights,
    require_fit,
)
from mmevit.checks.classes import check_checkpoint_classes
from mmevit.utils.models import unwrap


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Require checkpoints to fit the complete model; mmengine loads those that fit in part."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the checkpoint with the model, and its classes with those of the data."""
        check_fit(runner.model, checkpoint)
        check_checkpoint_classes(checkpoint, runner.test_dataloader.dataset)


@HOOKS.register_module()
class TrainingWeightsHook(Hook):
    """Check the weights that training starts from.

    To resume, the checkpoint must fit the complete model and have the classes of the data.
    Otherwise the weights of the backbone must fit; weights of a head for other classes are not
    loaded, with a warning.
    """

    # Before hooks that use the checkpoint, such as EMAHook.
    priority = 'HIGHEST'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the checkpoint with the model and, to resume, with the data."""
        # The config in a work directory has this hook, and may be used for evaluation too. Private,
        # since `runner.test_loop` builds the loop.
        if isinstance(runner._test_loop, BaseLoop):
            return
        # mmengine would execute this config, only to read the number of GPUs.
        (checkpoint.get('meta') or {}).pop('config', None)
        if runner._resume:
            check_resumable(checkpoint)
            check_fit(runner.model, checkpoint)
            check_checkpoint_classes(checkpoint, runner.train_dataloader.dataset)
            return
        drop_mismatched_weights(unwrap(runner.model), checkpoint)
        marked = require_fit(checkpoint)
        if 'state_dict' not in checkpoint:  # EMAHook needs it.
            checkpoint.clear()
        checkpoint['state_dict'] = marked.get('state_dict', marked)
