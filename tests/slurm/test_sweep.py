"""Sweep files, grids and scripts: what needs no cluster."""

import os
import shlex
import shutil
import subprocess
import sys
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import yaml

from ogpsa.app.compose import compose_run
from ogpsa.config.stage import StageName
from ogpsa.utils.command_line import run_program
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import exclusive, write_json
from slurm import front, grid, submit
from slurm.squeue import Task, queue_of, read_words, write_words
from slurm.status import error_of, read_events, requeues_of, seconds_of, state_of, status
from slurm.submit import check_rows, node_count, option_problems, processes_per_node
from slurm.sweep import Line, Record, Sweep, check_edits, compose_rows, find_sweep, read_lines
from tests.program import ROOT

SCRIPTS = ["submit.sh", "status.sh", "sync_wandb.sh"]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path / "study.txt", tmp_path / "outputs" / "study")


def written(sweep: Sweep, *lines: str) -> Sweep:
    sweep.file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return sweep


def test_a_file_holds_a_row_a_line_quoted_as_in_a_shell(sweep: Sweep) -> None:
    written(sweep, "# a comment", "", "method=ogpsa 'data.safety=/my data/rows.jsonl'", "seed=1")
    found = read_lines(sweep.file)
    assert [(line.number, line.overrides) for line in found] == [
        (3, ("method=ogpsa", "data.safety=/my data/rows.jsonl")),
        (4, ("seed=1",)),
    ]
    assert written(sweep, found[0].text) and read_lines(sweep.file)[0].overrides == found[0].overrides


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("seed=1 'stage=sft\n", ":1: no closing quotation; quote as in a shell"),
        ("# nothing\n", ": holds no row; expected one run's overrides a line"),
        (
            "\udcff\n",
            ": not a UTF-8 text file; expected one row of overrides a line (line 1 holds the byte 0xFF: save it as "
            "UTF-8, for example by iconv -f WINDOWS-1252 -t UTF-8)",
        ),
    ],
)
def test_an_invalid_row_is_refused(sweep: Sweep, content: str, problem: str) -> None:
    sweep.file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as refused:
        read_lines(sweep.file)
    assert refused.value.problems == (f"{sweep.file}{problem}",)


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbfseed=1\nseed=2\n", b"seed=1\r\nseed=2\r\n\r\n", b"seed=1\n\n\nseed=2"],
    ids=["mark of byte order", "CRLF", "empty lines"],
)
def test_a_file_of_another_editor_holds_the_same_rows(sweep: Sweep, content: bytes) -> None:
    sweep.file.write_bytes(content)
    assert [line.overrides for line in read_lines(sweep.file)] == [("seed=1",), ("seed=2",)]


def test_separators_inside_a_quoted_value_do_not_end_a_row(sweep: Sweep) -> None:
    sweep.file.write_text("'model.path=one\u2028two\x85three' seed=1\n", encoding="utf-8")
    [line] = read_lines(sweep.file)
    assert line.overrides == ("model.path=one\u2028two\x85three", "seed=1")


def test_a_row_is_named_by_what_it_asks_for(sweep: Sweep) -> None:
    def names(*lines: str) -> list[str]:
        return [row.name for row in compose_rows(sweep, read_lines(written(sweep, *lines).file))]

    first, second = names("method.rank=2 seed=1", "method.rank=4")
    assert names("method.rank=4", "seed=1 method.rank=2") == [second, first]
    assert names("# more", "method.rank=4", "method.rank=8", "method.rank=2 seed=1 tracker=none")[::2] == [
        second,
        first,
    ]


