"""Near-duplicates of texts, in any script, at any length, and in a crowd of texts that are alike."""

import random

import numpy as np
import pytest

from prefcast.errors import UsageError
from prefcast.pairs.duplicates import Bands, NearDuplicates, Sketch, near_groups, sketched

ENGLISH = (
    "Please explain to me, in simple words, how a refrigerator keeps food cold and why it must stand away from the wall. "
    "I would like three short paragraphs and one example from the kitchen of my grandmother."
)
CHINESE = "请你用简单的话解释一下冰箱为什么能让食物保持低温,还有为什么冰箱要离墙远一点。我想要三个短段落,再加一个我奶奶厨房里的例子,谢谢。"
ARABIC = "اشرح لي من فضلك بكلمات بسيطة كيف تحافظ الثلاجة على برودة الطعام ولماذا يجب أن تبتعد عن الحائط، مع مثال من مطبخ جدتي."
THAI = "ช่วยอธิบายด้วยคำง่ายๆว่าตู้เย็นทำให้อาหารเย็นได้อย่างไรและทำไมต้องวางห่างจากผนังขอสามย่อหน้าสั้นๆและหนึ่งตัวอย่างจากครัวของคุณยาย"
EMOJI = "🍕🍔🌮🍣🍜🍩🍪🎂🍫🍿🥐🥨🧀🥗🍲🍛🍱🥟🍤🍙🍚🍘🍥🥠🥮🍢🍡🍧🍨🍦"
TEXTS = (ENGLISH, CHINESE, ARABIC, THAI, EMOJI)


def jaccard(left: str, right: str) -> float:
    return sketched(left)[0].similarity(sketched(right)[0])


def words(draw: random.Random, count: int) -> list[str]:
    return ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 8))) for _ in range(count)]


@pytest.mark.parametrize("text", TEXTS, ids=["English", "Chinese", "Arabic", "Thai", "emoji"])
@pytest.mark.parametrize(
    "edit",
    [
        lambda text: f"  {text.upper()}\n",
        lambda text: text.replace(" ", "\n\t "),
        lambda text: text.replace(",", "").replace("。", "!").replace(".", " ...").replace("،", ""),
        lambda text: text.replace(text[3], text[3] + "\u200b"),
        lambda text: text[: len(text) * 9 // 10],
        lambda text: text + text[2:4],
    ],
    ids=["case", "spaces", "punctuation", "invisible", "cut", "longer"],
)
def test_edits_that_a_person_would_not_see_are_found_in_every_script(text, edit):
    among = NearDuplicates()
    for number, each in enumerate(TEXTS):
        assert among.add(number, each) == []
    assert [match.key for match in among.matches(edit(text))] == [TEXTS.index(text)]


@pytest.mark.parametrize(
    ("left", "right"),
    [("yes", "no"), ("3", "13"), ("好的", "不好"), ("👍", "👎"), ("!!!", "???"), ("", "a"), ("hello", "hello you")],
)
def test_short_texts_are_the_same_only_where_they_are_read_alike(left, right):
    among = NearDuplicates()
    among.add("left", left)
    assert among.matches(right) == []
    assert [match.similarity for match in among.matches(f" {left} ")] == [1.0]


def test_texts_that_only_look_unlike_are_one_text():
    among = NearDuplicates()
    among.add("first", "Ｆｕｌｌ ｗｉｄｔｈ, STRASSE")
    assert len(among) == 1
    assert [match.key for match in among.add("second", "full width — straße!")] == ["first"]
    assert len(among) == 1, "a text that is read alike is not kept twice"


def test_half_a_character_is_a_character():
    assert jaccard("a lone surrogate \ud800 here", "a lone surrogate \ud800 here") == 1.0
    assert jaccard("\ud800\ud800", "\ud801\ud801") == 0.0


def test_the_similarity_is_that_of_the_sets():
    def shingles(text: str) -> set[str]:
        return {text[place : place + 5] for place in range(max(1, len(text) - 4))}

    draw = random.Random(5)
    for _ in range(50):
        left, right = ("".join(draw.choices("ab", k=draw.randint(1, 60))) for _ in range(2))
        one, other = shingles(left), shingles(right)
        assert jaccard(left, right) == pytest.approx(len(one & other) / len(one | other))


@pytest.mark.parametrize(("kept", "expected"), [(1.0, 1.0), (0.9, 0.9), (0.5, 0.5), (0.1, 0.1)])
def test_the_similarity_of_long_texts_is_estimated_well(kept, expected):
    text = " ".join(words(random.Random(7), 20_000))
    part = text[: int(len(text) * kept)]
    assert not sketched(text)[0].whole
    assert jaccard(text, part) == pytest.approx(expected, abs=0.06)


def test_the_union_of_sketches_is_the_sketch_of_the_union():
    draw = random.Random(9)
    one, other = (" ".join(words(draw, 300)) for _ in range(2))
    both = Sketch.joined([sketched(one)[0], sketched(other)[0]])
    again = Sketch.joined([sketched(other)[0], sketched(one)[0], sketched(one)[0]])
    assert both.similarity(again) == 1.0
    assert sketched(one)[0].similarity(both) == pytest.approx(0.5, abs=0.06)


def test_nearly_all_texts_that_are_similar_enough_are_found_and_no_others():
    draw = random.Random(3)
    among, texts, edited = NearDuplicates(0.8), [], []
    for number in range(400):
        text = words(draw, 60)
        texts.append(" ".join(text))
        among.add(number, texts[-1])
        for place in draw.sample(range(60), draw.randint(0, 12)):
            text[place] = words(draw, 1)[0]
        edited.append(" ".join(text))
    similar = {number for number in range(400) if jaccard(texts[number], edited[number]) >= 0.8}
    found = {number for number in range(400) if any(match.key == number for match in among.matches(edited[number]))}
    assert 100 < len(similar) < 350
    assert found <= similar
    assert len(found) > 0.97 * len(similar)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.9, 1.0])
