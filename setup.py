from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version():
    scope = {}
    exec((ROOT / 'mmevit/version.py').read_text(), scope)
    return scope['__version__']


def read_requirements(name):
    requirements = []
    for line in (ROOT / f'requirements/{name}.txt').read_text().splitlines():
        if line.startswith('-r '):
            requirements += read_requirements(Path(line[3:]).stem)
        elif line and not line.startswith('#'):
            requirements.append(line)
    return requirements


extras = ('tests', 'analysis', 'digits', 'onnx', 'openvino', 'coreml', 'timm', 'optional', 'docs')

setup(
    name='mmevit',
    version=read_version(),
    description='EfficientViT (CVPR 2023) as a backbone for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=('mmevit', 'mmevit.*')),
    # Configs and tools, for mim and mmengine; in a checkout, .mim links to them.
    package_data={'mmevit': [f'.mim/**/*.{suffix}' for suffix in ('yml', 'py', 'sh')]},
    python_requires='>=3.10',
    # As in mmdet and mmpretrain, OpenMMLab is the extra `mim`: pip could not see that the original
    # builds, where they are installed, serve as well as the maintained ones.
    install_requires=read_requirements('runtime'),
    entry_points={'console_scripts': ['mmevit = mmevit.cli.main:main']},
    extras_require={
        'mim': read_requirements('mminstall'),
        **{name: read_requirements(name) for name in extras},
    },
)
