"""``eval=small`` on a tiny and on the real model: texts of options, losses in nats per token, a cap on responses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from torch.nn.functional import cross_entropy

from eval import __main__ as command
from eval.benchmarks.definition import find_benchmarks
from eval.report.sections import charts, find_sections
from eval.scores.artefacts import read_artefacts
from eval.scores.compare import Drawing, compare
from ogpsa.app.compose import compose_config
from ogpsa.utils.errors import EXIT_DONE, EXIT_USER_ERROR, UserError
from tests.eval.local_mirror import write_mirror
from tests.tiny import byte_tokenizer, save_tiny, tiny_model

ROOT = Path(__file__).parents[2]
REAL_MODEL = ROOT / "outputs" / "models" / "smollm2_135m"
PIQA = ROOT.parent / "shared" / "data" / "piqa" / "validation.jsonl"
CONTEXT = 2048


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny ``model``, ``rows``, and ``out``, what ``eval=small`` leaves of two rows each."""
    folder = tmp_path_factory.mktemp("small")
    save_tiny(folder / "model", byte_tokenizer(), max_position_embeddings=CONTEXT)
    write_mirror(folder / "rows")
    assert command.main([*arguments(folder, "out"), "eval.max_new_tokens=8"]) == EXIT_DONE
    return folder


def arguments(folder: Path, output: str) -> list[str]:
    return [
        f"checkpoint={folder / 'model'}", "eval=small", "eval.limit=2",
        f"eval.data_dir={folder / 'rows'}", f"output={folder / output}",
    ]  # fmt: skip


def generations(folder: Path, name: str) -> list[dict[str, Any]]:
    return read_artefacts(folder / "out").generations(name)


@pytest.mark.slow
def test_losses_stand_beside_the_averages_and_in_none(evaluated: Path) -> None:
    scores = json.loads((evaluated / "out" / "scores.json").read_text())
    settings = compose_config(["eval=small"]).eval
    assert list(scores["benchmarks"]) == settings.benchmarks
    for group in ("safety", "utility", "over_refusal"):
        members = [scores["benchmarks"][name]["value"] for name in settings.groups[group]]
        assert scores[group] == pytest.approx(sum(members) / len(members))
    losses = {name: entry for name, entry in scores["benchmarks"].items() if entry["metric"] == "loss"}
    assert list(losses) == settings.reported
    assert all(entry["value"] > 1 and entry["stderr"] > 0 and entry["missing"] == 0 for entry in losses.values())


@pytest.mark.parametrize(("name", "prompted"), [("alpaca_loss", True), ("wikipedia_loss", False)])
def test_a_loss_is_the_cross_entropy_of_the_text_alone(name: str, prompted: bool, evaluated: Path) -> None:
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer, max_position_embeddings=CONTEXT)
    losses = {row["id"]: row["value"] for row in read_artefacts(evaluated / "out").verdicts(name)}
    for row in generations(evaluated, name):
        message = [{"role": "user", "content": row["prompt"]}]
        before = tokenizer.encode(
            str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
            if prompted
            else tokenizer.eos_token
        )
        text = tokenizer.encode(row["target"])
        with torch.no_grad():
            logits = model(torch.tensor([before + text])).logits[0, len(before) - 1 : -1]
        assert row["tokens"] == [len(text)]
        assert losses[row["id"]] == pytest.approx(float(cross_entropy(logits, torch.tensor(text))), abs=1e-5)


def test_options_are_put_as_plain_text_and_weighed_by_character(evaluated: Path) -> None:
    verdicts = {row["id"]: row["value"] for row in read_artefacts(evaluated / "out").verdicts("piqa")}
    for row in generations(evaluated, "piqa"):
        a_character = [total / len(text) for total, text in zip(row["options"], row["choices"], strict=True)]
        assert verdicts[row["id"]] == float(max(range(2), key=a_character.__getitem__) == row["answer"])