def test_other_thresholds_find_as_many(threshold):
    draw = random.Random(11)
    among = NearDuplicates(threshold)
    for number in range(100):
        text = words(draw, 100)
        among.add(number, " ".join(text))
        same = int(100 * 2 * threshold / (1 + threshold)) + (threshold < 1)
        edited = " ".join([*text[:same], *words(draw, 100 - same)])
        if jaccard(" ".join(text), edited) >= threshold:
            assert [match.key for match in among.matches(edited)][:1] == [number]


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5, float("nan")])
def test_a_threshold_that_is_no_similarity_is_refused(threshold):
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        NearDuplicates(threshold)


def test_a_crowd_of_texts_that_are_alike_takes_linear_time():
    text = " ".join(words(random.Random(1), 100))
    among, compared = NearDuplicates(), 0
    for number in range(500):
        found = among.add(number, f"{text} {number}")
        assert bool(found) == (number > 0)
        compared = max(compared, len(found))
    assert compared <= 32


def test_a_bucket_does_not_grow_without_end():
    bands = Bands(0.8)
    signature = sketched("the same text")[1]
    for number in range(1000):
        bands.add(number, signature)
    assert len(bands.candidates(signature)) <= 32
    assert sum(len(held) for held in bands._buckets.values() if isinstance(held, list)) <= 32 * 48


def test_one_very_long_text_takes_little_memory():
    sketch, signature = sketched("x" * 3_000_000)
    assert len(sketch.hashes) == 1
    assert sketch.whole
    assert len(signature) == 48
    long, _ = sketched("".join(map(str, range(200_000))))
    assert len(long.hashes) == 1024
    assert not long.whole


def test_groups_are_near_duplicates_and_theirs():
    base = words(random.Random(2), 100)
    steps = [" ".join([*base[step * 4 :], *(f"new{number}" for number in range(step * 4))]) for step in range(5)]
    assert jaccard(steps[0], steps[4]) < 0.8 <= jaccard(steps[0], steps[1])
    groups = near_groups([ENGLISH, *steps, CHINESE, ENGLISH.upper(), ""])
    assert groups.tolist() == [0, 1, 1, 1, 1, 1, 6, 0, 8]
    assert near_groups([]).tolist() == []


def test_groups_join_where_a_text_is_like_two_groups():
    base = words(random.Random(4), 100)
    left, right = [*words(random.Random(5), 8), *base[8:]], [*base[:92], *words(random.Random(6), 8)]
    left, right, middle = " ".join(left), " ".join(right), " ".join(base)
    assert jaccard(left, right) < 0.8
    assert near_groups([left, right]).tolist() == [0, 1]
    assert near_groups([left, right, middle]).tolist() == [0, 0, 0]
    assert isinstance(near_groups([left]), np.ndarray)
