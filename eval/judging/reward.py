"""A judge of the evaluation as a reward of the RL stage: its values, each paid for once."""

from collections.abc import Sequence

from eval.judging.judge import Item, endpoint_judges, judge_hash, load_judge
from eval.judging.verdicts import check_judge, judge_responses, open_journal, opener
from eval.judging.weights import weights_memory
from ogpsa.config import Judges, ModelEndpoint, RewardServices, Rollout, Scorer
from ogpsa.utils.endpoint import Budget, Endpoint
from ogpsa.utils.errors import UserError


def judge_scorer(name: str, endpoint: ModelEndpoint, services: RewardServices) -> Scorer:
    """The judge called ``name`` as a scorer of rollouts: its value in [0, 1]; None where it says none.

    What it was asked and what it said is kept in ``services.folder``, under a hash of what it was shown: a resumed run
    reads the same values and pays for nothing twice. The cap on calls is for one session, as an evaluation's. A
    judge's own weights stay in memory from the first rollouts on.

    Raises:
        UserError: as ``check_judge``, with ``services.reach`` also as ``Endpoint.reach``, or the judge compares with
            right answers that a row lacks; in scoring, as ``Endpoint.complete``, what came in by then being kept.
    """
    settings = services.judges.model_copy(update=endpoint.model_dump())
    section = f"{services.section}.endpoint"
    check_judge(name, settings, section)
    judge = load_judge(name, settings.dir)
    if services.reach and endpoint_judges(name, settings):
        Endpoint.of(section, settings, settings.model).reach()
    if judge.needs_target:
        _check_targets(name, services)
    budget = Budget(endpoint.max_calls)
    # Read once: this process alone adds to it while the stage lasts.
    journal = open_journal(services.folder / f"{services.section}.jsonl")
    opened = opener(settings, services.opened)

    def score(rollouts: Sequence[Rollout]) -> list[float | None]:
        from ogpsa.utils.random_state import preserved_random_state

        items = [_item(number, rollout) for number, rollout in enumerate(rollouts)]
        # Judging leaves training's random state alone, since in a resumed run the journal may answer instead.
        with preserved_random_state():
            judged = judge_responses(
                name, items, settings, journal, services.section, budget=budget, section=section, opened=opened
            )
        return [one.verdict.value for one in judged]

    return score


def _item(number: int, rollout: Rollout) -> Item:
    finish_reason = "stop" if rollout.finished else "length"
    return Item(str(number), rollout.prompt, rollout.response, rollout.target or "", finish_reason, rollout.in_thought)


def _check_targets(name: str, services: RewardServices) -> None:
    for number, row in enumerate(services.rows, start=1):
        if not row.get("target"):
            raise UserError(
                f"{services.section}.judge: {name} compares with the right answer, but row {number} has no 'target' "
                f"(columns found: {', '.join(sorted(row))})"
            )


JUDGES = Judges(judge_scorer, weights_memory, judge_hash)
