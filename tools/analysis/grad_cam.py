"""Draw the Grad-CAM heat maps of a classifier, stage by stage."""

from mmevit.cli.analysis.grad_cam import main

if __name__ == '__main__':
    main()
