"""Finished datasets on the Hugging Face hub."""

from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from dreamda_aug.arguments import checked
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.layouts import WORK
from dreamda_aug.expansion.manifest import CARD, MANIFEST, read_metadata
from dreamda_aug.files import TEMPORARY

# Never uploaded: unfinished work, and the page that shows the real seed images. ".keep" in the
# folder of a class without images goes along, or other classes would take its number.
_LEFT_OUT = [f"{WORK}/**", "**/.[!k]*", f"*{TEMPORARY}", "report.html"]
# The hub takes no more files in one folder.
_MAX_FILES = 10_000


@checked
def push(
    root: str | Path, repo_id: str, *, private: bool | None = None, api: Any = None
) -> str:
    """Upload a finished dataset with its card, so that ``load_dataset(repo_id)`` reads it.

    The report's page stays here, because it shows the real seed images. May be repeated: what the
    hub has already is not sent again.

    Args:
        root: what `expand` wrote.
        repo_id: ``"user/name"``; made if it is not there.
        private: for a new repository, or None for the account's default.
        api: the hub, or None for ``HfApi()``, with the token of ``hf auth login``.

    Returns:
        The dataset's address.

    Raises:
        FileNotFoundError: the folder holds no expansion.
        ExpansionError: it is not finished.
        ValueError: a folder has more files than the hub takes.
    """
    root = Path(root)
    read_metadata(root)
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
    # resumable, and in several commits where there are many files
    hub.upload_folder(repo_id=repo_id, folder_path=str(root), repo_type="dataset",
                      ignore_patterns=_LEFT_OUT,
                      commit_message="Add synthetic images made with dreamda_aug")
    return f"https://huggingface.co/datasets/{repo_id}"
