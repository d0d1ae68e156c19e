"""Leaving out published rows that a model could not train on; answers that a builder writes come later."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ogpsa.data.builders.candidates import Candidate
from ogpsa.data.builders.settings import Fits
from ogpsa.models.files import cached_folder
from ogpsa.utils.errors import UserError


def fitting(settings: Fits, candidates: Sequence[Candidate], dropped: Counter[str]) -> list[Candidate]:
    """The candidates that fit every tokenizer, in their order; the others are counted in ``dropped``, by reason.

    Raises:
        UserError: a tokenizer is not here, or cannot be loaded.
    """
    kept = list(candidates)
    for place in settings.tokenizers:
        folder = Path(place) if Path(place).is_dir() else cached_folder(place)
        if folder is None:
            raise UserError(f"fits.tokenizers: {place} is neither a folder nor a model in the local hub cache")
        kept = _fitting(settings, folder, place, kept, dropped)
    return kept


def _fitting(
    settings: Fits, folder: Path, place: str, candidates: Sequence[Candidate], dropped: Counter[str]
) -> list[Candidate]:
    from ogpsa.data.fit import unfit_texts
    from ogpsa.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder, settings.template_kwargs)
    texts = [
        (
            tuple((turn["role"], turn["content"]) for turn in candidate.asked_turns),
            tuple(answer for answer in (candidate.chosen, candidate.rejected) if answer is not None),
        )
        for candidate in candidates
    ]
    unfit: set[int] = set()
    for answers in sorted({len(given) for _, given in texts}):
        numbers = [number for number, (_, given) in enumerate(texts) if len(given) == answers]
        stages = ((answers, settings.max_tokens),)
        [found] = unfit_texts(tokenizer, stages, tuple(texts[number] for number in numbers))
        for reason, rows in (
            ("with a mark of the model's turns", found.marks),
            ("that its template renders otherwise", found.otherwise),
            (f"of more than {settings.max_tokens} tokens", {**found.without_answer, **found.cut}),
            (f"with equal answers within {settings.max_tokens} tokens", found.equal),
        ):
            if fresh := {numbers[row] for row in rows} - unfit:
                dropped[f"{reason} ({place})"] += len(fresh)
                unfit |= fresh
    return [candidate for number, candidate in enumerate(candidates) if number not in unfit]
