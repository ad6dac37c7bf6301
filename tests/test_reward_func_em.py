"""The grader's table of cases. Half of it must be wrong: a grader that is too kind rewards the wrong thing."""

import importlib.util
import json
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from gptoss_rl.prompts import render_prompt
from gptoss_rl.run.rewards import EXTRA_LOG_KEYS, read_reward
from reward_func_em import (
    MAX_DIGITS,
    extract_answer,
    final_text,
    grade,
    grade_file,
    is_correct,
    parse_integer,
    parse_label,
    read_number,
    reward_func,
)

ROOT = Path(__file__).resolve().parent.parent

RIGHT = [
    # integers, signs, leading zeros, decimals, a full stop
    ("5", 5), ("-5", -5), ("+5", 5), ("\u22125", -5), ("- 5", -5), ("0", 0), ("-0", 0), ("007", 7), ("00", 0), ("5.", 5),
    ("5.0", 5), ("113.00", 113), ("-1.0", -1), ("05.0", 5), (".0", 0), (" 5 ", 5), ("\n5\n", 5), ("2500000000000000000001", 2500000000000000000001),
    # thousands
    ("1,234", 1234), ("1{,}234", 1234), (r"1\,234", 1234), (r"1,\!234", 1234), ("1\u202f234", 1234), ("1\u2009234", 1234),
    ("1,234,567", 1234567), (r"1{,}008{,}016", 1008016), ("-1,234", -1234), ("1,234.00", 1234), ("1,234.", 1234), ("110,880", 110880),
    # fractions
    ("10/2", 5), ("-10/2", -5), ("10 / 2", 5), (r"\frac{10}{2}", 5), (r"\dfrac{10}{2}", 5), (r"\tfrac{10}{2}", 5), (r"\cfrac{10}{2}", 5),
    (r"-\frac{10}{2}", -5), (r"\frac{-10}{2}", -5), (r"\frac{-10}{-2}", 5), (r"\frac82", 4), (r"\frac{8}2", 4), (r"\frac 8 2", 4), (r"\frac{0}{7}", 0),
    # money and names before the number
    (r"\$5", 5), ("$5", 5), (r"\$ 5", 5), (r"-\$5", -5), (r"\$-5", -5), (r"\$1,234", 1234), (r"\$1,\!657.00", 1657), ("x=5", 5), ("x = 5", 5),
    ("n_{1} = 5", 5), ("x_1=-5", -5), (r"\theta = 5^\circ", 5), (r"x = \$5", 5),
    # units, degrees, percent, text behind it
    (r"5\%", 5), ("5%", 5), (r"5 \%", 5), (r"5^\circ", 5), (r"5^{\circ}", 5), (r"5\degree", 5), ("5\u00b0", 5), (r"32^{\circ}\mathrm{F}", 32),
    (r"5\text{ cm}", 5), (r"5\text{ cm}^2", 5), (r"5\ \text{cm}^{3}", 5), (r"5\text{ s}^{-1}", 5), (r"5\,\mathrm{cm}", 5), (r"5 \mathrm{~cm}^{2}", 5),
    (r"5\text{ m/s}", 5), (r"5\text{ ways.}", 5), (r"5 \text{ people}.", 5), (r"5\text{ square units}", 5), (r"5\text{ times}", 5), (r"5\text{ p.m.}", 5),
    (r"5\text{ km}", 5), (r"5\text{ yd}", 5), (r"5\text{ KM}", 5), (r"5\text{th}", 5), (r"5\,\mathrm{km/h}", 5), (r"5\mathrm{~MB}", 5), (r"5\mathrm{~sq.~ft.}", 5),
    (r"5\text{ quarters}", 5), (r"5\text{ scores}", 5), (r"5\text{ roots}", 5), ("5 (fourth graders)", 5),  # coins, of a test, of a polynomial, pupils
    (r"5\text{\%}", 5), (r"5\text{ }", 5), ("5 units", 5), ("5 cm", 5), ("5 cm^2", 5), ("5 degrees", 5), ("5 square feet", 5), ("5 (dollars)", 5),
    ("5 (pieces of candy)", 5), (r"x = 1,234\text{ dollars}", 1234), (r"\frac{10}{2}\text{ cm}", 5),
    # around it
    (r"\text{5}", 5), (r"\text{5 cm}", 5), (r"\mathbf{5}", 5), (r"\mathbf{5}\text{ cm}", 5), (r"\boldsymbol{-5}", -5), ("{5}", 5), ("-{5}", -5),
    ("$5$", 5), ("-$5$", -5), ("$x=5$", 5), (r"\(5\)", 5), (r"\[ 5 \]", 5), (r"\displaystyle 5", 5), (r"5\!", 5), (r"\boxed{5}", 5), (r"x = \boxed{5}", 5),
]  # fmt: skip

