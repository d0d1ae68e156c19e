"""The base of every reward: its keys, and how it scores what a policy answers in the RL stage.

A reward is one file in ``ogpsa/rewards`` and one YAML in ``conf/reward``. A reward within another, as the parts of a
sum, is a section of the same form.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ogpsa.config.eval import JudgeSettings, ModelEndpoint
from ogpsa.config.section import Section
from ogpsa.utils.answers import says_nothing, split_reply
from ogpsa.utils.errors import Problems, UserError

if TYPE_CHECKING:
    from ogpsa.config.run import Config


@dataclass(frozen=True)
class Rollout:
    """One answer of the policy.

    Attributes:
        prompt: the user's request as plain text; of a conversation every turn so far, each behind its role.
        response: the completion as plain text, its thought included.
        harmful: whether the request should be refused.
        target: the row's right answer, where it has one.
        finished: False: cut by the cap on tokens.
        in_thought: the prompt begins a thought, so that the response begins within it.
    """

    prompt: str
    response: str
    harmful: bool
    target: str | None
    finished: bool
    in_thought: bool = False

    @property
    def answer(self) -> str | None:
        """The response without its thought; None where the thought does not end or the rest says nothing."""
        text = split_reply(self.response, self.in_thought).answer
        return None if text is None or says_nothing(text) else text


class Scorer(Protocol):
    """Scores rollouts, in their order; None where there is no reward: values are never guessed."""

    def __call__(self, rollouts: Sequence[Rollout], /) -> list[float | None]: ...


@dataclass(frozen=True)
class Judges:
    """The evaluation's judges, as the running program provides them.

    Attributes:
        scorer: ``scorer(name, endpoint, services)`` is a judge that scores rollouts by its values in [0, 1].
        memory: ``memory(name, settings)``: bytes of a GPU that the judge's own weights take; 0 without any.
        digest: ``digest(name, settings)``: of all that decides what the judge says.
    """

    scorer: "Callable[[str, ModelEndpoint, RewardServices], Scorer]"
    memory: Callable[[str, JudgeSettings], float]
    digest: Callable[[str, JudgeSettings], str]


def _no_judge(name: str, *_: Any) -> Any:
    raise UserError(f"reward: '{name}' is a judge of the evaluation, which this program does not provide")


NO_JUDGES = Judges(_no_judge, _no_judge, _no_judge)


@dataclass(frozen=True)
class RewardServices:
    """Services that a reward needs from outside.

    Attributes:
        rows: the stage's prompts, with ``harmful`` (true if absent) and ``target``.
        folder: of the journals of what judges were asked and said; the main process alone writes there.
        judge: ``Judges.scorer``.
        judges: the evaluation's settings of judges, ``eval.judge``; a reward's endpoint replaces theirs.
        section: the reward's place in the configuration, which names its journal and the key in messages.
        reach: whether the judges' servers must answer when a scorer is made.
        opened: loaded judges with weights of their own, which the scorers keep in memory.
    """

    rows: Sequence[Mapping[str, Any]]
    folder: Path
    judge: Callable[[str, ModelEndpoint, "RewardServices"], Scorer]
    judges: JudgeSettings
    section: str = "reward"
    reach: bool = False
    opened: dict[str, Any] = field(default_factory=dict)

    def within(self, key: str) -> "RewardServices":
        """The services of the nested reward ``key``."""
        return replace(self, section=f"{self.section}.{key}")


class Reward(Section):
    """Base of every reward. Its file declares ``REWARD``, the subclass. Imports nothing heavy.

    Attributes:
        name: the option of ``conf/reward``.
    """

    name: str

    def scorer(self, services: RewardServices) -> Scorer:
        """The function that scores rollouts. Making it starts and writes nothing, so that it also checks a run before
        anything is loaded.

        Raises:
            UserError: the rows lack what the reward needs, or a judge could not start; one line per problem.
        """
        raise NotImplementedError

    def problems(self, config: "Config") -> list[str]:
        """Problems that only the whole configuration shows, one line each."""
        return [line for reward in self.nested().values() for line in reward.problems(config)]

    def bounds(self) -> tuple[float, float] | None:
        """The least and the greatest reward that there can be; None where nobody says."""
        return None

    def judges(self) -> set[str]:
        """The evaluation judges that it or a nested reward asks."""
        return {name for reward in self.nested().values() for name in reward.judges()}

    def nested(self) -> "dict[str, Reward]":
        """The nested rewards, by their keys."""
        found: dict[str, Reward] = {}
        for name, value in self:
            values = {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
            found |= {key: one for key, one in values.items() if isinstance(one, Reward)}
        return found

    def nested_scorers(self, services: RewardServices) -> dict[str, Scorer]:
        """The scorers of ``nested``.

        Raises:
            UserError: as ``scorer``, of all of them at once.
        """
        problems, scorers = Problems(), dict[str, Scorer]()
        for key, reward in self.nested().items():
            with problems.kept():
                scorers[key] = reward.scorer(services.within(key))
        problems.tell()
        return scorers
