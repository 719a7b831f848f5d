"""Section `prepare`: cut URL lists, and images on disk, into chunks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlcd.config.base import Section, as_json


class Prepare(Section):
    """Cut every URL list, and every folder of images, into chunks of a fixed number of rows; a
    chunk is the work of one job.
    """

    chunk_rows: int = Field(
        600,
        gt=0,
        description="Rows per chunk. One chunk is one job of download, embed and label. At scale "
        "choose 1 to 2 million, so that LAION-400M makes some 300 chunks, not 40,000.",
    )
    url_column: str = Field(
        "url",
        min_length=1,
        description="Column that holds the URL of the image; not looked at in txt lists.",
    )
    caption_column: str | None = Field(
        "caption",
        min_length=1,
        description="Column that holds the caption; null if the list has none. Of images on disk: "
        "the column of a parquet, or the field of a .json beside an image, where there is one.",
    )
    hash_column: str | None = Field(
        "sha256",
        min_length=1,
        description="Column that holds the SHA-256 of the image's bytes, in hex; an image that "
        "differs from it is refused by download. null if the list has none, as LAION's.",
    )

    image_column: str = Field(
        "image",
        min_length=1,
        description="Column of a parquet that holds images, as bytes or as Hugging Face's struct "
        "of bytes and path; without it the only column that is such a struct is taken. A parquet "
        "that has neither is a URL list.",
    )
    links: Literal["inside", "follow"] = Field(
        "inside",
        description="Symbolic links in folders of images: inside takes links to files below the "
        "folder named in metadata and counts others as link_outside; follow takes all, links to "
        "folders too. Choose it for folders of your own only.",
    )
    check: Literal["folders", "files", "never"] = Field(
        "folders",
        description="What of images on disk is looked at when a run starts, to list them anew if "
        "it changed: folders looks at the time of each folder, and at size and time of tars, zips "
        "and parquets; files lists everything at each start; never keeps the listing.",
    )

    def for_chunks(self) -> str:
        """Return the keys that decide chunks, as one line of JSON: `check` only says when to look.

        Keys that only images on disk have count where they are not the default, so that releases
        without them have made the same chunks of URL lists.
        """
        values = self.model_dump(mode="json", exclude={"check"})
        for name in ("image_column", "links"):
            if values[name] == type(self).model_fields[name].default:
                del values[name]
        return as_json(values)

    def columns(self) -> dict[str, str | None]:
        """Return key → name of the column that it says a list has; None for one it lacks."""
        names = ("url_column", "caption_column", "hash_column")
        return {name: getattr(self, name) for name in names}