WRONG = [
    # another number, and nothing against anything
    ("6", 5), ("-5", 5), ("5", -5), ("--5", 5), ("+-5", -5), ("-(-5)", 5), ("-{-5}", 5), (r"-\$-5", 5), ("", 0), ("?", 0), (".", 0), ("-", 0), ("$", 0),
    ("%", 0), ("cm", 0), (r"\text{cm}", 0), (r"\text{}", 0), ("{}", 0), ("x=", 0), ("None", 0), ("nan", 0), ("inf", 0), ("five", 5), ("A", 10),
    # lists that could be glued, and other separators
    ("63,65", 6365), ("12,34", 1234), ("1,2345", 12345), ("1,234,56", 123456), ("0,123", 123), ("1, 234", 1234), ("1 234", 1234), (r"1\ 234", 1234),
    (r"1\!234", 1234), ("1,234\\,567", 1234567), ("1,234{,}567", 1234567), ("1.234.567", 1234567), ("1_000", 1000), ("1,234", 1), ("1,234", 234),
    ("5,6", 56), ("(5,6)", 56), ("[5,6]", 56), (r"\{5\}", 5), ("5;6", 56), ("5:6", 56), ("5 6", 56), ("5 5", 5), ("5 or 6", 5), (r"5\text{ or }6", 5),
    (r"5\text{ or }6", 6), (r"\text{5 or 6}", 5), (r"5\text{ or 6}", 5), (r"5\text{ or }\text{6}", 5), (r"5\text{ or six}", 5), (r"5\text{ and }6\text{ cm}", 5),
    ("$5$,$6$", 5), ("$5$, $6$", 56), ("x=5,y=6", 5), ("x=5, y=6", 6), ("x=-5,5", 5), (r"\boxed{5}, 6", 5), (r"5, \boxed{6}", 6), ("5\\\\6", 56),
    # numbers in which a digit run is not the value
    ("1/2", 12), ("1/2", 1), ("1.5", 15), ("1.5", 1), ("1.50", 15), ("0.999999999999999999999", 1), ("5.00000000000000000001", 5), ("9007199254740993", 9007199254740992),
    (r"3\frac{1}{2}", 3), (r"3\frac12", 312), (r"3\frac{4}{2}", 5), (r"\frac{1}{2}", 12), (r"\frac12", 12), (r"\frac{10}{3}", 3), (r"\frac123", 123),
    (r"\frac{1}{0}", 0), ("0/0", 0), ("1/2/3", 123), ("10/2x", 5), (r"67.\overline{3}", 67), ("1e3", 1000), ("1E3", 1000), ("0x10", 16), ("0b11", 3), ("10^3", 1000),
    ("5^2", 5), ("5^2", 25), ("5\u00b2", 5), ("5{}^2", 5), (r"5\text{}^2", 5), (r"5\text{ }^2", 5), ("5_{10}", 510), ("101_2", 101), ("101_2", 5),
    (r"101_{\text{two}}", 101), ("5!", 5), ("5!", 120), (r"5\text{!}", 5), ("5'", 5), (r"5^\circ 30'", 5), ("5..", 5), ("5...", 5), ("5..0", 50), ("5. 0", 5),
    # digits that are not ASCII: int() would read the first two
    ("\u0665", 5), ("\uff15", 5), ("\u00b2", 2), ("\u2462", 3), ("\u4e94", 5), ("\u00bd", 0), ("1\u06602", 102),
    # expressions and relations
    ("2+3", 5), (r"2\cdot 3", 6), (r"2\times 3", 6), ("5-6", 5), ("0.1+0.2", 0), (r"\sqrt{25}", 5), (r"\pm 5", 5), (r"\approx 5", 5), ("<5", 5), (r"\geq 5", 5),
    (r"|5|", 5), ("=5", 5), ("2x=10", 10), ("x=y=5", 5), ("x^2=25", 25), ("-x=5", 5), ("xy=5", 5), ("5=x", 5), ("f(5)", 5), ("(5)", 5), (r"5 \pmod{7}", 5),
    # what stands behind is no unit
    ("5x", 5), ("5 x", 5), ("5ab", 5), ("5(ab)", 5), ("5 (x)", 5), ("5(dollars)", 5), ("5i", 5), ("5e", 5), (r"5\pi", 5), (r"5\mathrm{i}", 5), (r"5\mathrm{e}", 5),
    (r"5\textit{x}", 5), (r"5\mathbf{v}", 5), (r"5\text{ million}", 5), (r"5\text{M}", 5), (r"5\text{ dozen}", 5), (r"5\text{ and a half}", 5), (r"5\text{ thirds}", 5),
    (r"5\text{ squared}", 5), (r"5\text{ factorial}", 5), (r"5\text{ base 7}", 5), (r"5\text{ hours thirty minutes}", 5), (r"5\text{ cm$^2$}", 5), ("5 square", 25),
    # words that make another number of it, and letters that are variables or functions
    (r"5\text{ quadrillion}", 5), (r"5\text{ crore}", 5), (r"5\text{ lakh}", 5), (r"5\text{ grand}", 5), (r"5\text{ million dollars}", 5), (r"5\text{ bn}", 5),
    (r"3\text{ score}", 3), (r"3\text{ score}", 60), (r"5\text{ gross}", 5), (r"101\text{ in binary}", 101), (r"101\text{ in binary}", 5), ("101 (in binary)", 101),
    (r"77\text{ (octal)}", 77), (r"2\text{ quarter}", 2), (r"2\text{ fifths}", 2), (r"2\text{ sevenths}", 2), (r"5\text{ root}", 5), (r"5\text{ negative}", 5),
    ("5 (negative)", 5), (r"5\text{ NEGATIVE}", 5), (r"5\text{xy}", 5), (r"5\text{ln}", 5), (r"5\text{ log}", 5), (r"5\mathrm{ln}", 5), (r"5\mathrm{log}", 5),
    (r"5\mathrm{xy}", 5), (r"5\mathrm{abc}", 5), (r"5\mathrm{mod}", 5), (r"5\mathrm{~cm~x}", 5),
    (r"5\circ", 5), (r"5\%5", 55), (r"5\text{ ft }6\text{ in}", 5), ("5 feet 6 inches", 56), (r"\text{(A) }5", 5), (r"\phantom{5}", 5), (r"5\text{", 5), ("{5", 5),
]  # fmt: skip


