"""Installs dreamda_aug and its command `dreamda`."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="dreamda_aug",
    version="0.1.0",
    description="Diffusion-based image data augmentation (DreamDA) for PyTorch pipelines",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["dreamda_aug", "dreamda_aug.*"]),
    package_data={"dreamda_aug": ["weights/**/*", "samples/**/*"]},
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "diffusers>=0.42",
        "safetensors>=0.4",
        "numpy>=1.26",
    ],
    extras_require={
        "text": ["transformers>=4.45"],
        "plots": ["matplotlib>=3.8"],
        "test": ["pytest>=8", "ruff>=0.6", "scikit-learn>=1.4", "scipy>=1.11",
                 "torchmetrics>=1.4", "matplotlib>=3.8", "transformers>=4.45"],
    },
    entry_points={"console_scripts": ["dreamda = dreamda_aug.cli:main"]},
)
