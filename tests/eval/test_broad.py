"""``eval=broad`` on a tiny model and mirrors of a few rows, with nobody to ask and no network."""

from pathlib import Path

import pytest

from eval import __main__ as command
from eval.benchmarks.definition import find_benchmarks
from eval.benchmarks.sources import load_rows
from eval.scores.artefacts import Artefacts, read_artefacts
from ogpsa.app.compose import compose_config
from ogpsa.runs.score_table import response_remarks
from ogpsa.utils.errors import EXIT_DONE
from tests.endpoint_server import Reply, Request, serve
from tests.eval.local_mirror import write_mirror
from tests.tiny import byte_tokenizer, save_tiny


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mirror(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def evaluated(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    folder = tmp_path_factory.mktemp("broad")
    save_tiny(folder / "model", byte_tokenizer(), max_position_embeddings=1024)
    given = ["eval=broad", "eval.limit=2", "eval.max_new_tokens=4", f"eval.data_dir={rows}"]
    assert command.main([f"checkpoint={folder / 'model'}", f"output={folder / 'out'}", *given]) == EXIT_DONE
    return read_artefacts(folder / "out")


def test_every_benchmark_is_asked_and_scored(evaluated: Artefacts) -> None:
    settings = compose_config(["eval=broad"]).eval
    assert list(evaluated.benchmarks) == settings.benchmarks
    for name, entry in evaluated.benchmarks.items():
        assert entry["error"] is None, name
        assert entry["n"] + entry["missing"] == 2, name


def test_responses_in_which_no_answer_can_be_read_are_counted(evaluated: Artefacts) -> None:
    entry = evaluated.benchmarks["math_500"]
    assert [row["detail"]["read,none"] for row in evaluated.verdicts("math_500")] == [0.0, 0.0]
    assert (entry["unread"], entry["n"], evaluated.benchmarks["xstest_safe"]["unread"]) == (2, 2, 0)
    assert "2 unread" in response_remarks([entry])


def test_each_row_says_its_category(evaluated: Artefacts, rows: Path) -> None:
    for name in evaluated.benchmarks:
        [benchmark] = find_benchmarks([name])
        kinds = {row["id"]: row.get(benchmark.category) for row in load_rows(benchmark, rows)}
        found = {row["id"]: row.get("category") for row in evaluated.generations(name)}
        assert found == {key: kinds[key] for key in found}, name
    kinds = {name: evaluated.generations(name)[0].get("category") for name in evaluated.benchmarks}
    without = {"advbench", "wildjailbreak_harmful", "wildjailbreak_benign", "safe_rlhf_heldout", "alpaca_answers"}
    assert {name for name, kind in kinds.items() if kind is None} == without
    assert kinds["xstest_safe"] == "homonyms"


def test_a_chat_server_is_asked_for_answers_in_words(rows: Path, tmp_path: Path) -> None:
    """Right where its one word for each kind of question is the known answer, and read wherever it is such a word."""
    words = {"Answer: X": "I weigh them.\nAnswer: A", "Yes or No": "Yes.", "\\boxed{}": "So $\\boxed{1.0}$."}
    names = ["mmlu_generate", "mmlu_pro", "gpqa_generate", "halueval_qa", "math_500"]

    def answer(request: Request, before: int) -> Reply:
        return Reply(next(word for asked, word in words.items() if asked in request.text))

    with serve(answer) as server:
        given = [f"eval.backend.base_url={server.url}", "eval.backend.name=server", "eval.backend.model=m"]
        lists = [f"eval.utility=[{','.join(names)}]", "eval.safety=[]", "eval.over_refusal=[]", "eval.reported=[]"]
        place = [f"eval.data_dir={rows}", f"output={tmp_path / 'out'}"]
        assert command.main(["eval=broad", *given, *lists, *place]) == EXIT_DONE
    found = read_artefacts(tmp_path / "out")
    right = {"mmlu_generate": "A", "mmlu_pro": "A", "gpqa_generate": "(A)", "halueval_qa": "yes", "math_500": "1"}
    for name in names:
        targets = [row["target"] for row in found.generations(name)]
        assert [row["value"] for row in found.verdicts(name)] == [float(target == right[name]) for target in targets]
        assert {row["detail"]["read,none"] for row in found.verdicts(name)} == {1.0}
    assert {name for name in names if found.benchmarks[name]["value"]} >= {*names} - {"gpqa_generate"}
    asked = {request.text for request in server.requests}
    assert "\n\nWhich colour has lamp 3?\n\nA. red\nB. green\n" in "".join(asked)
