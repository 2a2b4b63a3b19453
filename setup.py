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
    package_data={"dreamda_aug": ["weights/*", "weights/**/*"]},
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
        "processes": ["accelerate>=1.0"],
        "hub": ["datasets>=2.19"],
        "test": [
            "accelerate>=1.0", "hypothesis>=6", "lightning>=2.4", "matplotlib>=3.8", "onnx>=1.16",
            "onnxruntime>=1.18", "onnxscript>=0.1", "peft>=0.17", "pytest>=8", "ruff>=0.6",
            "scikit-learn>=1.4", "scipy>=1.11", "timm>=1.0", "torchmetrics>=1.4",
            "transformers>=4.45", "webdataset>=0.2",
        ],
    },
    entry_points={"console_scripts": ["dreamda = dreamda_aug.cli:main"]},
)
