"""Fine-tune a classifier on your own images, one folder per class."""

from mmevit.cli.finetune import main

if __name__ == '__main__':
    main()