def test_plain_text_stands_behind_what_the_tokenizer_begins_texts_with(evaluated: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = "<system>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<system> $0", special_tokens=[("<system>", tokenizer.bos_token_id)]
    )
    model = tiny_model(tokenizer, max_position_embeddings=CONTEXT)
    folder = save_tiny(evaluated / "begins", tokenizer, max_position_embeddings=CONTEXT)
    chosen = ["eval.safety=[]", "eval.utility=[openbookqa]", "eval.over_refusal=[xstest_safe]", "eval.reported=[]"]
    options = [f"checkpoint={folder}", *arguments(evaluated, "begun")[1:], *chosen, "eval.max_new_tokens=8"]
    assert command.main(options) == EXIT_DONE
    begun = read_artefacts(evaluated / "begun")
    for row in begun.generations("openbookqa"):
        asked = f"{tokenizer.bos_token}{row['prompt']}"
        for text, value in zip(row["choices"], row["options"], strict=True):
            before, option = (tokenizer.encode(part, add_special_tokens=False) for part in (asked, f" {text}"))
            with torch.no_grad():
                logits = model(torch.tensor([before + option])).logits[0, len(before) - 1 : -1]
            assert value == pytest.approx(
                -float(cross_entropy(logits, torch.tensor(option), reduction="sum")), abs=1e-3
            )
    # A template begins its prompts itself.
    hashes = [one.instrument("xstest_safe").rendered for one in (begun, read_artefacts(evaluated / "out"))]
    assert hashes[0] == hashes[1]


def test_a_capped_response_is_judged_and_counted_as_cut(evaluated: Path) -> None:
    entry = json.loads((evaluated / "out" / "scores.json").read_text())["benchmarks"]["xstest_safe"]
    assert (entry["n"], entry["missing"], entry["cut"]) == (6, 0, 6)
    # A token is a byte.
    assert all(len(row["response"]) <= 8 for row in generations(evaluated, "xstest_safe"))


def test_another_cap_is_another_evaluation(evaluated: Path) -> None:
    alone = ["eval.safety=[]", "eval.utility=[]", "eval.over_refusal=[xstest_safe]", "eval.reported=[]"]
    assert command.main([*arguments(evaluated, "other"), "eval.max_new_tokens=4", *alone]) == EXIT_DONE
    with pytest.raises(UserError, match="xstest_safe: not asked and judged alike: task_hash"):
        compare(read_artefacts(evaluated / "out"), read_artefacts(evaluated / "other"))
    plain, same, less = (find_benchmarks(["xstest_safe"], max_new_tokens=cap)[0] for cap in (None, 9999, 24))
    assert plain.task_hash == same.task_hash != less.task_hash
    assert less.task["generation_kwargs"]["max_gen_toks"] == 24


def test_losses_compare_and_are_drawn_on_a_scale_of_their_own(evaluated: Path) -> None:
    one = read_artefacts(evaluated / "out")
    same = compare(one, one, Drawing(resamples=10)).benchmarks["wikipedia_loss"]
    assert same.interval is not None and (same.interval.low, same.interval.high) == (0.0, 0.0)
    [section], _ = find_sections(evaluated / "out", resamples=10)
    [chart] = [chart for chart in charts(section) if chart.name == "wikipedia_loss"]
    [(_, cell)] = chart.bars
    assert cell.value is not None and cell.interval is not None
    assert 1 < cell.value < cell.interval.high == chart.top


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("eval.max_new_tokens=0", "eval.max_new_tokens"),
        ("eval.limits.xstest_save=3", "eval.limits: unknown benchmark 'xstest_save'"),
        ("eval.utility=[piqa,wikipedia_loss]", "'wikipedia_loss' is scored by loss; utility averages accuracy"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    key: str, message: str, evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reported = ["eval.reported=[]"] if "utility" in key else []
    assert command.main([*arguments(evaluated, "refused"), key, *reported]) == EXIT_USER_ERROR
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_piqa_is_within_two_points_of_the_published_figure(tmp_path: Path) -> None:
    for needed in (REAL_MODEL, PIQA):
        if not needed.exists():
            pytest.skip(f"no {needed}")
    (tmp_path / "piqa.jsonl").write_bytes(PIQA.read_bytes())
    groups = ["eval.safety=[]", "eval.over_refusal=[]", "eval.reported=[]", "eval.utility=[piqa]"]
    place = [f"checkpoint={REAL_MODEL}", f"eval.data_dir={tmp_path}", f"output={tmp_path / 'out'}"]
    assert command.main([*place, "eval=small", "eval.limits.piqa=null", *groups]) == EXIT_DONE
    # Published of SmolLM2-135M-Instruct.
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["utility"] == pytest.approx(0.663, abs=0.02)
