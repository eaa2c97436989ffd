"""Public datasets whose columns are unmistakable: what they call our fields, and what their labels mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["CANDIDATES", "PAIRS", "Dataset", "dataset_of"]

# How far one answer is preferred: a negative number prefers the first.
_STRENGTHS = {str(strength): "a" if strength < 0 else "b" if strength else "tie" for strength in range(-3, 4)}


@dataclass(frozen=True)
class Dataset:
    """A dataset: a file has it where all of `columns` (ours -> theirs) are there, none of our own names for them, and
    nothing of `without`. `perhaps` are columns that may be missing. `labels` gives the values of its label a meaning.
    A text of a dataset with a `title` is one turn as it is."""

    title: str
    columns: Mapping[str, str]
    perhaps: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        theirs = (name for ours, name in self.columns.items() if ours != "id")
        return f"{self.title} ({', '.join(theirs)})" if self.title else ""

    def mapping(self, names: Collection[str], given: Mapping[str, str]) -> dict[str, str] | None:
        """Our names -> those of the file, where the file is of this dataset; `given` is what the person mapped."""
        for ours, theirs in self.columns.items():
            if theirs not in names or (ours in names and ours != theirs) or given.get(ours, theirs) != theirs:
                return None
        if any(name in names for name in self.without):
            return None
        taken = {*names, *given}
        perhaps = {ours: name for ours, name in self.perhaps.items() if name in names and ours not in taken}
        found = {**perhaps, **self.columns, **given}
        return {ours: theirs for ours, theirs in found.items() if ours != theirs}


def dataset_of(
    datasets: Sequence[Dataset], names: Collection[str], given: Mapping[str, str]
) -> tuple[Dataset, dict[str, str]] | None:
    """The dataset that a file with the columns `names` is of, and its mapping."""
    found = ((each, each.mapping(names, given)) for each in datasets)
    return next(((each, mapping) for each, mapping in found if mapping is not None), None)


_ANSWERS = {"response_a": "response_1", "response_b": "response_2"}
_PREFERENCE = {"chosen": "chosen", "rejected": "rejected"}
_CONVERSATIONS = {"conversation_a": "conversation_a", "conversation_b": "conversation_b"}
PAIRS = (
    Dataset(
        "HelpSteer3",
        {"prompt": "context", "response_a": "response1", "response_b": "response2"},
        {"winner": "overall_preference"},
        _STRENGTHS,
    ),
    Dataset("HelpSteer2", {**_ANSWERS, "winner": "preference_strength"}, {}, _STRENGTHS),
    Dataset(
        "PKU-SafeRLHF",
        {"response_a": "response_0", "response_b": "response_1"},
        {"winner": "better_response_id"},
        {"0": "a", "1": "b"},
    ),
    *(
        Dataset(
            "JudgeBench",
            {"prompt": prompt, "response_a": "response_A", "response_b": "response_B"},
            {"id": "pair_id", "winner": "label"},
        )
        for prompt in ("question", "prompt")
    ),
    *(Dataset("", {"prompt": prompt, **_PREFERENCE}) for prompt in ("conversations", "question", "instruction")),
    # MT-bench has no time stamp, and its question_id is that of one of 80 prompts.
    *(
        Dataset("", {"id": "question_id", **_CONVERSATIONS, **more}, without=without)
        for more, without in (({"tstamp": "tstamp"}, ()), ({"anony": "anony"}, ()), ({}, ("turn", "judge")))
    ),
)
CANDIDATES = (
    Dataset("Nectar", {"responses": "answers"}),
    Dataset("UltraFeedback", {"prompt": "instruction", "responses": "completions"}),
)