def test_a_row_runs_in_the_sweeps_folder_and_group_unless_it_says_otherwise(sweep: Sweep) -> None:
    written(sweep, "seed=1", f"seed=2 hydra.run.dir={sweep.folder}/own tracker.group=mine")
    one, two = compose_rows(sweep, read_lines(sweep.file))
    assert one.directory == sweep.folder / one.name
    assert two.directory == sweep.folder / "own"
    assert (one.config.tracker.group, two.config.tracker.group) == ("study", "mine")


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["seed=1", "method=ogpza"], ":2: method: 'ogpza' is not an option"),
        (["seed=1", "tracker=none seed=1"], ":2: the same run as line 1; drop one"),
        (
            ["seed=1 hydra.run.dir=/tmp/x", "seed=2 hydra.run.dir=/tmp/x"],
            ":2: would run in the same directory as line 1",
        ),
        (["method.rank=2,4"], ":1: method.rank: found 2,4, a sweep"),
    ],
)
def test_an_invalid_row_is_refused_by_its_line(sweep: Sweep, lines: list[str], problem: str) -> None:
    with pytest.raises(UserError) as refused:
        compose_rows(sweep, read_lines(written(sweep, *lines).file))
    assert refused.value.problems[0].startswith(f"{sweep.file}{problem}")


def test_the_closest_sweep_is_named(tmp_path: Path) -> None:
    with chdir(ROOT), pytest.raises(UserError, match=r"SWEEP: found 'rank_k'.*did you mean 'rank_and_k'\?"):
        find_sweep("rank_k")


def ran(sweep: Sweep, *lines: str) -> dict[str, Record]:
    """Records of rows that have begun."""
    rows = compose_rows(sweep, read_lines(written(sweep, *lines).file))
    for row in rows:
        row.directory.mkdir(parents=True)
        (row.directory / "config.yaml").touch()
    return {row.name: Record(row.name, row.line, row.directory) for row in rows}


def test_an_edited_row_that_ran_is_refused_with_both_versions(sweep: Sweep) -> None:
    records = ran(sweep, "method.rank=2 seed=1", "method.rank=4 seed=1")
    rows = compose_rows(sweep, read_lines(written(sweep, "method.rank=2 seed=1", "method.rank=8 seed=1").file))
    with pytest.raises(UserError) as refused:
        check_edits(sweep, rows, records, [])
    [problem] = refused.value.problems
    assert problem.startswith(
        f"{sweep.file}:2: edited after it ran; it was: method.rank=4 seed=1; it is: method.rank=8"
    )


def test_the_directory_of_a_row_that_ran_is_refused_with_both_versions(sweep: Sweep) -> None:
    records = ran(sweep, f"seed=1 hydra.run.dir={sweep.folder}/a")
    moved = [*read_lines(written(sweep, f"seed=1 hydra.run.dir={sweep.folder}/b").file)]
    with pytest.raises(UserError) as refused:
        check_edits(sweep, compose_rows(sweep, moved), records, [])
    assert refused.value.problems[0].startswith(
        f"{sweep.file}:1: hydra.run.dir: edited after it ran; it was: {sweep.folder}/a; it is: {sweep.folder}/b; "
    )
    (sweep.folder / "a").rename(sweep.folder / "b")
    check_edits(sweep, compose_rows(sweep, moved), records, [])


@pytest.mark.slow
def test_rows_may_be_appended_reordered_and_taken_out(sweep: Sweep) -> None:
    records = ran(sweep, "method.rank=2 seed=1", "method.rank=4 seed=1")
    for lines in (
        ["method.rank=4 seed=1", "method.rank=2 seed=1", "method.rank=8 seed=1"],
        ["seed=1 method.rank=4"],
    ):
        check_edits(sweep, compose_rows(sweep, read_lines(written(sweep, *lines).file)), records, [])


def test_a_removed_row_does_not_block_a_submission(sweep: Sweep) -> None:
    records = ran(sweep, "method.rank=2 seed=1")
    later = compose_rows(sweep, read_lines(written(sweep, "method.rank=4 seed=1").file))
    gone = {name: replace(record, gone=True) for name, record in records.items()}
    check_edits(sweep, later, gone, [])


