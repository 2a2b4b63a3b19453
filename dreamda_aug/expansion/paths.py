"""Where a dataset may be written, and how it says where it was made from."""

from typing import Any

from dreamda_aug.expansion.metadata import PLAN
from dreamda_aug.expansion.output import LocalFolder, OutputFolder, path_from
from dreamda_aug.inputs.file_lists import FileSource
from dreamda_aug.inputs.sources import Source
from dreamda_aug.models import DiffusionModel


def check_out(source: Source, folder: OutputFolder) -> None:
    """Refuse to write into the current folder, or between the seed images.

    Raises:
        ValueError: the dataset's folder is one of these.
    """
    if not isinstance(folder, LocalFolder):
        return
    root = folder.root
    if str(root) == "." and not (root / PLAN).exists():
        raise ValueError("out_dir must name a folder of its own, got the current one.")
    if isinstance(source, FileSource):
        place, inside = root.resolve(), source.root.resolve()
        if source.is_folder and place.is_relative_to(inside):
            raise ValueError(
                f"out_dir must lie outside the seed images' folder {inside}, got {place}: the "
                "next run would take synthetic images for seed images."
            )


def paths_from(folder: OutputFolder, source: Source, model: DiffusionModel) -> dict[str, Any]:
    """Where seed images and model lie, as seen from the dataset's folder.

    Nothing absolute is written down: a dataset is published, and may move together with them.

    Returns:
        ``source`` (the arguments that open it, or None), ``model``, ``lora``, and under ``ask``
        the names of those that are not said to lie anywhere.
    """
    ask = []
    opened = None if source.spec is None else dict(source.spec)
    if opened is not None:
        for name in ("spec", "data_root"):
            opened[name], known = path_from(folder, opened.get(name))
            if not known and "source" not in ask:
                ask.append("source")
    places: dict[str, Any] = {"source": opened}
    for name, place in (("model", model.name), ("lora", model.lora)):
        places[name], known = path_from(folder, place)
        if not known:
            ask.append(name)
    return places | {"ask": ask}
