"""What is asked for an image: the server's, the request's, and their one spelling."""

from types import SimpleNamespace

import pytest

from visiondrop.errors import VisionDropError
from visiondrop.serving.settings import ROW_BYTES, Served, Setting

CONFIG = SimpleNamespace(visiondrop={"method": "visionzip", "tokens": 64, "most_tokens": 128})


def test_what_a_request_leaves_out_is_the_servers():
    served = Served.of(CONFIG)
    assert served.default == served.asked(None) == Setting("visionzip", 64) and served.most_tokens == 128
    assert served.asked({"tokens": 32}) == Setting("visionzip", 32)
    assert served.asked({"method": "vispruner"}) == Setting("vispruner", 64)
    assert served.asked({"method": "none"}) == Setting() == Served.of(SimpleNamespace()).default
    # Explicit amounts stand in place of the server's budget; a method brings its own options.
    amounts = {"dominant": 56, "contextual": 8}
    assert served.asked({"options": amounts}) == Setting("visionzip", None, (("contextual", 8), ("dominant", 56)))
    strict = Served(Setting("vispruner", 64, (("bits", 5),)))
    assert strict.asked({"tokens": 32}).options == (("bits", 5),) and strict.asked({"method": "scope"}).options == ()


def test_a_share_and_its_floor():
    assert Served.of(CONFIG).asked({"tokens": "22%", "min_tokens": 16}) == Setting("visionzip", "22%", (), 16)
    floored = Served(Setting("visionzip", "22%", (), 16))
    assert floored.asked({"method": "scope"}) == Setting("scope", "22%", (), 16)
    assert floored.asked({"tokens": 64}).min_tokens == 0


@pytest.mark.parametrize(
    "told, sentence",
    [
        ({"method": "visonzip"}, "did you mean 'visionzip'"),
        ({"token": 64}, "did you mean 'tokens'"),
        ({"most_tokens": 576}, "unknown entry 'most_tokens'"),  # the operator's alone
        ({"method": "vispruner", "options": {"ratio": 1}}, "has no option 'ratio'"),
        ({"options": [1]}, "mapping of options"),
        ({"options": {"dominant": {"a": 1}}}, "give text, a number or a list"),
        ({"min_tokens": -1}, "whole number of tokens"),
        ("visionzip", "give a mapping"),
    ],
)
def test_what_cannot_be_read_is_told(told, sentence):
    with pytest.raises(VisionDropError, match=sentence):
        Served.of(CONFIG).asked(told)


def test_equal_settings_have_one_spelling_and_others_never():
    first = Served.of(CONFIG).asked({"method": "visiondrop", "options": {"merge": "off", "layers": [1, 2]}})
    second = Served.of(CONFIG).asked({"options": {"layers": (1, 2), "merge": "off"}, "method": "visiondrop"})
    assert first == second and first.text == second.text and hash(first) == hash(second)
    others = [Setting("visionzip", 64), Setting("visionzip", "64%"), Setting("visionzip", 64, (("contextual", 8),))]
    assert len({setting.text for setting in [*others, first, Setting("visionzip", 64, (), 8)]}) == 5


def test_it_travels_as_bytes():
    setting = Setting("vispruner", "22%", (("bits", 5), ("name", "ö")), 16)
    row = setting.row()
    assert row.shape == (ROW_BYTES,) and Setting.from_row(row) == setting
    with pytest.raises(VisionDropError, match="leave options out"):
        Setting("visionzip", 64, (("name", "x" * ROW_BYTES),)).row()


def test_a_wrong_cap_is_told():
    with pytest.raises(VisionDropError, match="most_tokens=0"):
        Served.of(SimpleNamespace(visiondrop={"most_tokens": 0}))