def test_a_sweeps_name_is_one_that_paths_and_overrides_can_hold(tmp_path: Path) -> None:
    (tmp_path / "a,b.txt").write_text("seed=1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"found 'a,b.txt'; expected a name of letters, digits, dots, - and _"):
        find_sweep(str(tmp_path / "a,b.txt"))


def test_two_files_of_one_name_do_not_share_results(sweep: Sweep, tmp_path: Path) -> None:
    sweep.remember([])
    other = Sweep(tmp_path / "elsewhere" / "study.txt", sweep.folder)
    other.file.parent.mkdir()
    written(sweep, "seed=1")
    written(other, "seed=2")
    with pytest.raises(UserError, match=r"holds the rows of .*study\.txt; rename"):
        other.records()


@pytest.mark.parametrize("moved", ["project", "file"])
def test_what_was_moved_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: str) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    sweep = written(Sweep(Path("study.txt"), Path("outputs/study")), "seed=1", "seed=2")
    rows = compose_rows(sweep, read_lines(sweep.file))
    sweep.remember([Record(row.name, row.line, row.directory.absolute()) for row in rows])
    if moved == "project":
        project.rename(tmp_path / "new")
        monkeypatch.chdir(tmp_path / "new")
    else:
        Path("sweeps").mkdir()
        sweep = Sweep(sweep.file.rename("sweeps/study.txt"), sweep.folder)
    records = sweep.records()
    assert [records[row.name].directory for row in rows] == [Path.cwd() / row.directory for row in rows]
    check_edits(sweep, compose_rows(sweep, read_lines(sweep.file)), records, [row.name for row in rows])


def test_records_are_read_as_they_were_written(sweep: Sweep) -> None:
    record = Record("old", Line(3, ("a='b c'", "seed=1")), sweep.folder / "old", gone=True)
    sweep.remember([record])
    assert sweep.records() == {"old": record}


def test_a_folder_with_odd_characters_is_the_runs_folder(sweep: Sweep) -> None:
    written(sweep, f"seed=1 'hydra.run.dir=\"{sweep.folder}/it=s, odd\"'")
    [row] = compose_rows(sweep, read_lines(sweep.file))
    assert row.directory == sweep.folder / "it=s, odd"
    assert compose_run(list(row.overrides))[1] == row.directory


def test_a_row_that_never_began_may_be_edited_unless_it_is_queued(sweep: Sweep) -> None:
    record = Record("old", Line(1, ("method.rank=4", "seed=1")), sweep.folder / "old")
    rows = compose_rows(sweep, read_lines(written(sweep, "method.rank=8 seed=1").file))
    check_edits(sweep, rows, {"old": record}, [])
    with pytest.raises(UserError, match="edited after it was queued"):
        check_edits(sweep, rows, {"old": record}, ["old"])


def test_a_row_that_conf_makes_another_is_refused(sweep: Sweep) -> None:
    record = Record("old", Line(1, ("seed=1",)), sweep.folder / "old")
    (sweep.folder / "old").mkdir(parents=True)
    (sweep.folder / "old" / "config.yaml").touch()
    rows = compose_rows(sweep, read_lines(written(sweep, "seed=1").file))
    with pytest.raises(UserError, match=r":1: conf/ has changed since this row ran: it was old, it is tiny-"):
        check_edits(sweep, rows, {"old": record}, [])


