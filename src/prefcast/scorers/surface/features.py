"""Features of the texts of a pair that need no language model.

*Response features* are computed for each response and its prompt. Only their difference A - B is used, so a swap negates
it. *Pair features* are symmetric in A and B; they only tell how likely a tie is. Counts enter as log(1 + count), because
the tenth list item says less than the first.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from math import log, log1p, sqrt
from typing import NamedTuple

from prefcast.pairs import Turn

__all__ = [
    "COUNTS",
    "GROUPS",
    "PAIR_FEATURES",
    "PAIR_GROUPS",
    "RESPONSE_FEATURES",
    "UNREADABLE",
    "Text",
    "is_code",
    "language",
    "pair_features",
    "read_texts",
    "style_counts",
    "vocabulary_overlap",
]

# A word is one token; in scripts that do not separate words each character is one.
_WORD = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\\W_]+")
_SEPARATORS = {code: " " for code in range(128) if not chr(code).isalnum()}
# The group is the number of a numbered item.
_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*•+]|(\d{1,3})[.)])[ \t]+\S", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6}[ \t]+\S", re.MULTILINE)
_TABLE_RULE = re.compile(r"^[ \t]*(?:\|[ \t]*)?:?-{2,}:?[ \t]*\|", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?。！？](?:\s|$)")
_EMOJI = re.compile("[\u2600-\u27bf\U0001f300-\U0001faff]")
_CAPITAL = re.compile("[A-Z]")
_BRIEF = re.compile(
    r"\b(?:brief(?:ly)?|short(?:ly|er)?|concise(?:ly)?|one (?:word|sentence|line|paragraph)|in \w+ (?:words?|sentences?)|only|just|summar(?:y|i[sz]e)|tl;?dr)\b"
)
_LONG = re.compile(
    r"\b(?:detail(?:s|ed)?|long(?:er)?|comprehensive|in[- ]depth|essay|article|story|list|steps?|explain|guide|plan|write|code|script|program)\b"
)
_CODE = re.compile(
    r"```|\b(?:code|python|javascript|typescript|java|sql|html|css|c\+\+|rust|bash|shell|function|script|regex|api|docker|linux|react|excel)\b"
)
_MATHS = re.compile(
    r"\d\s*[-+*/=^×÷]\s*\d|\b(?:calculate|solve|equation|how many|probability|sum of|integral|derivative)\b|\\frac|\$\$"
)
_WRITING = re.compile(
    r"\b(?:write|poem|story|essay|haiku|song|lyrics|email|letter|joke|rewrite|rephrase|translate|role ?play|pretend|imagine)\b"
)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(text.split("/"))


# Phrases are looked for in lower-cased text with ' for ’.
_REFUSAL = _phrases(
    "i'm sorry/i am sorry/i apologi/my apologies/i cannot/i can't/i won't/i'm unable/i am unable/i'm not able/"
    "i am not able/i'm afraid/i do not have access/i don't have access/i don't have enough/"
    "i don't have the ability/i don't have personal/i'm not comfortable/as an ai/as a language model/"
    "es tut mir leid/lo siento/je suis désolé/peço desculpas/desculpe/mi dispiace/извините/к сожалению/抱歉/对不起/"
    "申し訳/죄송"
)
_MACHINE = _phrases("as an ai/language model/an ai assistant/ai model/as a machine/artificial intelligence, i")
_OPENERS = ("sure", "certainly", "of course", "absolutely", "great question", "good question")
_CLOSINGS = _phrases(
    "let me know/hope this helps/hope that helps/hope it helps/feel free/happy to help/glad to help/"
    "any other questions/any further questions/any more questions/anything else"
)
_BALANCE = _phrases("however/although/on the other hand/that said/depends/for example/for instance/e.g./such as")
_SUMMARY = _phrases("in conclusion/in summary/overall,/to summarize/to sum up")
# fmt: off
_LEAKED = (
    "<|im_", "<|endoftext", "<|eot_id", "<|assistant", "<|user", "<|system", "[inst]", "[/inst]", "</s>", "### human",
    "### assistant", "### instruction", "### response", "\nhuman:", "\nuser:", "\nassistant:", "\noutput:",
    "\nanswer:",
)
# fmt: on
_BLANKS = _phrases("[your /[insert/[name/[date/[company/[recipient")

_FUNCTION_WORDS = {
    "en": frozenset(_names("the of and to is in that it you for are with this be as on")),
    "de": frozenset(_names("der die und das ist nicht ein eine zu mit den auf für sich ich")),
    "fr": frozenset(_names("le la les et est des une un que dans pour qui vous pas sur")),
    "es": frozenset(_names("el la los y es de que en un una para por con las del")),
    "pt": frozenset(_names("o os e é do da que em um uma para por com não as")),
    "it": frozenset(_names("il e è di che un una per non con sono della le gli del")),
}
_SCRIPTS = {
    "latin": re.compile("[A-Za-z\u00c0-\u024f]"),
    "cyrillic": re.compile("[\u0400-\u04ff]"),
    "arabic": re.compile("[\u0600-\u06ff\u0750-\u077f]"),
    "hebrew": re.compile("[\u0590-\u05ff]"),
    "indic": re.compile("[\u0900-\u0dff]"),
    "thai": re.compile("[\u0e00-\u0eff]"),
    "japanese": re.compile("[\u3040-\u30ff]"),
    "korean": re.compile("[\uac00-\ud7af]"),
    "chinese": re.compile("[\u3400-\u9fff]"),
}
# Letters of other scripts than Latin, without typographic quotes and dashes, arrows and emoji.
_NOT_LATIN = re.compile("[\u0370-\u1dff\u2e80-\ud7ff]")
_SAMPLE = 2000
_COMPRESSED = 8000


class Text(NamedTuple):
    """A text with its lower-cased form, words, vocabulary and language, which several features use."""

    text: str
    lower: str
    words: list[str]
    vocabulary: frozenset[str]
    language: str


def language(text: str, words: Sequence[str]) -> str:
    """The language ("en", "japanese", ...) of a text by its script and function words; "" if they do not tell.

    `words` are the lower-cased words of `text`. It is only good enough to find an answer in the wrong language.
    """
    if _NOT_LATIN.search(text, 0, _SAMPLE):
        counts = {name: len(pattern.findall(text[:_SAMPLE])) for name, pattern in _SCRIPTS.items()}
        script = max(counts, key=counts.__getitem__)
        if script == "chinese" and counts["japanese"] > 0.1 * counts["chinese"]:
            script = "japanese"
        if script != "latin" and counts[script]:
            return script
    head = set(words[:200])
    hits = {name: len(names & head) for name, names in _FUNCTION_WORDS.items()}
    best = max(hits, key=hits.__getitem__)
    return best if hits[best] >= 2 + len(head) // 40 else ""


def read_texts(texts: Sequence[str]) -> Text:
    """The texts of all turns as one."""
    text = "\n\n".join(texts)
    lower = text.lower()
    # Both ways give the same words for ASCII text; the first is three times as fast.
    words = lower.translate(_SEPARATORS).split() if lower.isascii() else _WORD.findall(lower)
    return Text(text, lower.replace("’", "'"), words, frozenset(words), language(text, words))


def is_code(text: Text) -> bool:
    """Whether a prompt is about code."""
    return _CODE.search(text.lower) is not None


def vocabulary_overlap(a: Text, b: Text) -> float:
    """The Jaccard index of the vocabularies of two texts; 1 for two texts without words."""
    union = len(a.vocabulary | b.vocabulary)
    return len(a.vocabulary & b.vocabulary) / union if union else 1.0


def style_counts(texts: Sequence[str]) -> tuple[int, int, int, int]:
    """What an answer, a text a turn, looks like: its characters, list items, headings and bold passages."""
    text = "\n\n".join(texts)
    return len(text), len(_LIST_ITEM.findall(text)), len(_HEADING.findall(text)), text.count("**") // 2


def _count(phrases: Sequence[str], lower: str) -> int:
    return sum(map(lower.count, phrases))


def _has(phrases: Sequence[str], lower: str) -> float:
    return float(any(map(lower.__contains__, phrases)))


def _response(prompt: Text, response: Text, texts: Sequence[str]) -> dict[str, float]:
    text, lower, words, vocabulary, _ = response
    n, n_words = len(text), len(words)
    last = texts[-1].rstrip()
    head, tail = last[:300].lower().replace("’", "'"), last[-300:].lower()
    length = log1p(n)
    sentences = len(_SENTENCE_END.findall(text))
    fences = text.count("```") // 2
    items = _LIST_ITEM.findall(text)
    bold = text.count("**") // 2
    refusal = _has(_REFUSAL, head)
    packed = text[:_COMPRESSED].encode("utf-8", "replace")
    squeezed = len(zlib.compress(packed, 1)) if packed else 0
    long_lines = [line for line in text.split("\n") if len(line) > 15]
    triples = list(zip(words, words[1:], words[2:], strict=False))
    shared = len(prompt.vocabulary & vocabulary)
    return {
        "length": length,
        **{f"length_over_{knot}": max(0.0, length - log1p(knot)) for knot in (50, 200, 500, 1000, 2000, 4000)},
        "last_length": log1p(len(last)),
        "words": sqrt(n_words) / 10,
        "empty": float(not text.strip()),
        "empty_turn": float(not all(map(str.strip, texts))),
        "lines": log1p(text.count("\n")),
        "paragraphs": log1p(text.count("\n\n")),
        "list_items": log1p(len(items)),
        "has_list": float(len(items) > 1),
        "numbered_items": log1p(sum(map(bool, items))),
        "headings": log1p(len(_HEADING.findall(text))) if "#" in text else 0.0,
        "bold": log1p(bold),
        "has_bold": float(bold > 0),
        "table": float("|" in text and _TABLE_RULE.search(text) is not None),
        "code_blocks": log1p(fences),
        "inline_code": log1p(max(0, text.count("`") - 6 * fences) // 2),
        "formulas": float("$$" in text or "\\frac" in text or "\\(" in text),
        "links": float("http" in text),
        "emoji": 0.0 if text.isascii() else log1p(len(_EMOJI.findall(text))),
        "exclamations": log1p(text.count("!")),
        "questions": log1p(text.count("?")),
        "ends_with_question": float(last.endswith("?")),
        "quotes": log1p(text.count('"')),
        "parentheses": log1p(text.count("(")),
        "colons": log1p(text.count(":")),
        "comma_rate": text.count(",") / (n_words + 1),
        "dashes": log1p(text.count("—")),
        "digits": log1p(sum(map(text.count, "0123456789"))),
        "capitals": len(_CAPITAL.findall(text[:3000])) / max(min(n, 3000), 1),
        "refuses": refusal,
        "refusals": log1p(_count(_REFUSAL, lower)),
        "refuses_briefly": refusal * (len(last) < 400),
        "speaks_as_machine": _has(_MACHINE, lower),
        "opener": float(head.lstrip().startswith(_OPENERS)),
        "closing": _has(_CLOSINGS, tail),
        "balance": log1p(_count(_BALANCE, lower)),
        "summary": _has(_SUMMARY, lower),
        "leaked_markup": _has(_LEAKED, lower),
        "blanks_to_fill": _has(_BLANKS, lower),
        "cut_off": float(len(last) > 200 and (last[-1].isalnum() or last[-1] in ",;:-(")),
        "sentences": log1p(sentences),
        "sentence_length": log1p(n_words / (1 + sentences)),
        "word_length": (len("".join(words)) / n_words) if n_words else 0.0,
        "distinct_words": len(vocabulary) / n_words if n_words else 0.0,
        "vocabulary": len(vocabulary) / sqrt(n_words) if n_words else 0.0,
        "information": log1p(squeezed),
        "compressibility": squeezed / len(packed) if n > 100 else 0.5,
        "repeated_lines": 1 - len(set(long_lines)) / len(long_lines) if long_lines else 0.0,
        "repeated_triples": 1 - len(set(triples)) / len(triples) if len(triples) > 3 else 0.0,
        "covers_prompt": shared / len(prompt.vocabulary) if prompt.vocabulary else 0.0,
        "echoes_prompt": shared / len(vocabulary) if vocabulary else 0.0,
        "new_words": log1p(len(vocabulary) - shared),
        "copies_prompt": float(len(prompt.text) > 20 and prompt.text.strip()[:60] in text),
        "other_language": float(prompt.language != "" and response.language not in ("", prompt.language)),
        "first_person": log1p(sum(map(words.count, ("i", "my", "me", "we", "our")))),
        "second_person": log1p(words.count("you") + words.count("your")),
    }


# For each of these features the smaller of both values is a pair feature: whether both answers have it.
_SHARED = _names(
    "refuses empty code_blocks has_list speaks_as_machine repeated_triples other_language leaked_markup "
    "cut_off opener closing covers_prompt echoes_prompt table bold headings list_items"
)


def _symmetric(
    prompt: Text, texts: Sequence[str], a: Text, b: Text, of_a: dict[str, float], of_b: dict[str, float], same: bool
) -> dict[str, float]:
    last = texts[-1].lower()
    overlap = vocabulary_overlap(a, b)
    gap = abs(of_a["length"] - of_b["length"])
    return {
        "identical": float(same),
        "overlap": overlap,
        "strong_overlap": max(0.0, overlap - 0.5),
        "same_beginning": float(a.text[:40] == b.text[:40]),
        "length_gap": gap,
        "length_gap_squared": min(gap, 2.0) ** 2,
        "length_sum": of_a["length"] + of_b["length"],
        "length_of_shorter": min(of_a["length"], of_b["length"]),
        "length_of_longer": max(of_a["length"], of_b["length"]),
        "both_short": float(max(len(a.text), len(b.text)) < 80),
        "prompt_length": log1p(len(prompt.text)),
        "last_prompt_length": log1p(len(texts[-1])),
        "turns": log(len(texts)),
        "several_turns": float(len(texts) > 1),
        "asks_brief": float(_BRIEF.search(last) is not None),
        "asks_long": float(_LONG.search(last) is not None),
        "asks_code": float(is_code(prompt)),
        "asks_maths": float(_MATHS.search(prompt.lower) is not None),
        "asks_writing": float(_WRITING.search(prompt.lower) is not None),
        "asks_question": float("?" in last),
        "addresses_you": float("you" in prompt.vocabulary or "your" in prompt.vocabulary),
        "prompt_not_english": float(prompt.language not in ("", "en")),
        "prompt_has_lines": float("\n" in last),
        "prompt_has_digits": float(any(map(str.isdigit, prompt.text[:_SAMPLE]))),
        "prompt_capitalised": float(prompt.text[:1].isupper()),
        **{f"both_{name}": min(of_a[name], of_b[name]) for name in _SHARED},
    }


def pair_features(turns: Sequence[Turn]) -> tuple[list[float], list[float], list[float]]:
    """The features of one pair (turns not empty): of A and of B in the order of RESPONSE_FEATURES, of the pair in the
    order of PAIR_FEATURES."""
    prompts = [turn.prompt for turn in turns]
    texts_a, texts_b = [turn.response_a for turn in turns], [turn.response_b for turn in turns]
    prompt, a, b = read_texts(prompts), read_texts(texts_a), read_texts(texts_b)
    of_a, of_b = _response(prompt, a, texts_a), _response(prompt, b, texts_b)
    of_pair = _symmetric(prompt, prompts, a, b, of_a, of_b, texts_a == texts_b)
    return list(of_a.values()), list(of_b.values()), list(of_pair.values())


def _all_names() -> tuple[tuple[str, ...], tuple[str, ...]]:
    nothing = read_texts([""])
    of_response = _response(nothing, nothing, [""])
    return tuple(of_response), tuple(_symmetric(nothing, [""], nothing, nothing, of_response, of_response, True))


RESPONSE_FEATURES, PAIR_FEATURES = _all_names()

# An explanation shows the count behind these values of log(1 + count).
COUNTS = frozenset(
    _names(
        "length last_length lines paragraphs list_items numbered_items headings bold code_blocks inline_code "
        "emoji exclamations questions quotes parentheses colons dashes digits refusals balance sentences "
        "sentence_length information new_words first_person second_person prompt_length last_prompt_length "
        "both_code_blocks both_bold both_headings both_list_items length_of_shorter length_of_longer"
    )
)


# An explanation leaves these out, because plain lengths and shares are easier to read.
UNREADABLE = frozenset(
    [name for name in RESPONSE_FEATURES if name.startswith("length_over_")]
    + ["information", "length_gap", "length_gap_squared", "length_sum", "strong_overlap", "vocabulary"]
)


# The groups of an explanation. Features of one group move together, so only the sum over a group has a meaning.
GROUPS: dict[str, tuple[str, ...]] = {
    "length": _names(
        "length length_over_50 length_over_200 length_over_500 length_over_1000 length_over_2000 "
        "length_over_4000 last_length words information sentences new_words"
    ),
    "empty answer": _names("empty empty_turn"),
    "paragraphs": _names("lines paragraphs"),
    "lists": _names("list_items has_list numbered_items"),
    "headings and bold": _names("headings bold has_bold"),
    "tables": _names("table"),
    "code": _names("code_blocks inline_code"),
    "formulas and numbers": _names("formulas digits"),
    "links": _names("links"),
    "tone": _names("emoji exclamations opener closing first_person second_person"),
    "asking back": _names("questions ends_with_question"),
    "punctuation": _names("quotes parentheses colons comma_rate dashes capitals"),
    "refusal": _names("refuses refusals refuses_briefly speaks_as_machine"),
    "examples and caveats": _names("balance"),
    "summing up": _names("summary"),
    "leaked markup": _names("leaked_markup"),
    "blanks to fill in": _names("blanks_to_fill"),
    "cut off": _names("cut_off"),
    "sentence and word length": _names("sentence_length word_length"),
    "richness of words": _names("distinct_words vocabulary"),
    "repetition": _names("compressibility repeated_lines repeated_triples"),
    "closeness to the prompt": _names("covers_prompt echoes_prompt copies_prompt"),
    "language of the answer": _names("other_language"),
}

PAIR_GROUPS: dict[str, tuple[str, ...]] = {
    "likeness of the answers": _names("identical overlap strong_overlap same_beginning"),
    "lengths of both": _names("length_gap length_gap_squared length_sum length_of_shorter length_of_longer both_short"),
    "the prompt": _names(
        "prompt_length last_prompt_length asks_brief asks_long asks_code asks_maths asks_writing asks_question "
        "addresses_you prompt_not_english prompt_has_lines prompt_has_digits prompt_capitalised"
    ),
    "number of turns": _names("turns several_turns"),
    "what both answers share": tuple(f"both_{name}" for name in _SHARED),
}
