"""Convert a checkpoint between the forms of mmevit, the authors' release and timm."""

from mmevit.cli.convert_checkpoint import main

if __name__ == '__main__':
    main()