@pytest.mark.parametrize(
    ("row", "nodes", "environment", "problem"),
    [
        ("method=baseline data=files data.safety=gone.jsonl", 1, {}, "data.safety: gone.jsonl: no such file"),
        ("method=baseline eval.data_dir=gone", 1, {}, "eval.data_dir: gone: no such fo"),
        ("method=baseline", 2, {}, "distributed.name: found single with --nodes=2; allowed: ddp, fsdp2, zero2, zero3"),
        ("distributed=ddp", 1, {}, "OGPSA_PROCESSES: not set; say in slurm/env.sh how many processes a node has"),
        ("distributed=ddp", 1, {"OGPSA_PROCESSES": "3"}, "stage.sft.batch_size: found 16; allowed is a multiple of"),
        ("distributed=fsdp2_two_nodes", 3, {}, "distributed.processes: found 16, which 3 nodes cannot share evenly"),
        (
            "distributed=fsdp2_two_nodes",
            1,
            {"OGPSA_PROCESSES": "8"},
            "distributed.processes: found 16 with --nodes=1, 16 on a node; allowed are 8 (OGPSA_PROCESSES); ask for "
            "--nodes=2",
        ),
        ("method=baseline", 1, {"OGPSA_GPU_MEMORY_GB": "0.001"}, "does not fit: "),
    ],
)
def test_what_could_not_run_is_refused_before_anything_is_queued(
    sweep: Sweep, row: str, nodes: int, environment: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OGPSA_PROCESSES", "OGPSA_GPU_MEMORY_GB"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    rows = compose_rows(sweep, read_lines(written(sweep, "method=baseline seed=9", row).file))
    with chdir(sweep.file.parent), pytest.raises(UserError) as refused:
        check_rows(sweep, rows[1:], nodes)
    assert refused.value.problems[0].startswith(f"{sweep.file}:2: {problem}")


def test_two_nodes_of_eight_are_the_presets(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OGPSA_PROCESSES", "8")
    small = "stage.sft.micro_batch_size=1 stage.dpo.micro_batch_size=2"
    [row] = compose_rows(sweep, read_lines(written(sweep, f"distributed=fsdp2_two_nodes {small}").file))
    check_rows(sweep, [row], 2)
    assert processes_per_node(row, 2) == 8


@pytest.mark.parametrize(
    ("options", "count"),
    [([], 1), (["--nodes=2"], 2), (["--nodes", "3"], 3), (["-N4"], 4), (["-N", "5"], 5), (["--nodes=2", "-N", "1"], 1)],
)
def test_nodes_are_read_as_sbatch_reads_them(options: list[str], count: int) -> None:
    assert node_count(options) == count


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--array=1-3"], "--array: set by submit.sh; it is made from the rows"),
        (["-a1-3"], "--array: set by submit.sh"),
        (["--arr", "1"], "--array: set by submit.sh"),
        (["-J", "mine"], "--job-name: set by submit.sh"),
        (["--ntasks-per-node=8"], "--ntasks-per-node: set by submit.sh"),
        (["--signal=USR1@5"], "--signal: set by submit.sh; OGPSA_WARNING_SECONDS sets it"),
        (["-V"], "--version: set by submit.sh; type sbatch --version"),
        (["-W"], "--wait: set by submit.sh; slurm/status.sh tells what is done"),
        (["other.txt"], "'other.txt' belongs to no option of sbatch"),
        (["--time=1", "other.txt"], "'other.txt' belongs to no option of sbatch"),
    ],
)
def test_options_that_would_break_a_sweep_are_refused(options: list[str], problem: str) -> None:
    assert option_problems(options)[0].startswith(problem)


def test_the_rest_of_sbatchs_options_is_the_users() -> None:
    given = ["--time", "8:00:00", "-p", "gpu", "--gpus-per-node=8", "--exclusive", "-A", "us", "--nodes=2", "-c8"]
    assert option_problems(given) == []


@pytest.mark.parametrize("options", [["--nodes=1-2"], ["--nodes"], ["-N0"]])
def test_another_number_of_nodes_is_refused(options: list[str]) -> None:
    with pytest.raises(UserError, match="--nodes: found"):
        node_count(options)


