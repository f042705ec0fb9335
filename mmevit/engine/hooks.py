"""Hooks for any runner."""

import math
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop
from packaging.version import Version

from mmevit.checkpoint.matching import (
    check_fit,
    check_resumable,
    leave_out_other_heads,
    require_fit,
)
from mmevit.checks.classes import check_checkpoint_classes
from mmevit.utils.errors import ConfigError, UserError, shorten
from mmevit.utils.files import atomic_write
from mmevit.utils.models import unwrap

# PyTorch's first loss scale, 2**16, is below 1 after so many skipped steps.
MAX_OVERFLOWS = 17
# The smallest normal number of float16: gradients of 2**30 would not overflow.
MIN_LOSS_SCALE = 2**-14


@HOOKS.register_module()
class CompileHook(Hook):
    """Compile the backbone by ``torch.compile`` before training, and other parts if they are named.

    mmengine's own ``compile=True`` compiles whole training steps, which break up at the data, the
    losses and the optimizer. On a CPU the first step takes minutes. Names in checkpoints are those
    without compilation. For images of other sizes it compiles once more, then for any size::

        custom_hooks = [dict(type='CompileHook', parts=('backbone', 'neck'))]

    Args:
        parts (str | Sequence[str]): Names of modules in the model. Defaults to ``'backbone'``.
        **options: The arguments of :func:`torch.compile`.
    """

    # After the hooks that change or copy the model.
    priority = 'LOWEST'

    def __init__(self, parts='backbone', **options):
        self.parts = [parts] if isinstance(parts, str) else parts
        self.options = options

    def before_train(self, runner):
        """Have the parts compile themselves at their first call.

        Raises:
            ConfigError: If the model has no such part, or PyTorch is too old.
        """
        if Version(torch.__version__) < Version('2.5'):
            raise ConfigError(
                f'PyTorch {torch.__version__} is too old for CompileHook: what 2.1 compiles has '
                'other gradients. Install 2.5 or newer, or leave the hook out.'
            )
        model = unwrap(runner.model)
        modules = dict(model.named_modules())
        for part in self.parts:
            if part not in modules:
                raise ConfigError(
                    f'CompileHook is to compile {part}, but {type(model).__name__} has none: name '
                    'modules of the model in parts.'
                )
            modules[part].compile(**self.options)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keep the weights of the model, and so its maps, with their channels last in memory.

    Convolutions are faster so, on CPUs and in mixed precision on GPUs, and pass the layout of their
    weights on. Results are the same but for rounding, and so are checkpoints.
    """

    def before_train(self, runner):
        """Change the layout once the weights are loaded."""
        runner.model.to(memory_format=torch.channels_last)


@HOOKS.register_module()
class InvalidLossHook(Hook):
    """End training at a loss that is infinite or no number, before it is in a checkpoint.

    mmengine trains on with weights that are no numbers, and mmdet's hook looks at every 50th loss
    and does not tell the images. In float16 with dynamic loss scaling, up to
    :data:`MAX_OVERFLOWS` invalid losses in a row are tolerated, since the scaler skips steps with
    invalid gradients and lowers the scale. The tools add it; elsewhere::

        custom_hooks = [dict(type='InvalidLossHook')]
    """

    num_overflows = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Look at the losses, and at the loss scale.

        Raises:
            UserError: If a loss is not finite; it names the iteration, the images and the
                checkpoint to go on from. If every step overflows.
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
            for name, value in outputs.items()
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
                f'scaling skips the step if the gradients are not either, its scale is {scale:g}.'
            )
            return
        samples = (data_batch.get('data_samples') if isinstance(data_batch, dict) else None) or []
        # Those of several views of an image come in a dict.
        samples = sum(samples.values(), []) if isinstance(samples, dict) else samples
        images = [str(sample.get('img_path', sample.get('sample_idx'))) for sample in samples]
        runner.logger.error(f'The images of iteration {runner.iter + 1}: {", ".join(images)}')
        checkpoint = runner.message_hub.runtime_info.get('last_ckpt')
        hint = f'go on from {checkpoint} by --resume' if checkpoint else 'no checkpoint was written'
        raise UserError(
            f'The loss is not finite in iteration {runner.iter + 1} of epoch {runner.epoch + 1} '
            f'({values}), of the images {shorten(images)}: lower the learning rate, clip gradients '
            f'by optim_wrapper.clip_grad, or mend the data; {hint}.'
        )


def dynamic_loss_scale(wrapper):
    """Current loss scale of float16 training with dynamic loss scaling.

    Args:
        wrapper (OptimWrapper): Any optimizer wrapper.

    Returns:
        float | None: The scale, or None in other precisions or with a fixed scale.
    """
    scaler = getattr(wrapper, 'loss_scaler', None)
    is_fixed = getattr(wrapper, '_scale_update_param', None) is not None
    is_half = getattr(wrapper, 'cast_dtype', None) in (None, torch.float16)
    return (
        scaler.get_scale() if scaler and scaler.is_enabled() and is_half and not is_fixed else None
    )


@HOOKS.register_module()
class TrainingCurveHook(Hook):
    """Keep a picture of the losses and of the evaluation metrics in the work directory.

    It is drawn again after every evaluation and at the end of training, and goes on where it was
    when a run is resumed.

    Args:
        file_name (str): Name of the picture in the work directory. Defaults to ``'curves.png'``.
    """

    # After the hooks that record what is drawn here.
    priority = 'LOWEST'

    def __init__(self, file_name='curves.png'):
        self.file_name = file_name

    def before_val_epoch(self, runner):
        """Note where in training the metrics belong, before a checkpoint is saved for them."""
        runner.message_hub.update_scalar('curves/val_iter', runner.iter)

    def after_val_epoch(self, runner, metrics=None):
        """Draw."""
        if runner.rank == 0:
            self.draw(runner)

    def after_train(self, runner):
        """Draw what came after the last evaluation too."""
        if runner.rank == 0:
            self.draw(runner)

    def draw(self, runner):
        """Draw the losses and the metrics that the runner's message hub holds."""
        scalars = runner.message_hub.log_scalars
        figure = plot_curves({name: history.data[0] for name, history in scalars.items()})
        with atomic_write(Path(runner.work_dir, self.file_name)) as path:
            figure.savefig(path, dpi=120)


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Refuse a checkpoint that does not fit the whole model, which mmengine would load in part."""

    def after_load_checkpoint(self, runner, checkpoint):
        """Compare the checkpoint with the model, and its classes with those of the data."""
        check_fit(runner.model, checkpoint)
        check_checkpoint_classes(checkpoint, runner.test_dataloader.dataset)


@HOOKS.register_module()
class TrainingWeightsHook(Hook):
    """Check the weights that training starts from.

    To resume, the checkpoint must fit the whole model and have the classes of the data. Otherwise
    the backbone's weights must fit, and those of a head for other classes are left out, with a
    warning.
    """

    # Before hooks that use the checkpoint, as EMAHook does.
    priority = 'HIGHEST'

    def after_load_checkpoint(self, runner, checkpoint):
        """Compare the checkpoint with the model and, to resume, with the data."""
        # The config that training keeps may be used for evaluation too.
        if isinstance(runner._test_loop, BaseLoop):
            return
        # mmengine would run this as a config file, for nothing but a number of GPUs.
        (checkpoint.get('meta') or {}).pop('config', None)
        if runner.cfg.get('resume'):
            check_resumable(checkpoint)
            check_fit(runner.model, checkpoint)
            check_checkpoint_classes(checkpoint, runner.train_dataloader.dataset)
            return
        leave_out_other_heads(unwrap(runner.model), checkpoint)
        marked = require_fit(checkpoint)
        if 'state_dict' not in checkpoint:  # EMAHook needs it.
            checkpoint.clear()
        checkpoint['state_dict'] = marked.get('state_dict', marked)


def plot_curves(histories):
    """Plot losses and metrics over iterations.

    Args:
        histories (dict[str, ndarray]): By the names of mmengine's message hub, the losses of every
            iteration, the metrics of every evaluation, and the iterations of the evaluations as
            ``'curves/val_iter'``.

    Returns:
        matplotlib.figure.Figure: Losses on the left, metrics on the right.
    """
    # Not at the top: the smallest build of mmengine comes without matplotlib.
    from matplotlib.figure import Figure

    losses = {name: values for name, values in histories.items() if 'train/loss' in name}
    metrics = {
        name: values
        for name, values in histories.items()
        # COCO says -1 where there was nothing to measure.
        if name.startswith('val/')
        and 'time' not in name
        and name != 'val/unreadable_images'
        and values.min() >= 0
    }
    figure = Figure(figsize=(12, 4.5), layout='constrained')
    loss_axes, metric_axes = figure.subplots(1, 2)
    for name, values in losses.items():
        window = max(1, len(values) // 100)
        smooth = values[: len(values) // window * window].reshape(-1, window).mean(1)
        steps = range(window, len(values) + 1, window)
        loss_axes.plot(steps, smooth, label=name.removeprefix('train/'))
    loss_axes.set(xlabel='iteration', ylabel='loss', title='Training', ylim=(0, None))
    for name, values in metrics.items():
        steps = histories['curves/val_iter'][-len(values) :]
        metric_axes.plot(steps, values, marker='o', label=name.removeprefix('val/'))
    metric_axes.set(xlabel='iteration', title='Evaluation', ylim=(0, None))
    for axes in (loss_axes, metric_axes):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    return figure
