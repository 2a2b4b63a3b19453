"""Finished datasets on the Hugging Face hub."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, HfApi

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.exports import METADATA
from dreamda_aug.expansion.layouts import WORK
from dreamda_aug.expansion.manifest import MANIFEST
from dreamda_aug.expansion.metadata import CARD, LICENSE, read_metadata

_README = "README.md"
# Never uploaded: unfinished work, and the page that shows the real seed images.
_LEFT_OUT = [f"{WORK}/**", "**/.*", "report.html"]
# The hub takes no more files in one folder.
_MAX_FILES = 10_000


def push(
    root: str | Path, repo_id: str, *, private: bool | None = None, api: Any = None
) -> str:
    """Upload a finished dataset with its card, so that ``load_dataset(repo_id)`` reads it.

    The report's page stays here, because it shows the real seed images. May be repeated: what the
    hub has already is not sent again.

    Args:
        root: what `expand` wrote.
        repo_id: ``"user/name"``; made if it is not there.
        private: for a new repository; None: as the account's default has it.
        api: the hub; None: ``HfApi()``, with the token of ``hf auth login``.

    Returns:
        The dataset's address.

    Raises:
        FileNotFoundError: the folder holds no expansion.
        ExpansionError: it is not finished.
        ValueError: a folder has more files than the hub takes.
    """
    root = Path(root)
    facts = read_metadata(root)
    if not (root / MANIFEST).is_file() or (root / WORK).exists() or not (root / CARD).is_file():
        raise ExpansionError(
            f"{root}: expected a finished dataset, found one under way; run `dreamda expand` "
            "again until it is done."
        )
    files = Counter(path.parent for path in root.rglob("*") if path.is_file())
    for folder, count in files.items():
        if count > _MAX_FILES:
            raise ValueError(
                f"the hub takes {_MAX_FILES:,} files in a folder, and {folder} has {count:,}; "
                "write shards instead: dreamda expand --image-format webdataset."
            )
    hub = HfApi() if api is None else api
    hub.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    said = "Add synthetic images made with dreamda_aug"
    # resumable, and in several commits where there are many files, as far as the client can
    hub.upload_folder(repo_id=repo_id, folder_path=str(root), repo_type="dataset",
                      ignore_patterns=_LEFT_OUT, commit_message=said)
    hub.upload_file(path_or_fileobj=hub_card(root, facts).encode(), path_in_repo=_README,
                    repo_id=repo_id, repo_type="dataset", commit_message=said)
    return f"https://huggingface.co/datasets/{repo_id}"


def hub_card(root: Path, facts: Mapping[str, Any]) -> str:
    """The dataset's card with what the hub wants to know: columns, class names, files.

    Args:
        root: the dataset's folder.
        facts: what `read_metadata` returns.
    """
    card = DatasetCard((root / CARD).read_text("utf-8"))
    in_folders = facts["image_format"] == "folder"
    classes = {str(label): name for label, name in enumerate(facts["source"]["classes"])}
    label = {"class_label": {"names": classes}}
    # said outright: the hub would take a class folder called "test" for a split
    config: dict[str, Any] = {"config_name": "default", "data_files": [{
        "split": "train", "path": ["*/*.png", METADATA] if in_folders else "shard-*.tar"}]}
    fields: dict[str, Any] = {"task_categories": ["image-classification"], "configs": [config]}
    if in_folders:
        kinds = {"image": "image", "label": label, "class_name": "string", "synthetic": "bool",
                 "seed_path": "string", "replica": "int64", "distance": "float64"}
        # the builder of image folders takes it from the configuration
        config["features"] = [{"name": name, "dtype": kind} for name, kind in kinds.items()]
    license = facts[LICENSE]
    if license.lower().startswith("apache-2.0"):
        fields["license"] = "apache-2.0"
    for name, value in fields.items():
        setattr(card.data, name, value)
    return str(card)
