"""Convert a checkpoint between mmevit's, the released and timm's format."""

from mmevit.cli.convert_checkpoint import main

if __name__ == '__main__':
    main()