def test_a_grid_is_every_combination(capsys: pytest.CaptureFixture[str]) -> None:
    assert grid.main(["method.rank=2,4", "stage=sft", "method.refresh_every=5,10"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "method.rank=2 stage=sft method.refresh_every=5",
        "method.rank=2 stage=sft method.refresh_every=10",
        "method.rank=4 stage=sft method.refresh_every=5",
        "method.rank=4 stage=sft method.refresh_every=10",
    ]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2", ["1", "2"]),
        ("[a,b],{sft: 1,dpo: 2}", ["[a,b]", "{sft:1,dpo:2}"]),
        ("'a,b',c", ["'a,b'", "c"]),
        (r"a\,b,c", [r"a\,b", "c"]),
        ("", [""]),
        ("range(1,4)", ["1", "2", "3"]),
        ("choice(a,b)", ["a", "b"]),
        ("glob(q*,exclude=*s)", ["quick"]),
    ],
)
def test_values_are_separated_as_hydra_separates_them(
    text: str, values: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert grid.main([f"eval={text}"]) == 0
    printed = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == [[f"eval={value}"] for value in values]


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("rank", "invalid override 'rank'"),
        ("a=1,,2", "invalid override 'a=1,,2'"),
        ("a=interval(0,1)", "BasicSweeper does not support sweep type : INTERVAL_SWEEP"),
    ],
)
def test_an_invalid_grid_is_refused(word: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(lambda: grid.main([word])) == 2
    assert capsys.readouterr().err.startswith(f"error: {problem}")


def test_a_grid_adds_to_a_file_what_it_lacks(tmp_path: Path) -> None:
    file = tmp_path / "study.txt"
    file.write_text("# mine\nseed=1 method.rank=2", encoding="utf-8")
    assert grid.main(["method.rank=2,4", "seed=1", "--out", str(file)]) == 0
    assert file.read_text(encoding="utf-8") == "# mine\nseed=1 method.rank=2\nmethod.rank=4 seed=1\n"


def test_a_tasks_words_may_hold_anything_a_command_line_can(tmp_path: Path) -> None:
    words = ["name", "", "a b", "'quoted' \"twice\"", "two\nlines", "ünïcode"]
    write_words(tmp_path / "0", words)
    assert read_words(tmp_path / "0") == words


def record_in(sweep: Sweep, *events: str, log: str = "", printed: str = "") -> Record:
    record = Record("row", Line(1, ("seed=1",)), sweep.folder / "row")
    record.directory.mkdir(parents=True)
    sweep.events("row").parent.mkdir(parents=True)
    sweep.events("row").write_text("".join(f"{event}\n" for event in events), encoding="utf-8")
    (record.directory / "run.log").write_text(log, encoding="utf-8")
    sweep.logs.mkdir()
    (sweep.logs / "7_0.log").write_text(printed, encoding="utf-8")
    sweep.remember([record])
    written(sweep, "seed=1", "seed=2")
    return record


STARTED = "100\tstarted\t7_0\tn1\t0\t"
QUEUED = "90\tqueued\t7_0\t\t0\t"


@pytest.mark.parametrize(
    ("events", "task", "state"),
    [
        ([], Task("row", "7_0", "PENDING", "", "Priority"), "waiting"),
        ([STARTED], Task("row", "7_0", "RUNNING", "n1", "None"), "running"),
        ([STARTED, "160\trequeued\t7_0\tn1\t0\t"], Task("row", "7_0", "PENDING", "", "BeginTime"), "requeued"),
        ([STARTED, "160\tfailed\t7_0\tn1\t0\texit code 1"], None, "failed"),
        ([STARTED, "160\tended\t7_0\tn1\t0\t"], None, "cancelled"),
        ([STARTED, "160\tended\t7_0\tn1\t0\t"], Task("row", "7_0", "PENDING", "", "BeginTime"), "requeued"),
        ([STARTED], None, "stopped"),
        ([], None, "not queued"),
        # The task died before its first word; or it was queued again.
        ([QUEUED], None, "stopped"),
        (
            [STARTED, "160\tended\t7_0\tn1\t0\t", QUEUED.replace("7_0", "8_0")],
            Task("row", "8_0", "PENDING", "", ""),
            "waiting",
        ),
        # It spoke before submit.sh noted that it was queued.
        ([STARTED, "160\trequeued\t7_0\tn1\t0\t", QUEUED], Task("row", "7_0", "PENDING", "", "x"), "requeued"),
    ],
)
def test_a_rows_state_is_the_queues_word_or_its_last_event(
    sweep: Sweep, events: list[str], task: Task | None, state: str
) -> None:
    record = record_in(sweep, *events)
    assert state_of(record, read_events(sweep.events("row")), task) == state


def test_a_row_with_a_result_is_done_whatever_else_is_said(sweep: Sweep) -> None:
    record = record_in(sweep, STARTED, "160\tfailed\t7_0\tn1\t0\t")
    write_json(record.directory / "metrics.json", {})
    assert state_of(record, read_events(sweep.events("row")), None) == "done"


def test_time_and_requeues_are_of_all_tasks(sweep: Sweep) -> None:
    record = record_in(
        sweep, STARTED, "160\trequeued\t7_0\tn1\t0\t", "200\tstarted\t7_0\tn2\t1\t", "210\trequeued\t7_0\tn2\t1\t",
        "300\tstarted\t7_0\tn2\t2\t", "torn li",
    )  # fmt: skip
    events = read_events(sweep.events("row"))
    os.utime(record.directory / "run.log", (305, 305))
    assert seconds_of(record, events, None) == 60 + 10 + 5
    assert seconds_of(record, events, 320) == 60 + 10 + 20
    assert requeues_of(events) == 2


def test_the_last_error_is_the_programs_own(sweep: Sweep) -> None:
    printed = (
        "slurm: task 7_0, start 1, on n1\nOSError: of an earlier start\nslurm: task 7_0, start 2, on n1\n"
        "Traceback (most recent call last):\n  File x\nValueError: rows\nsrun: error: n1: task 0: Exited\n"
        "    raise ChildFailedError(\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n"
    )
    record_in(sweep, STARTED, "160\tfailed\t7_0\tn1\t0\texit code 1", printed=printed)
    assert error_of(sweep, read_events(sweep.events("row"))) == "ValueError: rows; exit code 1"


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        (
            "torch.OutOfMemoryError: 8 GiB\nRuntimeError: [1] Connection closed by peer\n",
            "torch.OutOfMemoryError: 8 GiB",
        ),
        ("RuntimeError: [1] Connection closed by peer\n", "RuntimeError: [1] Connection closed by peer"),
        (
            "slurmstepd: error: Detected 1 oom_kill event\nsrun: error: n1\n",
            "slurmstepd: error: Detected 1 oom_kill event",
        ),
    ],
)
def test_the_error_of_a_process_that_lost_another_counts_only_alone(sweep: Sweep, printed: str, told: str) -> None:
    record_in(sweep, STARTED, "160\tfailed\t7_0\tn1\t0\texit code 1", printed=f"slurm: task 7_0\n{printed}")
    assert error_of(sweep, read_events(sweep.events("row"))) == f"{told}; exit code 1"


