"""The setting of a benchmark."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all networks of a benchmark have in common.

    Args:
        batch_size: Images per call; 1 measures latency.
        threads: CPU threads.
        size: Height and width of the images. Defaults to the size that the accuracy of each network
            is published for, 224 x 224 if that is unknown.
        device: ``'cpu'`` or ``'cuda'``.
        channels_last: Whether the eager and folded forms use channels-last images and weights.
            Compiled forms always do. Traced forms never do, except for EfficientViT, whose folded
            weights are channels-last.
        rounds: Number of times that each network is measured.
        seconds: Duration of each measurement, which is at least one call.
        seed: Seed of weights, images and the order of measurements.
        keep_memory: Whether the allocator keeps freed memory, for steadier times. This lasts for
            the rest of the process.
    """

    batch_size: int = 16
    threads: int = 1
    size: tuple[int, int] | None = None
    device: str = 'cpu'
    channels_last: bool = False
    rounds: int = 20
    seconds: float = 0.25
    seed: int = 0
    keep_memory: bool = False
