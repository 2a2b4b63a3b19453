"""Whole folders, against the single functions."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from clouds import quiet_frechet
from PIL import Image
from torchvision.datasets import ImageFolder

from dreamda_aug.metrics import compare_folders, extract_features, kernel_distance
from dreamda_aug.metrics.distances import (
    density_coverage,
    mean_discrepancy,
    nearest,
    precision_recall,
    replica_diversity,
)
from dreamda_aug.metrics.features import pixel_features


def write_images(folder, values, size=8, noise=12):
    rng = np.random.default_rng(len(str(folder)) + sum(values))
    folder.mkdir(parents=True)
    for number, value in enumerate(values):
        pixels = np.clip(value + rng.normal(0, noise, (size, size, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")


def test_compare_folders_reports_what_the_single_functions_say(tmp_path):
    for name, real_value, synthetic_value in (("dark", 60, 65), ("light", 190, 180)):
        write_images(tmp_path / "real" / name, [real_value] * 12)
        write_images(tmp_path / "synthetic" / name, [synthetic_value] * 8, size=10)
    report = compare_folders(tmp_path / "real", tmp_path / "synthetic", batch_size=5)
    pixels = pixel_features(size=32)
    real, synthetic = (
        extract_features(ImageFolder(tmp_path / name), pixels)
        for name in ("real", "synthetic")
    )
    assert (report.real_count, report.synthetic_count, report.feature_count) == (24, 16, 3072)
    assert report.fid == pytest.approx(quiet_frechet(real, synthetic), rel=1e-6)
    assert report.kid == pytest.approx(kernel_distance(real, synthetic).mean, rel=1e-6)
    assert report.mmd == pytest.approx(mean_discrepancy(real, synthetic), rel=1e-6)
    assert (report.precision, report.recall) == precision_recall(real, synthetic)
    assert (report.density, report.coverage) == density_coverage(real, synthetic)
    assert report.nearest_real == pytest.approx(nearest(synthetic, real)[0].median().item())
    assert report.real_spacing > 0
    assert report.label_agreement == report.real_label_agreement == 1
    assert report.exact_copies == 0
    assert any("kernel_distance" in note for note in report.notes)
    assert any("Pixel features" in note for note in report.notes)
    assert json.loads(json.dumps(asdict(report)))["notes"] == list(report.notes)


def test_label_agreement_matches_classes_by_name_or_a_note_says_why_not(tmp_path):
    for name, real_value, synthetic_value in (("dark", 60, 190), ("light", 190, 60)):
        write_images(tmp_path / "real" / name, [real_value] * 6)
        write_images(tmp_path / "swapped" / name, [synthetic_value] * 6)
    write_images(tmp_path / "one" / "light", [190] * 6)  # number 0 there, 1 in the real folder
    report = compare_folders(tmp_path / "real", tmp_path / "swapped")
    assert (report.label_agreement, report.real_label_agreement) == (0, 1)
    assert compare_folders(tmp_path / "real", tmp_path / "one").label_agreement == 1
    write_images(tmp_path / "flat", [50] * 6)
    write_images(tmp_path / "other" / "blue", [50] * 6)
    flat = compare_folders(tmp_path / "real", tmp_path / "flat")
    other = compare_folders(tmp_path / "real", tmp_path / "other")
    assert flat.label_agreement is other.label_agreement is None
    assert any("class sub-folders" in note for note in flat.notes)
    assert any("lacks the class 'blue'" in note for note in other.notes)


def test_compare_folders_counts_exact_copies(tmp_path):
    write_images(tmp_path / "real", [80] * 8)
    write_images(tmp_path / "synthetic", [90] * 5)
    for name in ("000.png", "004.png"):
        (tmp_path / "synthetic" / name).write_bytes((tmp_path / "real" / name).read_bytes())
    pixels = np.array(Image.open(tmp_path / "real" / "001.png"))
    pixels[0, 0, 0] += 1  # one grey level in one pixel: near, but no copy
    Image.fromarray(pixels).save(tmp_path / "synthetic" / "001.png")
    report = compare_folders(tmp_path / "real", tmp_path / "synthetic")
    assert report.exact_copies == 2


def test_compare_folders_refuses_folders_with_too_few_images(tmp_path):
    write_images(tmp_path / "six", [80] * 6)
    write_images(tmp_path / "three", [80] * 3)
    with pytest.raises(ValueError, match=r"real_dir must hold at least 6 images, got 3 in .*three"):
        compare_folders(tmp_path / "three", tmp_path / "six")
    with pytest.raises(ValueError, match=r"synthetic_dir must hold at least 4 images, got 3"):
        compare_folders(tmp_path / "six", tmp_path / "three")


def test_compare_folders_measures_replicas_against_their_seed_images(tmp_path):
    write_images(tmp_path / "real" / "dark", [60] * 4, noise=40)
    write_images(tmp_path / "real" / "light", [190] * 4, noise=40)
    write_images(tmp_path / "synthetic" / "dark", [60] * 6, noise=40)
    real, synthetic = tmp_path / "real", tmp_path / "synthetic"
    # the last is a copy of a real image that is not its seed image
    (synthetic / "dark/005.png").write_bytes((real / "dark/003.png").read_bytes())
    lines = [{"file": f"dark/{i:03}.png", "seed_path": f"dark/{i // 2:03}.png"} for i in range(6)]
    (synthetic / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = compare_folders(real, synthetic)
    pixels = pixel_features(size=32)
    of_real, of_synthetic = (
        extract_features(ImageFolder(folder), pixels)
        for folder in (real, synthetic)
    )
    seeds = torch.tensor([0, 0, 1, 1, 2, 2])
    own = (of_synthetic - of_real[seeds]).norm(dim=1)
    other = nearest(of_synthetic, of_real, exclude=seeds)[0]
    assert report.diversity == pytest.approx(replica_diversity(of_synthetic, seeds))
    assert report.seed_distance == pytest.approx(own.median().item())
    assert report.nearest_other == pytest.approx(other.median().item())
    assert report.closer_to_other == (other < own).double().mean() > 0
    (synthetic / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines[:-1])))
    unknown = compare_folders(real, synthetic)
    assert unknown.diversity is unknown.closer_to_other is None
    assert any("that of 005.png is not in the real folder" in note for note in unknown.notes)
    (synthetic / "manifest.jsonl").unlink()
    assert any("manifest.jsonl" in note for note in compare_folders(real, synthetic).notes)
