import numpy as np
import pytest
from PIL import Image

from mmevit.datasets import image_faults as faults
from mmevit.datasets.image_faults import find_image_faults


@pytest.fixture
def save(tmp_path):
    def write(image, name='image.png', **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return write


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ('mode', 'name', 'kinds'),
    [
        ('RGB', 'a.png', []),
        ('RGB', 'a.jpg', []),
        ('L', 'a.png', [faults.GREY]),
        ('RGBA', 'a.png', [faults.TRANSPARENT]),
        ('CMYK', 'a.jpg', [faults.CMYK]),
        ('I;16', 'a.png', [faults.DEEP, faults.GREY]),
    ],
)
def test_image_formats_are_reported(save, mode, name, kinds):
    if mode == 'I;16':
        image = Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60))
    else:
        image = NOISE.convert(mode)
    assert find_image_faults(save(image, name), (40, 60)) == kinds


def test_an_image_of_another_size_is_reported_also_with_exif_rotation(save):
    assert find_image_faults(save(NOISE), (60, 40)) == [faults.OTHER_SIZE]
    turned = Image.Exif()
    turned[0x0112] = 6
    path = save(NOISE, 'a.jpg', exif=turned)
    assert find_image_faults(path, (40, 60)) == [faults.OTHER_SIZE]
    assert find_image_faults(path, (60, 40)) == []


def test_corrupt_files_are_reported(save, tmp_path):
    path = save(NOISE, 'a.jpg')
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    assert find_image_faults(path) == [faults.TRUNCATED]
    path.write_bytes(content[:20])
    assert find_image_faults(path) == [faults.CORRUPT_IMAGE]
    path.write_bytes(b'')
    assert find_image_faults(path) == [faults.EMPTY_FILE]
    path.unlink()
    assert find_image_faults(path) == [faults.MISSING_FILE]


@pytest.mark.parametrize('size', [(10001, 10000), (13400, 13400)])
def test_an_image_too_large_to_decode_is_found_by_its_header(save, size):
    path = save(Image.new('1', size))
    assert find_image_faults(path) == [faults.HUGE]
