"""Draw where in some images a classifier finds its class, stage by stage (Grad-CAM)."""

from mmevit.cli.analysis.grad_cam import main

if __name__ == '__main__':
    main()
