"""Stop training when the loss is infinite or NaN."""

import math
from typing import Any, NoReturn

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmevit.utils.errors import UserError, shorten

# PyTorch's initial loss scale, 2**16, is below 1 after this number of skipped steps.
MAX_OVERFLOWS = 17
# The smallest normal number of float16: gradients of 2**30 would not overflow.
MIN_LOSS_SCALE = 2**-14


@HOOKS.register_module()
class InvalidLossHook(Hook):
    """Stop training at an infinite or NaN loss, before the weights are saved.

    mmengine continues training with NaN weights. mmdet's ``CheckInvalidLossHook`` checks every 50th
    loss and does not name the images. In float16 with dynamic loss scaling, up to
    :data:`MAX_OVERFLOWS` invalid losses in a row are tolerated, since the scaler skips steps with
    invalid gradients and lowers the scale. Training commands add this hook; elsewhere::

        custom_hooks = [dict(type='InvalidLossHook')]
    """

    num_overflows = 0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Check the losses and the loss scale.

        Raises:
            UserError: If a loss is not finite, or gradients overflow in every step.
        """
        scale = dynamic_loss_scale(runner.optim_wrapper)
        if scale is not None and scale < MIN_LOSS_SCALE:
            raise UserError(
                f'The loss scale has fallen to {scale:g} in iteration {runner.iter + 1}: gradients '
                'overflow in every step, and no weights are updated. Train in bfloat16 '
                '(optim_wrapper.dtype=bfloat16) or float32, or lower the learning rate.'
            )
        losses = {
            name: torch.as_tensor(value).detach().float().mean().item()
            for name, value in (outputs or {}).items()
            if 'loss' in name
        }
        if all(map(math.isfinite, losses.values())):
            self.num_overflows = 0
            return
        values = ', '.join(f'{name} {value:g}' for name, value in losses.items())
        self.num_overflows += 1
        if scale is not None and self.num_overflows <= MAX_OVERFLOWS:
            runner.logger.warning(
                f'The loss is not finite in iteration {runner.iter + 1} ({values}). Dynamic loss '
                f'scaling skips the step if the gradients are not finite either (scale {scale:g}).'
            )
            return
        raise_invalid_loss(runner, values, list_images(data_batch))


def raise_invalid_loss(runner: Runner, values: str, images: list[str]) -> NoReturn:
    """Raise :class:`UserError` with the iteration, its images and the last checkpoint."""
    runner.logger.error(f'Images of iteration {runner.iter + 1}: {", ".join(images)}')
    checkpoint = runner.message_hub.runtime_info.get('last_ckpt')
    hint = (
        f'Then resume from {checkpoint} with --resume.'
        if checkpoint
        else 'No checkpoint was written.'
    )
    raise UserError(
        f'The loss is not finite in iteration {runner.iter + 1} of epoch {runner.epoch + 1} '
        f'({values}; images {shorten(images)}). Lower the learning rate, clip gradients with '
        f'optim_wrapper.clip_grad, or fix the data. {hint}'
    )


def dynamic_loss_scale(wrapper: Any) -> float | None:
    """Return the loss scale of float16 training, None in other precisions or if it is fixed."""
    scaler: Any = getattr(wrapper, 'loss_scaler', None)
    # mmengine has no public way to tell a fixed scale from a dynamic one.
    is_fixed = getattr(wrapper, '_scale_update_param', None) is not None
    is_half = getattr(wrapper, 'cast_dtype', None) in (None, torch.float16)
    if scaler is None or not scaler.is_enabled() or is_fixed or not is_half:
        return None
    return scaler.get_scale()


def list_images(data_batch: Any) -> list[str]:
    """List the paths or indices of the samples in a batch."""
    samples = (data_batch.get('data_samples') if isinstance(data_batch, dict) else None) or []
    # Samples of several views of an image are in a dict.
    samples = sum(samples.values(), []) if isinstance(samples, dict) else samples
    return [str(sample.get('img_path', sample.get('sample_idx'))) for sample in samples]
