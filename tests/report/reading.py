"""What tests read out of a page."""

import json
import re
from html.parser import HTMLParser

import plotly.graph_objects as go

HOSTILE = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """Tags with their attributes, the text outside scripts and styles, and the scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.scripts, self.pieces, self._inside = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.pieces.append(data)

    @property
    def text(self) -> str:
        """All text, with one space between words."""
        return " ".join(" ".join(self.pieces).split(" ")).replace("\n", " ")

    def count(self, wanted: str) -> int:
        return sum(tag == wanted for tag, _ in self.tags)

    def plots(self) -> list[dict]:
        """The specifications of the interactive figures."""
        return json.loads(self.scripts[0])

    def places(self) -> list[dict]:
        """The attributes of the places for these figures."""
        return [attributes for _, attributes in self.tags if attributes.get("class") == "plot"]

    def buttons(self) -> list[str]:
        """The keys of the legends, in order."""
        return [attributes["data-shows"] for tag, attributes in self.tags if tag == "button"]


def check_plots(reader: Reader) -> list[dict]:
    """Every figure is one that Plotly understands, has a place with words for it, and a legend that fits."""
    painted = re.sub(r'"@([\w-]+)(/[\d.]+)?"', '"#123456"', reader.scripts[0])
    for specification in json.loads(painted):
        go.Figure({name: specification[name] for name in ("data", "layout")})  # raises
    places = reader.places()
    assert [place["id"] for place in places] == [f"panel-{i}" for i in range(len(reader.plots()))]
    assert all(place["role"] == "img" and len(place["aria-label"]) > 30 for place in places)
    assert {trace["legendgroup"] for each in reader.plots() for trace in each["data"]} - {""} <= set(
        reader.buttons()
    )
    return reader.plots()


def check_hostile(page: str, name: str) -> Reader:
    """What is hostile in a run appears as text only."""
    reader = Reader(page)
    assert HOSTILE not in page and "<img" not in page.split('<script type="application/json"')[0]
    assert reader.count("script") == 3 and reader.count("img") == 0
    assert not any(key.startswith("on") for _, attributes in reader.tags for key in attributes)
    assert HOSTILE in "".join(reader.pieces) and name in "".join(reader.pieces)
    assert "<" not in reader.scripts[0] and "onerror" not in reader.scripts[0]
    return reader
