"""Whether seed images are still those that images were made from."""

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.records import Record
from dreamda_aug.expansion.seed_images import Unreadable, digest_of_file, read_storable
from dreamda_aug.inputs.sources import Source


class SeedCheck:
    """Looks up the seed image of each entry of a record, once.

    A file with the same bytes is not decoded. One that was stored anew with the same pixels is
    the same image.

    Args:
        source: the seed images as they are now.
        place: the dataset's folder, for the message.
    """

    def __init__(self, source: Source, place: str):
        self._source, self._place = source, place
        self._last = -1

    def __call__(self, entry: Record) -> None:
        """Look up the seed image of an entry; those of one seed image follow each other.

        Raises:
            ExpansionError: it was changed.
        """
        index = entry.seed_index
        if index == self._last:
            return
        if index < len(self._source.paths) and self._source.paths[index] == entry.seed_path:
            now = digest_of_file(self._source, index)
            if now and now == entry.seed_file_digest or self._pixels(index) == entry.seed_digest:
                self._last = index
                return
        raise ExpansionError(
            f"{self._place}: seed image {entry.seed_path} was changed since images were made from "
            "it. Put the old image back; or begin anew with --new (new=True), which sets the old "
            "result aside."
        )

    def _pixels(self, index: int) -> str:
        """Digest of its pixels; empty where it is unreadable."""
        try:
            return read_storable(self._source, index).digests[0]
        except Unreadable:
            return ""
