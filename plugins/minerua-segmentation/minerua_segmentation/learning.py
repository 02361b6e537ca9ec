"""The skill `segmentation-images`: what a training file's section `data` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minerua import Skill
from minerua.settings import Settings

from .collection import Rows, open_collection, read_source

if TYPE_CHECKING:
    from minerua.values import SkillContext

__all__ = ["configure_images"]


def configure_images(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    """Returns the skill that makes a data set of folders.

    Args:
        settings: `path`, `layout`, `size`, `threshold`, `classes`, `most`, `most_bad`, `cache`, `flips`; see
            the README.
        context: Where relative paths begin.

    Returns:
        A skill without inputs; its output `dataset` has rows of an image (h, w, 3) and a mask (h, w), float32.

    Raises:
        ConfigError: A setting is wrong; all faults. The pictures are looked through when the skill is called.
    """
    told = Settings("the skill 'segmentation-images'", settings, context.folder)
    source = read_source(told)
    flips = told.flag("flips", False)
    told.done()

    def call() -> dict[str, Rows]:
        return {"dataset": Rows(open_collection(source), flips=flips)}

    return Skill(name="segmentation-images", call=call, outputs={"dataset": object})
