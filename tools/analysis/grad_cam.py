"""Script for a checkout; the command is in mmevit/cli/analysis/grad_cam.py."""

from mmevit.cli.analysis.grad_cam import main

if __name__ == '__main__':
    main()