def boxed(answer: str) -> str:
    return f"So it is $\\boxed{{{answer}}}$."


@pytest.mark.parametrize(("answer", "label"), RIGHT)
def test_right(answer: str, label: int) -> None:
    assert grade(boxed(answer), label).correct
    assert grade(boxed(answer), str(label)).correct
    assert parse_integer(answer) == label
    assert is_correct(answer, label)
    assert not is_correct(answer, label + 1)


@pytest.mark.parametrize(("answer", "label"), WRONG)
def test_must_be_wrong(answer: str, label: int) -> None:
    assert not grade(boxed(answer), label).correct
    assert not is_correct(answer, label)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("", None),
        ("no box, the answer is 5", None),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        (r"\boxed{5", None),
        (r"\boxed{5\}", None),
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed 5", None),
        (r"\boxed5", None),
        (r"\fbox{5}", None),
        (r"\boxedfoo{5}", None),
        ("boxed{5}", None),
        (r"\boxed{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed{ 5 }", "5"),
        (r"\boxed{5}}}}", "5"),
        (r"}}{{ \boxed{5}", "5"),
        (r"\boxed{4} then \boxed{5}", "5"),
        (r"\boxed{4 (never closed), then \boxed{5}", "5"),
        # Cut off while answering, or taken back.
        (r"\boxed{5} then \boxed{", None),
        (r"\boxed{5} then \boxed{6", None),
        (r"\boxed{5} then \boxed{}", None),
        # Not boxes, so they take nothing back.
        (r"\boxed{5}, put into \boxed as asked", "5"),
        (r"\boxed{5} and \fbox{6}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\boxed{\boxed{5}, 6}", r"\boxed{5}, 6"),
        (r"\boxed{a\}b}", r"a\}b"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{a\\}", r"a\\"),
        (r"x \\\boxed{5}", "5"),
        (r"\\boxed{5}", "5"),
    ],
)
def test_what_is_extracted(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer


ANALYSIS = r"<|channel|>analysis<|message|>maybe \boxed{4}<|end|><|start|>assistant"
FINAL = r"<|channel|>final<|message|>it is \boxed{5}<|return|>"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (ANALYSIS + FINAL, "5"),
        (FINAL, "5"),
        ("<|start|>assistant" + FINAL, "5"),
        (ANALYSIS + FINAL + "<|endoftext|>", "5"),
        (ANALYSIS + FINAL.removesuffix("<|return|>"), "5"),
        (r"<|channel|>final <|constrain|>json<|message|>\boxed{5}<|return|>", "5"),
        # Cut off: in the analysis, in the header, in the box; and with an end but without a channel.
        (ANALYSIS, None),
        (ANALYSIS[:40], None),
        (r"<|channel|>analysis<|message|>\boxed{5}<|return|>", None),
        (ANALYSIS + "<|channel|>final", None),
        (ANALYSIS + "<|channel|>final<|message|>it is five", None),
        (ANALYSIS + r"<|channel|>final<|message|>it is \boxed{5", None),
        (r"\boxed{5}<|return|>", None),
        # Other channels, roles and recipients.
        (r"<|channel|>commentary<|message|>\boxed{5}<|call|>", None),
        (r"<|channel|>commentary to=functions.f <|constrain|>json<|message|>\boxed{5}<|call|>", None),
        (r"<|channel|>final to=functions.f<|message|>\boxed{5}<|call|>", None),
        (r"<|channel|>finally<|message|>\boxed{5}<|return|>", None),
        (ANALYSIS.removesuffix("assistant") + "user" + FINAL, None),
        (ANALYSIS.removesuffix("assistant") + "developer" + FINAL, None),
        # A header inside a message starts no message, and what follows one is not the answer's text.
        (r"<|channel|>analysis<|message|>so <|channel|>final<|message|>\boxed{5}", None),
        (r"<|channel|>final<|message|>so <|channel|>analysis<|message|>\boxed{5}", None),
        (r"<|channel|>final<|message|>so <|end|>\boxed{5}", None),
        (r"<|channel|>final<|end|><|message|>\boxed{5}", None),
        # The last final message, and nothing after it.
        (FINAL + r"<|start|>assistant<|channel|>analysis<|message|>\boxed{6}<|end|>", "5"),
        (FINAL + r"<|start|>assistant<|channel|>final<|message|>\boxed{7}<|return|>", "7"),
        (FINAL + r"<|start|>assistant<|channel|>final<|message|>never mind<|return|>", None),
        # Not Harmony: another model's end of text, an unknown marker.
        (r"\boxed{5}<|endoftext|>", "5"),
        (r"<|im_start|>\boxed{5}<|im_end|>", "5"),
    ],
)
def test_only_the_final_channel_counts(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer


def test_the_final_channel_is_reported() -> None:
    assert grade(ANALYSIS + FINAL, 5).final_channel
    assert not grade(ANALYSIS, 5).final_channel
    assert grade("no markers", 5).final_channel
    assert final_text("") == ""


def test_nothing_equals_nothing() -> None:
    for label in (0, "0", 5):
        assert not grade("", label).correct
        assert not is_correct(None, label)


@pytest.mark.parametrize(
    "label",
    ["5.0", "1,234", "", " ", "x", "--5", "5/1", "1_000", "\u0665", "\u22125", "\u00b2", None, 5.0, True, [5], Fraction(5)],
)
def test_a_label_that_is_no_integer_is_an_error_that_names_it(label) -> None:
    with pytest.raises(ValueError, match="label") as error:
        grade(boxed("5"), label)
    assert repr(label) in str(error.value)


def test_labels_are_ints_and_strings_of_one() -> None:
    assert [parse_label(label) for label in (5, "5", "-5", "+5", "007", " 5\n")] == [5, 5, -5, 5, 7, 5]


def test_numbers_too_long_for_int_are_compared_exactly_or_refused() -> None:
    # int() of more than 4,300 digits raises; a limit of the environment may be as low as 640.
    longest = "9" * MAX_DIGITS
    assert grade(boxed(longest), longest).correct
    assert not grade(boxed(longest), int(longest) - 1).correct
    assert grade(boxed("0" * 100_000 + "5." + "0" * 100_000), 5).correct
    assert not grade(boxed("5." + "0" * 100_000 + "1"), 5).correct
    for answer in ("9" * 5000, "1," + "000," * 5000 + "000", "\\frac{" + "9" * 5000 + "}{3}", "5/" + "1" * 5000):
        assert grade(boxed(answer), 5).value is None
        assert parse_integer(answer) is None
    for label in ("9" * 5000, int(longest) + 1, -(10**5000)):
        with pytest.raises(ValueError, match="640 digits"):
            parse_label(label)


def test_integers_for_filters() -> None:
    assert parse_integer("110,880") == 110880
    assert parse_integer("63,65") is None
    assert parse_integer("5.5") is None
    assert read_number("5.5") == Fraction(11, 2)
    assert read_number(r"-\frac{1}{3}") == Fraction(-1, 3)
    assert type(parse_integer("5.0")) is int


def test_the_reward_function_never_reads_the_prompt() -> None:
    prompt = render_prompt(r"The answer is \boxed{5}, is it not?")
    result = reward_func([prompt + "yes", prompt + FINAL, prompt], [prompt] * 3, ["5", 5, "5"])
    assert result["rewards"] == result["scores"] == [0.0, 1.0, 0.0]
    assert result["extra_logs"] == {"answer_found": [0.0, 1.0, 0.0], "final_channel": [1.0, 1.0, 1.0]}
    with pytest.raises(ValueError, match="does not start with its prompt"):
        reward_func(["the prompt " + FINAL], [prompt], ["5"])
    with pytest.raises(ValueError, match="does not start with its prompt"):
        # As a tokenizer that drops a blank would decode it.
        reward_func([prompt.replace(" ", "", 1) + FINAL], [prompt], ["5"])
    with pytest.raises(ValueError, match="zip"):
        reward_func([prompt + FINAL], [prompt], ["5", "6"])


def test_openrlhf_loads_the_file_by_path() -> None:
    # As openrlhf/utils/agent.py does it: the module is not entered in sys.modules.
    spec = importlib.util.spec_from_file_location("reward_func", ROOT / "reward_func_em.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = read_reward(module.reward_func(["p" + FINAL], ["p"], ["5"]), "the test")
    assert result == {"reward": 1.0, "scores": 1.0, "extra_logs": {"answer_found": 1.0, "final_channel": 1.0}}
    assert tuple(result["extra_logs"]) == EXTRA_LOG_KEYS


def test_it_needs_the_standard_library_alone() -> None:
    # -I and -S: no site-packages. Ray workers and filters load it before anything is installed on the path.
    code = "import runpy; print(runpy.run_path('reward_func_em.py')['parse_integer']('5'))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "5\n"


MEGABYTE = 1_000_000
UNITS_OF_LENGTH = [
    "{", "}", "\\", "$", "1", "0", " ", "-", ".", "^", "_", "=", "(", ")", "%", "1,", "1,000", ",000", "{,}000", "x=", "{}", "}{", "\\{", "\\}", "a", "a ", "cm ",
    "square ", "\\text", "\\text{", "\\text{}", "\\text{a", "\\text{ cm}", "^\\circ", "^{2}", "^2", "\\frac", "\\frac{", "\\frac{1}{2}", "1/", "\\boxed",
    "\\boxed{", "\\boxed{}", "\\boxed{5}", "\\boxed ", "\\\\boxed{", "\\%", "\\,", "\u0665", "\ud800", "<", "<|", "<|start|>", "<|channel|>", "<|message|>",
    "<|start|>assistant", "<|channel|>final", "<|channel|>final ", "<|channel|>final<|message|>", "<|start|>assistant<|channel|>final",
]  # fmt: skip


def long_responses() -> list[str]:
    """A megabyte of each unit as a response, and 0.3 megabytes of it in a box with something before or behind it."""
    responses = []
    for unit in UNITS_OF_LENGTH:
        text = unit * (3 * MEGABYTE // 10 // len(unit))
        responses.append(unit * (MEGABYTE // len(unit)))
        responses += [f"\\boxed{{{before}{text}{behind}}}" for before, behind in (("5", ""), ("", "5"), ("", "?"))]
    depth = MEGABYTE // 20
    for opening, closing in (("{", "}"), ("\\text{", "}"), ("\\boxed{", "}"), ("$", "$"), ("\\(", "\\)")):
        for inner in ("", " (a b)" * depth, "\\text{?}" * depth):
            responses.append(f"\\boxed{{{opening * depth}5{inner}{closing * depth}}}")
    return responses


def test_a_megabyte_of_anything_is_graded_in_linear_time() -> None:
    # One quadratic scan of one of these takes many minutes, and all of them together 20 s when every scan is linear.
    code = "import test_reward_func_em as t\nfor response in t.long_responses():\n    t.grade(response, 5)\n"
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=150)


def test_no_string_raises() -> None:
    pieces = [
        "\\boxed{", "}", "{", "\\text{", "\\mathrm{", "\\frac", "\\frac{1}{", "1", "2", "000", ",", ".", "-", "+", "/", "\\", "$", "\\$", "%", "^\\circ", "^", "=", "x",
        " ", "cm", "(", ")", "<|channel|>", "final", "<|message|>", "<|end|>", "<|start|>assistant", "\x00", "\ud800", "\u0665", "\u00b2", "\u2212", "\n", "\\,",
        "{,}", "\\!", "_", "\u202f", "\x1c", "9" * 700,
    ]  # fmt: skip
    generator = random.Random(0)
    read = 0
    for _ in range(20_000):
        text = "".join(generator.choices(pieces, k=generator.randrange(1, 16)))
        for response in (text, f"\\boxed{{{text}}}"):
            read += grade(response, 5).value is not None
    assert read > 100  # or the loop would never reach the comparison


def run_command(path: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "reward_func_em.py", "grade", path]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_response_that_was_cut_off_is_wrong_where_the_row_says_whether_it_is_correct(tmp_path: Path) -> None:
    path = tmp_path / "cut_off.jsonl"
    cut = {"response": r"\boxed{5}", "label": 5, "finish_reason": "length"}
    path.write_text(json.dumps({**cut, "correct": False}) + "\n" + json.dumps({**cut, "reward": 1}) + "\n")
    counts, flips = grade_file(path)
    assert (counts["right"], flips) == (1, [])


def test_the_command_counts_and_shows_flips(tmp_path: Path) -> None:
    path = tmp_path / "graded.jsonl"
    rows = [
        {"response": r"\boxed{5}", "label": 5, "correct": True},
        {"response": r"\boxed{5}", "label": "6", "correct": True, "reward": 0.0},
        {"response": r"\boxed{5}", "label": 5, "reward": 0.0},
        {"response": "nothing", "label": 5, "reward": 0},
        {"response": ANALYSIS, "label": 4, "correct": None},
        {"response": "\\boxed{\ud800\u0665}", "label": 5, "correct": True},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n" + '{"response": "cut o')
    done = run_command(path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {line[:24].strip(): int(line[24:]) for line in lines[:9]} == {
        "rows": 6,
        "right": 2,
        "no final message": 1,
        "no answer": 2,
        "not a number": 1,
        "torn last line": 1,
        "stored grades": 5,
        "stored wrong, now right": 1,
        "stored right, now wrong": 2,
    }
    assert lines[9:] == [
        "line 2: stored right, now wrong: answer '5', label '6'",
        "line 3: stored wrong, now right: answer '5', label 5",
        "line 6: stored right, now wrong: answer '\\ud800\\u0665', label 5",
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"response": "x"}',
        b'{"response": "x", "label": "y"}',
        b'{"response": 5, "label": 5}',
        b'{"response": "x", "label": 5, "reward": 0.5}',
        b'{"response": "x", "label": 5, "correct": "yes"}',
        b'{"response": "x", "label": 5, "reward": NaN}',
    ],
)
def test_the_command_names_a_bad_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"response": "a", "label": 1}\n' + line + b"\n")
    done = run_command(path)
    assert done.returncode != 0
    assert "bad.jsonl, line 2: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_names_a_missing_file(tmp_path: Path) -> None:
    done = run_command(tmp_path / "none.jsonl")
    assert done.returncode != 0
    assert "none.jsonl" in done.stderr
    assert "Traceback" not in done.stderr
