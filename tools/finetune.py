"""Fine-tune a classifier on your own images, a folder for each class."""

from mmevit.cli.finetune import main

if __name__ == '__main__':
    main()
