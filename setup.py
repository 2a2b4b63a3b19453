"""Installs dreamda_aug and its command `dreamda`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# A package index shows neither the pictures of this folder, with the captions below them, nor its
# other pages.
README = re.sub(r"!\[[^]]*\]\([^)]*\)\n+(\*[^*]+\*\n+)?", "", README)
README = re.sub(r"\[([^]]+)\]\((?!https?:)[^)]*\)", r"\1", README)
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "dreamda_aug/version.py").read_text())[1]

setup(
    name="dreamda_aug",
    version=VERSION,
    description="Diffusion-based image data augmentation (DreamDA) for PyTorch pipelines",
    long_description=README,
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE", "dreamda_aug/weights/LICENSE.fashion-mnist"],
    keywords=["data augmentation", "diffusion models", "image classification", "synthetic data",
              "self-training", "pytorch"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["dreamda_aug", "dreamda_aug.*"]),
    package_data={
        "dreamda_aug": ["py.typed", "weights/*", "weights/**/*", "report/templates/*",
                        "expansion/templates/*"],
    },
    install_requires=[
        "torch>=2.8",
        "torchvision>=0.23",
        "diffusers>=0.42",
        "huggingface_hub>=1.0",
        "jinja2>=3.1",
        "numpy>=1.26",
        "safetensors>=0.4",
        "scipy>=1.11",
        "torchmetrics>=1.4",
        "fsspec>=2024.6",
        "tqdm>=4.66",
    ],
    extras_require={
        "adapt": ["accelerate>=1.10", "peft>=0.18"],
        "text": ["transformers>=5.0"],
        "plots": ["matplotlib>=3.8"],
        "processes": ["accelerate>=1.10"],
        "hub": ["datasets>=4.0"],
        "ray": ["ray>=2.9"],
        "remote": ["fsspec>=2024.6", "gcsfs>=2024.6", "s3fs>=2024.6"],
        "docs": [
            "furo>=2024.8", "ipykernel>=6", "matplotlib>=3.8", "myst-parser>=4",
            "nbclient>=0.10", "nbformat>=5.10", "sphinx>=8", "sphinx-gallery>=0.18",
        ],
        "test": [
            "accelerate>=1.10", "datasets>=4.0", "fastai>=2.8",
            "import-linter>=2.3", "lightning>=2.4", "markdown-it-py>=3", "matplotlib>=3.8",
            "mlcroissant>=1.0", "monai>=1.5", "mypy>=1.15", "onnx>=1.16", "onnxruntime>=1.18",
            "onnxscript>=0.1", "peft>=0.18", "pytest>=8", "pytest-cov>=6", "pytest-timeout>=2.3",
            "pytest-xdist>=3.6", "ray>=2.9", "ruff>=0.6", "scikit-learn>=1.4", "timm>=1.0",
            "torchgeo>=0.7", "transformers>=5.0", "webdataset>=0.2",
        ],
    },
    entry_points={"console_scripts": ["dreamda = dreamda_aug.cli.main:main"]},
)
