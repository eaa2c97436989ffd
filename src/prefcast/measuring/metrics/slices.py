"""Slices: kinds of rows for which figures are given separately."""

from __future__ import annotations

from collections.abc import Iterable

from prefcast.measuring.metrics.languages import prompt_language
from prefcast.pairs import Pair
from prefcast.scorers.surface.features import is_code, read_texts

__all__ = ["KINDS", "Slicer"]

# The kinds, in the order in which they are shown, with their names; the names of an empty one are found in the rows.
KINDS: dict[str, tuple[str, ...]] = {
    "turns": ("1", "2", "3 or more"),
    "length of both answers": ("under 1,000 characters", "1,000 to 4,000", "over 4,000"),
    "length difference": ("within a quarter", "up to twice as long", "more than twice"),
    "language of the prompt": (),
    "prompt about code": ("yes", "no"),
    "answers": ("one is empty", "identical", "other"),
    "read": ("whole", "truncated"),
    "models": (),
}


class Slicer:
    """Assigns each row a code for every kind; new names get the next code. `by` names a further kind: the values of a
    column of the file."""

    def __init__(self, by: str | None = None) -> None:
        # The name of the kind `by`.
        self.own = f"column {by}" if by in KINDS else by
        kinds = KINDS if self.own is None else {**KINDS, self.own: ()}
        self._codes = {kind: {name: code for code, name in enumerate(names)} for kind, names in kinds.items()}
        self._names = {kind: list(names) for kind, names in kinds.items()}

    @property
    def kinds(self) -> list[str]:
        return list(self._codes)

    @property
    def names(self) -> dict[str, list[str]]:
        """For each kind, the name of each code."""
        return self._names

    def codes(self, pair: Pair, truncated: bool | None, value: str | None = None) -> list[float]:
        """The codes of a row in the order of `kinds`; -1 if a kind does not apply to it. `truncated` says
        whether only a part was read, if that is known. `value` is the row's value in the column `by`."""
        prompt = read_texts(pair.prompt)
        a, b = (sum(map(len, texts)) for texts in (pair.response_a, pair.response_b))
        short, long = sorted((a, b))
        empty = not ("".join(pair.response_a).strip() and "".join(pair.response_b).strip())
        models = None
        if pair.model_a is not None and pair.model_b is not None and pair.model_a != pair.model_b:
            models = " and ".join(sorted((pair.model_a, pair.model_b)))
        return [
            float(min(len(pair.turns), 3) - 1),
            0.0 if a + b < 1000 else 1.0 if a + b <= 4000 else 2.0,
            0.0 if long <= 1.25 * short else 1.0 if long <= 2 * short else 2.0,
            self._code("language of the prompt", prompt_language(prompt) or "not told"),
            0.0 if is_code(prompt) else 1.0,
            0.0 if empty else 1.0 if pair.response_a == pair.response_b else 2.0,
            -1.0 if truncated is None else float(truncated),
            -1.0 if models is None else self._code("models", models),
            *([] if self.own is None else [self.own_code(value)]),
        ]

    def own_code(self, value: str | None) -> float:
        """The code of a row's value in the column `by`."""
        return -1.0 if value is None or self.own is None else self._code(self.own, value)

    def read(self, codes: Iterable[float]) -> list[str | None]:
        """The names of the codes of a row, in the order of `kinds`."""
        names = self._names
        return [None if code < 0 else names[kind][int(code)] for kind, code in zip(self._codes, codes, strict=True)]

    def _code(self, kind: str, name: str) -> float:
        known = self._codes[kind]
        if name not in known:
            known[name] = len(known)
            self._names[kind].append(name)
        return float(known[name])