def test_a_task_that_died_before_its_first_word_is_listed_with_its_log(sweep: Sweep) -> None:
    record_in(sweep, QUEUED, printed="slurm: task.sh: No such file or directory\nerror: it could not start\n")
    [_, row, _, _] = status(sweep, [], True, 190.0).splitlines()
    assert row.split()[:2] == ["row", "stopped"]
    assert "it could not start; ended without a word" in row and row.endswith(str(sweep.logs / "7_0.log"))


def test_a_row_that_waits_has_nothing_to_tell_but_why(sweep: Sweep) -> None:
    record_in(sweep)
    lines = status(sweep, [Task("row", "7_0", "PENDING", "", "Priority")], False, 190.0).splitlines()
    assert lines[:2] == ["row  state    time     last error", "row  waiting  0:00:00  Priority"]


def test_without_squeue_nothing_is_claimed_of_a_row_that_had_begun(sweep: Sweep) -> None:
    record_in(sweep, STARTED)
    assert status(sweep, None, False, 190.0).splitlines()[1].split()[:2] == ["row", "unknown"]


def test_a_damaged_result_affects_its_own_row_alone(sweep: Sweep) -> None:
    record = record_in(sweep, STARTED)
    (record.directory / "metrics.json").write_text("{", encoding="utf-8")
    assert "metrics.json: not readable as JSON" in status(sweep, [], False, 190.0)


