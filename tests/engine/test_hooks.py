import numpy as np

from mmevit.engine.hooks import plot_curves


def lines(axes):
    return {line.get_label(): line.get_xydata().T.tolist() for line in axes.lines}


def test_losses_and_metrics_are_plotted_where_they_belong():
    figure = plot_curves(
        {
            'train/loss': np.array([4.0, 3.0, 2.0]),
            'train/loss_cls': np.array([2.0, 1.0, 0.5]),
            'train/lr': np.array([0.1, 0.1, 0.1]),
            'val/coco/bbox_mAP': np.array([0.2, 0.4]),
            'val/coco/bbox_mAP_l': np.array([-1.0, -1.0]),
            'val/time': np.array([1.0, 1.0]),
            'curves/val_iter': np.array([2, 3]),
        }
    )
    losses, metrics = figure.axes
    assert lines(losses) == {
        'loss': [[1, 2, 3], [4, 3, 2]],
        'loss_cls': [[1, 2, 3], [2, 1, 0.5]],
    }
    assert lines(metrics) == {'coco/bbox_mAP': [[2, 3], [0.2, 0.4]]}


def test_long_runs_are_averaged_over_windows():
    figure = plot_curves({'train/loss': np.arange(1000.0)})
    ((steps, means),) = lines(figure.axes[0]).values()
    assert steps == list(range(10, 1001, 10))
    assert means == [10 * window + 4.5 for window in range(100)]


def test_metrics_of_a_resumed_run_are_at_the_last_evaluations():
    figure = plot_curves(
        {'val/accuracy/top1': np.array([7.0]), 'curves/val_iter': np.array([5, 10])}
    )
    assert lines(figure.axes[1]) == {'accuracy/top1': [[10], [7]]}
