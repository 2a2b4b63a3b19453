"""Manifest lines, and whole datasets, without a diffusion model."""

import hashlib
import json

import PIL.Image

from dreamda_aug.expansion.manifest import ManifestLine, Skipped


def line(seed_index=0, replica=0, class_name="cat", distance=0.1, **changes):
    """One line; what is not given is plain."""
    name = f"{seed_index:08d}_{replica:04d}"
    digest = hashlib.sha256(str(seed_index).encode()).hexdigest()
    values = {
        "id": name, "file": f"cat/{name}.png", "class_name": class_name, "label": 0,
        "seed_index": seed_index, "seed_path": f"cat/{seed_index}.png", "seed_digest": digest,
        "replica": replica, "epoch": 0, "rng_seed": 0, "condition": None, "batch": 0, "row": 0,
        "layout": [[0, 1]], "batch_size": 32, "settings": {}, "model": "x",
        "versions": {}, "pixels": digest,
        "distance": distance, "scores": {}, "flags": [], "events": [],
    }
    return ManifestLine(**values | changes)


def write_dataset(root, lines, *, classes=None, filters=(), paths=None, skipped=(), **facts):
    """A dataset of these lines, with grey images; the replica decides the grey level."""
    root.mkdir(parents=True)
    for each in lines:
        path = root / each.file
        path.parent.mkdir(exist_ok=True)
        PIL.Image.new("L", (8, 8), 40 + 10 * each.replica).save(path)
    (root / "manifest.jsonl").write_text("".join(each.to_json() + "\n" for each in lines))
    (root / "skipped.jsonl").write_text("".join(
        Skipped(0, "x", 0, "y", reason).to_json() + "\n"
        for reason in skipped))
    classes = classes or dict.fromkeys((each.class_name for each in lines), 1)
    values = {
        "format": "dreamda-expansion", "format_version": 2, "settings": {},
        "samples": len(lines) + len(skipped),
        "expansion": {}, "filters": list(filters), "image_format": "folder",
        "source": {"images": sum(classes.values()), "classes": classes, "problems": []},
        "paths": {"source": None, "model": "bundled", "lora": None} | (paths or {}),
        "license": "mit", "repeats": {}, "conditions": {}, "versions": {},
    }
    (root / "plan.json").write_text(json.dumps(values | facts))
    return root