@pytest.mark.parametrize("stage", get_args(StageName))
def test_the_table_says_where_a_row_is_and_what_is_not_submitted(sweep: Sweep, stage: str) -> None:
    record_in(sweep, STARTED, log=f"10:00:00 {stage} 3/100: loss 1\n10:00:01 {stage} 4/100: loss 1, about 9 s left\n")
    lines = status(sweep, [Task("row", "7_0", "RUNNING", "n1", "None")], False, 190.0)
    gap = " " * len(stage)
    assert lines.splitlines() == [
        f"row  state    step{gap}    time     requeues  node",
        f"row  running  {stage} 4/100  0:01:30  0         n1",
        "1 running",
        f"1 of {sweep.file} not submitted yet: slurm/submit.sh {sweep.file}",
    ]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_needs_no_environment(script: str, option: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "slurm" / script, option],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage:")


def test_help_is_ours_wherever_it_is_asked_for(tmp_path: Path) -> None:
    command = [ROOT / "slurm" / "submit.sh", "study.txt", "--time=1", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: slurm/submit.sh SWEEP")


def programs(folder: Path, **scripts: str) -> Path:
    """A folder of shell programs."""
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def test_tasks_are_told_by_their_comment_whatever_other_jobs_say(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = sweep.submissions.resolve() / "first"
    submission.mkdir(parents=True)
    write_words(submission / "3", ["row", "events", "1", "/runs/row/metrics.json"])
    lines = f"7|3|RUNNING|n1|None|{submission}\n8|N/A|RUNNING|n1|None|two\nlines \377\n9|1|PENDING||Priority|(null)\n"
    monkeypatch.setenv("PATH", str(programs(tmp_path / "bin", squeue=f"/bin/cat {tmp_path}/queue")))
    (tmp_path / "queue").write_bytes(lines.encode("latin-1"))
    assert queue_of(sweep)[0] == [Task("row", "7_3", "RUNNING", "n1", "None")]
    (submission / "3").unlink()
    with pytest.raises(UserError, match=r"first/3: removed, but job 7_3 still needs it; scancel 7$"):
        queue_of(sweep)[0]


def test_a_row_that_another_sweep_has_queued_is_left_out(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(sweep, "seed=1 tracker=none hydra.run.dir=outputs/shared/one", "seed=2 tracker=none")
    submission = Sweep(tmp_path / "other.txt", tmp_path / "outputs" / "other").submissions / "first"
    submission.mkdir(parents=True)
    write_words(submission / "0", ["row", "events", "1", str(tmp_path / "outputs/shared/one/metrics.json")])
    # The second task's file was removed; it is not for this sweep to say so.
    lines = "".join(f"7|{index}|PENDING||Priority|{submission}\n" for index in (0, 1))
    (tmp_path / "queue").write_text(lines, encoding="utf-8")
    monkeypatch.setenv("PATH", str(programs(tmp_path / "bin", squeue=f"/bin/cat {tmp_path}/queue")))
    assert submit.main([sweep.file.name, "--test-only"]) == 0
    assert capsys.readouterr().out == "2 rows: 0 done, 1 queued or running, 1 to queue\n"
    assert queue_of(sweep)[0] == []


def test_a_row_that_runs_is_not_checked_when_others_are_submitted(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = written(Sweep(Path("study.txt"), Path("outputs/study")), "seed=1 tracker=none", "seed=2 tracker=none")
    rows = compose_rows(sweep, read_lines(sweep.file))
    submission = sweep.submissions.resolve() / "first"
    submission.mkdir(parents=True)
    write_words(submission / "0", [rows[0].name, "events", "1", str(rows[0].directory.absolute() / "metrics.json")])
    # Begun with other code, which check_rows refuses.
    write_json(rows[0].directory / "provenance.json", {"rests_on": {"code/ogpsa/training": "other"}})
    settings = yaml.safe_dump(rows[0].config.model_dump(mode="json"))
    (rows[0].directory / "config.yaml").write_text(settings, encoding="utf-8")
    (tmp_path / "queue").write_text(f"7|0|RUNNING|n1|None|{submission}\n", encoding="utf-8")
    monkeypatch.setenv("PATH", str(programs(tmp_path / "bin", squeue=f"/bin/cat {tmp_path}/queue")))
    assert submit.main([sweep.file.name, "--test-only"]) == 0
    assert capsys.readouterr().out == "2 rows: 0 done, 1 queued or running, 1 to queue\n"
    # It ended, and would be queued: its own directory is looked at, though it differs from row 2 in the seed alone.
    (tmp_path / "queue").write_text("", encoding="utf-8")
    written(sweep, "seed=2 tracker=none", "seed=1 tracker=none")
    assert run_program(lambda: submit.main([sweep.file.name, "--test-only"])) == 2
    assert "study.txt:2: " in (said := capsys.readouterr().err) and "began with other inputs" in said


def test_what_sbatch_queued_is_noted(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "50%a"
    folder.mkdir()
    monkeypatch.chdir(folder)
    sweep = written(Sweep(Path("study.txt"), Path("outputs/study")), "method=baseline tracker=none")
    sbatch = f'echo "$@" > {tmp_path}/asked; echo 7'
    monkeypatch.setenv("PATH", str(programs(tmp_path / "bin", squeue="", scontrol="", sbatch=sbatch)))
    assert submit.main([sweep.file.name]) == 0
    [record] = sweep.records().values()
    assert state_of(record, read_events(sweep.events(record.name)), None) == "stopped"
    # SLURM fills in %a by itself.
    assert f"--output={tmp_path}/50%%a/outputs/study/slurm/logs/%A_%a.log" in (tmp_path / "asked").read_text()


def test_an_answer_of_sbatch_without_a_job_is_said(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(sweep, "method=baseline tracker=none")
    monkeypatch.setenv("PATH", str(programs(tmp_path / "bin", squeue="", scontrol="", sbatch="echo Usage: sbatch")))
    with chdir(tmp_path):
        assert run_program(lambda: submit.main([sweep.file.name])) == 2
    assert capsys.readouterr().err == "error: sbatch: found no job's number in its answer: Usage: sbatch\n"


def test_a_folder_without_a_sweep_has_no_front(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(lambda: front.main([str(sweep.folder)])) == 2
    assert capsys.readouterr().err == f"error: FOLDER: {sweep.folder}: no sweep was submitted here\n"
    assert not sweep.folder.exists()


def test_a_front_that_another_row_refreshes_is_left_to_it(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.remember([])
    with exclusive(sweep.folder / "slurm" / "front.lock", ""):
        assert front.main([str(sweep.folder)]) == 0
    assert "another process refreshes it" in capsys.readouterr().out
    # That one looks again.
    assert (sweep.folder / "slurm" / "front.due").exists()
    assert run_program(lambda: front.main([str(sweep.folder)])) == 2
    assert not (sweep.folder / "slurm" / "front.due").exists()


def test_a_cluster_without_slurm_is_one_line(tmp_path: Path, small: list[str]) -> None:
    (tmp_path / "study.txt").write_text(" ".join(small), encoding="utf-8")
    # An empty folder has no squeue.
    (tmp_path / "bin").mkdir()
    for name in ("bash", "dirname", "env"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    environment = {"PATH": str(tmp_path / "bin"), "OGPSA_PYTHON": sys.executable, "OGPSA_ENVIRONMENT": "/dev/null"}
    done = subprocess.run(
        [ROOT / "slurm" / "submit.sh", "study.txt"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = "error: squeue: no such program here; type this on a machine that has SLURM\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_test_only_needs_no_slurm(
    sweep: Sweep, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(sweep, shlex.join([*small, "stage=sft"]), shlex.join([*small, "stage=sft", "seed=1"]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submit.main([str(sweep.file), "--test-only"]) == 0
    said = "2 rows: 0 done, what is queued is not known (squeue: {}), 2 to queue\n"
    missing = "no such program here; type this on a machine that has SLURM"
    assert capsys.readouterr().out == said.format(missing)
    monkeypatch.setenv("PATH", str(programs(tmp_path / "bin", squeue="echo squeue: error: no contact >&2; exit 1")))
    assert submit.main([str(sweep.file), "--test-only"]) == 0
    assert capsys.readouterr().out == said.format("no contact")
    written(sweep, "stage=stf")
    assert run_program(lambda: submit.main([str(sweep.file), "--test-only"])) == 2
    assert run_program(lambda: submit.main([str(sweep.file)])) == 2
