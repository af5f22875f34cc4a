"""What is wrong with an extracted rule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.distillation.answers import ExtractionAnswer
from engine.distillation.checks import COPIED_WORDS, MOST_WORDS, RuleChecks, concludes, copied_run, copies
from engine.types import Sample

LABELS = ("spam", "none")
TASK = "Is this mail spam? Mails to Acme are; see part 7.3."
SAMPLE = Sample(
    "s1", "Win a free prize with Zorro Bank, call 555 0199 or @winmore today, says Acme!", "spam", "train"
)
OTHERS = [f"Dear Customer, your order {number} is on its way to you." for number in range(100, 300)]
CHECKS = RuleChecks([SAMPLE.text, *OTHERS], TASK, LABELS)

word = st.text(st.sampled_from("abcdé"), min_size=1, max_size=4)
gap = st.sampled_from([" ", ", ", "\n", " - ", "; "])


def kinds(rule: str, label: str = "spam", sample: Sample = SAMPLE, checks: RuleChecks = CHECKS) -> list[str]:
    found = checks.findings(sample, ExtractionAnswer(analysis="a", instruction=rule, label=label))
    return [one.kind for one in found]


@pytest.mark.parametrize(
    "rule",
    [
        "Unasked offers of a free prize are spam.",
        "If a Customer is offered a prize, answer SPAM!",  # a word that many texts have
        "Mails to Acme are spam; see part 7.3.",  # the task's own words
        "Where 2 prizes are offered within 24 hours, choose `spam`",  # numbers of its own
        "Zero context: spam",
        "Win offers are spam.",  # a capital of grammar
    ],
)
def test_a_usable_rule_has_no_findings(rule: str) -> None:
    assert kinds(rule) == []


@pytest.mark.parametrize(
    ("rule", "label", "found"),
    [
        (" \n", "spam", ["empty"]),
        ("", "none", ["other_label", "empty"]),
        ("Offers are spam.", "none", ["other_label"]),
        ("Offers are spam.", "Spam", ["other_label"]),
        ("If it says: a FREE prize with Zorro - bank call, spam.", "spam", ["copied", "names"]),
        ("Offers are bad.", "spam", ["no_label"]),
        ("Offers may be spam. Choose none.", "spam", ["no_label"]),
        ("Offers by phone 0199 are spam.", "spam", ["numbers"]),
        ("Offers of Zorro are spam.", "spam", ["names"]),
        ("Zorro offers spam.", "spam", ["names"]),  # at the head of a sentence
        ("Offers that name @WINMORE are spam.", "spam", ["names"]),
        ("Offers are spam. " + "So it is. " * (MOST_WORDS // 3), "spam", ["too_long"]),
        ("長" * 1300 + " spam", "spam", ["too_long"]),
    ],
)
def test_findings(rule: str, label: str, found: list[str]) -> None:
    assert kinds(rule, label) == found


def test_what_is_recorded_holds_nothing_of_the_text_and_what_is_shown_does() -> None:
    rule = "a free prize with Zorro Bank, call 0199: none"
    found = CHECKS.findings(SAMPLE, ExtractionAnswer(analysis="a", instruction=rule, label="none"))
    assert [one.kind for one in found] == ["other_label", "no_label", "copied", "numbers", "names"]
    recorded = " ".join(one.line for one in found).lower()
    assert not [one for one in ("prize", "zorro", "0199", "bank") if one in recorded]
    shown = {one.kind: one.shown for one in found}
    assert '"a free prize with zorro bank"' in shown["copied"]
    assert '"0199"' in shown["numbers"]
    assert '"bank", "zorro"' in shown["names"]


def test_a_name_is_found_however_the_text_writes_it() -> None:
    sample = Sample("s", "the woman from lebanon was seen", "none", "train")
    assert kinds("People of Lebanon: none", "none", sample) == ["names"]
    assert kinds("People of lebanon: none", "none", sample) == []  # nothing tells that it is one


def test_no_alarm_in_scripts_without_case() -> None:
    sample = Sample("s", "田中さんは東京で契約書に署名した。", "none", "train")
    checks = RuleChecks([sample.text] * 9, "", LABELS)
    assert kinds("契約書に署名した場合は none", "none", sample, checks) == []


def test_no_alarm_where_every_noun_has_a_capital() -> None:
    texts = ["Der Kunde hat am Schalter den Vertrag mit der Firma und dem Siegel der Bank gesehen"] * 2
    sample = Sample("s", texts[0], "none", "train")
    checks = RuleChecks(texts, "", LABELS)
    assert kinds("Wenn ein Kunde einen Vertrag mit Siegel nennt, gilt none.", "none", sample, checks) == []


@given(st.text(st.characters(), max_size=60), st.text(st.characters(), max_size=60), st.sampled_from(LABELS))
def test_any_text_and_rule_are_looked_at(text: str, rule: str, label: str) -> None:
    sample = Sample("s", text, "spam", "train")
    checks = RuleChecks([text], "", LABELS)
    found = checks.findings(sample, ExtractionAnswer(analysis="", instruction=rule, label=label))
    assert len({one.kind for one in found}) == len(found)
    assert ("empty" in {one.kind for one in found}) == (not rule.strip())
    for one in found:
        assert one.line in (one.shown or one.line)


name = st.text(st.sampled_from("bdfglmnrt"), min_size=5, max_size=9).map(str.title)
number = st.integers(10, 10**7).map(str)


@given(name, number, st.sampled_from(["Where {} is named, ", "Mind, as with {}, ", "It may be {} that "]))
def test_every_planted_name_and_number_is_found(planted: str, amount: str, head: str) -> None:
    text = f"We wrote to {planted} about the {amount} boxes."
    sample = Sample("s", text, "spam", "train")
    checks = RuleChecks([text, *["We sent the boxes."] * 50], "", LABELS)
    rule = "offers nobody asked for are spam."
    assert kinds(head.format("this") + rule, sample=sample, checks=checks) == []
    assert kinds(head.format(planted) + rule, sample=sample, checks=checks) == ["names"]
    assert kinds(head.format(amount) + rule, sample=sample, checks=checks) == ["numbers"]


@pytest.mark.parametrize(
    ("rule", "label", "good"),
    [
        ("it is hate speech.", "hate_speech", True),
        ("it is Hate-Speech", "hate_speech", True),
        ("it is hateful", "hate", False),
        ("label it spam rather than none.", "spam", True),
        ("spam, if sent twice. Otherwise none.", "spam", False),
        ("spam it is: not a good mail", "spam", True),
        ("答えは賛成", "賛成", True),
        ("答えは反対", "賛成", False),
        ("choose +1", "+1", True),
        ("choose 👍", "👍", True),
        ("choose it", "👍", False),
        ("", "spam", False),
    ],
)
def test_a_rule_ends_in_its_label(rule: str, label: str, good: bool) -> None:
    assert concludes(rule, label, ("spam", "none", "hate_speech", "賛成")) == good


@settings(deadline=None)
@given(st.lists(word, min_size=COPIED_WORDS, max_size=12), st.lists(gap, min_size=12, max_size=12), st.data())
def test_a_run_of_words_is_found_whatever_stands_between(
    words: list[str], gaps: list[str], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(words) - COPIED_WORDS))
    run = words[start : start + COPIED_WORDS]
    instruction = "".join(f"{one.upper()}{between}" for one, between in zip(run, gaps, strict=False))
    assert copies(" ".join(words), f"Choose it where {instruction}")
    assert copied_run(" ".join(words), f"Choose it where {instruction}") in " ".join(words)


@settings(deadline=None)
@given(st.lists(word, max_size=30), st.lists(word, max_size=30))
def test_the_same_as_looking_at_every_run(theirs: list[str], ours: list[str]) -> None:
    def runs(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    assert copies(" ".join(theirs), " ".join(ours), words=3) == bool(runs(theirs) & runs(ours))


def test_short_runs_and_whole_words_only() -> None:
    assert not copies("one two three four five", "one two three four five")
    assert not copies("one two three four five six", "one two three four five sixth")
    assert not copies("one two three four five six", "one two three, four five and six")
    assert copies("ONE two, three four five six", "x one TWO three four (five) six")
