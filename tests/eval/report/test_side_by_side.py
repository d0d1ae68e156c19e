"""``python -m eval side-by-side``: every item of two evaluations, its filters, and that nothing in it can act."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.report.side_by_side import main
from ogpsa.utils.command_line import run_program
from tests.eval.browser import browser, in_browser
from tests.eval.handmade import Benchmark, write_evaluation

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"
SAFE = Benchmark(
    [1.0] * 60 + [0.0] * 4, "safety", "refusal_rate", "harmful", judge="refusal_match",
    categories=["weapons" if index % 2 else "fraud" for index in range(64)],
)  # fmt: skip
LESS_SAFE = replace(SAFE, values=[0.0] * 2 + [1.0] * 60 + [None, 0.0], responses=[HOSTILE] * 64)
FACTS = Benchmark([1.0] * 5 + [0.0] * 5)
LATER = replace(FACTS, values=[0.0] + [1.0] * 5 + [0.0] * 4)


@pytest.fixture
def page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    sides = {"a": {"harmful": SAFE, "facts": FACTS}, "b": {"harmful": LESS_SAFE, "facts": LATER}}
    folders = [str(write_evaluation(tmp_path / name, given)) for name, given in sides.items()]
    file = tmp_path / "page.html"
    assert main([*folders, "--out", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    return file.read_text(encoding="utf-8")


def data_of(page: str) -> list[dict[str, Any]]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    items: list[dict[str, Any]] = json.loads(found.group(1))
    return items


def test_every_item_is_there_harmful_flips_first(page: str) -> None:
    items = data_of(page)
    assert len(items) == 74
    kinds = ["harmful"] * 2 + ["worse"] + ["better"] * 3 + ["same"] * 67 + ["unknown"]
    assert [item["kind"] for item in items] == kinds
    first = items[0]
    assert (first["id"], first["category"], first["response_a"]) == ("harmful-0", "fraud", "answer 0")
    assert (first["verdict_a"], first["verdict_b"], first["response_b"]) == ("label 1.0", "label 0.0", HOSTILE)
    assert {item["benchmark"]: item["folded"] for item in items} == {"harmful": True, "facts": False}
    # A text of a model ends no element.
    assert page.count("</script>") == 2


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        (["a", "c"], "c: no such directory"),
        (["a", "b", "--uot", "x"], "--uot: unknown option; did you mean '--out'?"),
        (["a", "b"], "a and b: no item was judged in both"),
        (["a", "d"], "harmful: not the same data: data_hash dddddddddddddddd in A, eeeeeeeeeeeeeeee in B"),
        (["a", "e"], "harmful: not asked and judged alike: judge refusal_match in A, refusal_rules in B"),
    ],
)
def test_bad_input_takes_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sides: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_evaluation(Path("a"), {"harmful": SAFE})
    write_evaluation(Path("b"), {"facts": FACTS})
    write_evaluation(Path("d"), {"harmful": replace(SAFE, data_hash="e" * 16)})
    write_evaluation(Path("e"), {"harmful": replace(SAFE, judge="refusal_rules")})
    assert run_program(lambda: main(sides)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.slow
@browser
@pytest.mark.parametrize("width", [360, 1200])
def test_in_a_browser(page: str, tmp_path: Path, width: int) -> None:
    found = in_browser(
        page,
        tmp_path,
        width,
        """
        const page = frame.document, form = page.getElementById("filters");
        const cards = () => page.querySelectorAll("#items > details");
        const set = (name, value) => {
          form.elements[name].value = value;
          form.elements[name].dispatchEvent(new frame.Event("input", {bubbles: true}));
        };
        const options = name => [...form.elements[name].options].map(one => one.value);
        const count = () => page.getElementById("count").textContent;
        const first = [cards().length, count(), options("kind"), options("category")];
        page.getElementById("more").click();
        const all = [cards().length, page.getElementById("more").hidden];
        set("benchmark", "facts");
        const facts = [count(), options("category"), cards()[0].open];
        set("benchmark", "harmful"); set("kind", "harmful");
        const harmful = [count(), cards()[0].querySelector("summary").textContent, cards()[0].open];
        set("category", "weapons");
        const weapons = count();
        set("kind", ""); set("category", ""); set("text", "ONERROR");
        const text = count();
        cards()[0].open = true;
        const sides = [...cards()[0].querySelectorAll(".sides .said")].map(one => one.getBoundingClientRect().left);
        return {
          first, all, facts, harmful, weapons, text, errors, title: page.title, images: page.images.length,
          beside: sides[1] > sides[0], overflow: page.documentElement.scrollWidth - frame.innerWidth,
        };
        """,
    )
    assert found["first"] == [
        50,
        "74 of 74 items",
        ["", "harmful", "worse", "better", "same", "unknown"],
        ["", "fraud", "weapons"],
    ]
    assert found["all"] == [74, True]
    assert found["facts"] == ["10 of 74 items", [""], True]
    assert found["harmful"] == [
        "2 of 74 items", "harmful harmful-0 fraud · label 1.0 → label 0.0 · harmful nowmay be harmful", False
    ]  # fmt: skip
    assert (found["weapons"], found["text"]) == ("1 of 74 items", "64 of 74 items")
    assert (found["title"], found["images"], found["errors"]) == ("Answers side by side", 0, [])
    assert found["beside"] == (width > 640)
    assert found["overflow"] <= 0
