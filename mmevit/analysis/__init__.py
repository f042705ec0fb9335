"""Looking into trained networks."""

from .grad_cam import grad_cam, plot_grad_cams

__all__ = ['grad_cam', 'plot_grad_cams']
