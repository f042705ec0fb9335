"""Script for a checkout; the command is in mmevit/cli/predict.py."""

from mmevit.cli.predict import main

if __name__ == '__main__':
    main()
