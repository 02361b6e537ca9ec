"""What can be shown of a model: a text, a PNG, or both, and nothing that only looks like one."""

import base64

import pytest

from minerua.errors import BrokenPlugin
from minerua.values import Exhibit

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAMAAAACCAAAAACrCDVsAAAADElEQVR4nGNgYGAAAAADAAEO4vEJAAAAAElFTkSuQmCC")


def test_a_text_a_picture_and_both_are_exhibits():
    assert Exhibit("a", text="").png is None
    assert Exhibit("a", png=PNG).text is None
    assert Exhibit("a", "t", "x", PNG) == Exhibit("a", title="t", text="x", png=PNG)


def test_an_exhibit_that_cannot_be_shown_says_everything_that_is_wrong_with_it():
    with pytest.raises(BrokenPlugin) as caught:
        Exhibit(3, "a\nb")
    assert str(caught.value).startswith("the exhibit of item 3 cannot be shown")
    assert caught.value.faults == (
        "item is 3; expected a text",
        "title has 2 lines; what is longer than one belongs into text",
        "it has neither a text nor a png; give one of them, or both",
    )
    for wrong in (b"", b"GIF89a", PNG[:12] + b"JUNK" + PNG[16:], PNG[:20]):
        with pytest.raises(BrokenPlugin, match="the bytes of a PNG file are needed"):
            Exhibit("a", png=wrong)
    with pytest.raises(BrokenPlugin, match=r"png is 3; expected bytes"):
        Exhibit("a", png=3)
    with pytest.raises(BrokenPlugin, match=r"text is 3; expected a text"):
        Exhibit("a", text=3)
