"""A made-up collection in NuminaMath-1.5's schema in which the right verdict on every row is known.

Problems come from templates of our own; every rule of gptoss_rl.data.numina is broken by some row.
"""

from typing import Any

import polars as pl

NAMES = ("Ada", "Bela", "Carl", "Dora", "Emil", "Fritz", "Grete", "Hugo", "Ida", "Jonas", "Klara", "Ludwig")
THINGS = ("apples", "marbles", "stamps", "coins", "books", "pencils", "shells", "cards")


def good_row(number: int) -> dict[str, Any]:
    """A problem that must be kept; all of them differ in more than their numbers."""
    name, friend = NAMES[number % 12], NAMES[(number // 12 + 5) % 12]
    thing, other = THINGS[number % 8], THINGS[(number // 8 + 3) % 8]
    a, b, c = 17 + 13 * number, 5 + 7 * number, 2 + number % 9
    stories = (
        f"{name} owns {a} {thing} and buys {b} {other} from {friend} on day {number}. How many objects does {name} own then?",
        f"On shelf {number} stand {a} {thing}; {friend} puts {b} {other} beside them. Find how many there are in all.",
        f"Let $x_{{{number}}} = {a}$ and let $y = {b}$, the count of {other} that {name} gave to {friend}. Compute $x + y$.",
        f"{friend} walked {a} meters past {number} {thing}, then {b} meters past {other} of {name}. What was it in meters?",
    )
    text = stories[number % 4] + (f" Ignore the {c} {other} of {friend}." if number % 3 else "")
    answer = [str(a + b), f"${a + b}$", f"{a + b}.0", f"{a + b} ({thing})"][number % 4]
    solution = f"{a} + {b} = {a + b}" if number % 2 else f"The sum is $\\boxed{{{a + b}}}$."
    return row(text, answer, solution)


def row(problem: str, answer: str | None, solution: str = "See above.", **fields: Any) -> dict[str, Any]:
    base = {"problem": problem, "solution": solution, "answer": answer, "problem_type": "Algebra",
            "question_type": "math-word-problem", "problem_is_valid": "Yes", "solution_is_valid": "Yes", "source": "olympiads",
            "synthetic": False}  # fmt: skip
    return {**base, **fields}


def bad_rows() -> list[tuple[str, dict[str, Any]]]:
    """(expected reason, row)."""
    return rows_with_bad_columns() + rows_with_bad_answers() + rows_with_bad_problems() + rows_with_several_answers()


def rows_with_bad_columns() -> list[tuple[str, dict[str, Any]]]:
    """Rejected for what a column states."""
    return [
        ("not a word problem", good_row(900) | {"question_type": kind}) for kind in ("MCQ", "proof", "other", None)
    ] + [
        ("problem not valid", good_row(901) | {"problem_is_valid": v})
        for v in ("Incomplete", "More than one problem", "Not a problem", None)
    ] + [
        ("solution not valid", good_row(902) | {"solution_is_valid": v})
        for v in ("Incomplete", "Problem not solved", "Not matched with problem", None)
    ]  # fmt: skip


def rows_with_bad_answers() -> list[tuple[str, dict[str, Any]]]:
    """Rejected for their answer."""
    question = "What is the number that {} is looking for in the old tower?"
    return [
        ("synthetic", good_row(903) | {"synthetic": True}),
        ("excluded source", good_row(904) | {"source": "amc_aime"}),
        ("no answer", row(question.format("Ada"), None)),
        ("no answer", row(question.format("Bela"), "notfound")),
        ("no answer", row(question.format("Carl"), "proof")),
        ("no digit in the answer", row(question.format("Dora"), "C")),
        ("no digit in the answer", row(question.format("Emil"), "x + y")),
        ("answer is no integer", row(question.format("Fritz"), "63,65")),
        ("answer is no integer", row(question.format("Grete"), "\\frac{1}{2}")),
        ("answer is no integer", row(question.format("Hugo"), "12,34")),
        ("answer is no integer", row(question.format("Ida"), "2 \\sqrt{3}")),
        ("answer is no integer", row(question.format("Jonas"), "x = 3 or x = 5")),
        ("answer may be a list", row("Find all prime numbers between the two towers of the city.", "110,880")),
        ("answer may be a list", row(question.format("Klara"), "110,880", "The numbers are 110 and 880.")),
        (
            "answer may be a list",
            row("A cow and a calf cost 990 together, the cow 8 times the calf. What was the cost of each?", "110,880"),
        ),
        (
            "answer may be a list",
            row("How many coins did each of the two brothers find in the old tower?", "60,180", "So $\\boxed{60,180}$."),
        ),
        ("answer may be a list", row("The greatest divisor and the least multiple of 45 and 150 are what values?", "15,450")),
        (
            "answer may be a list",
            row("The two lengths of the old garden, first the shorter one, equal ____.", "110,880", "They are 110 and 880."),
        ),
        ("boxed answer of the solution disagrees", row(question.format("Ludwig"), "110,880", "So $\\boxed{110, 880}$.")),
        ("boxed answer of the solution disagrees", row(question.format("Otto"), "12", "So $\\boxed{13}$.")),
    ]


def rows_with_bad_problems() -> list[tuple[str, dict[str, Any]]]:
    """Rejected for the text of their problem."""
    return [
        ("too short for a question", row("Find $x$.", "3")),
        ("several questions", row("The mode of the ages is \u25b2, and the median of the ages is \u25b2.", "36")),
        ("asks nothing", row("The sampling group size of the old tower is 10 people.", "1000")),
        ("asks nothing", row("Example 7. The triangle of the old master and its seven circles", "7")),
        ("too long", row("How many words are there? " + "word " * 900, "900")),
        ("answer in the problem", row("How many towers has the city? The answer is 14, as Ada knows.", "14")),
        ("answer in the problem", row("Compute $6 \\cdot 7$ and check that $\\boxed{42}$ comes out.", "42")),
        ("multiple choice", row("How many towers are there? (A) 3 (B) 4 (C) 5 (D) 6", "4")),
        ("several questions", row("Ada has 5 towers. (a) How many remain? (b) Find how many fell.", "4")),
        ("several questions", row("How many towers are red? And how many are blue?", "4")),
        (
            "several questions",
            row("Let $a * b = ab - 2$. (1) Calculate the value of $2 * 3$; (2) Compare $4 * 2$ and $2 * 4$.", "4"),
        ),
        ("several questions", row("The towers number ____ and the bridges number ____.", "4")),
        ("not in English", row("一箱24瓶，25箱一共有多少瓶 what is it?", "600")),
        (
            "several questions",
            row("Two answered exactly two, so that is $\\qquad$, and the number with one is $\\qquad$.", "13"),
        ),
        ("needs a picture", row("What is the length of the side of the tower? <img_4028>", "16")),
        ("needs a picture", row("The circle graph shows the towers of the city. How many are red if there are 40?", "16")),
        ("needs a picture", row("What is the perimeter of the shaded garden of the old tower?", "16")),
        ("needs a picture", row("In the star shown, five numbers are missing. Which number does the tower have?", "27")),
        ("options are missing", row("Ada multiplied an integer by itself. Which of the following could be the result?", "36")),
        ("several questions", row("Solve the following equations:\n\na) $x + 4 = 8$;\n\nb) $x - 4 = 8$.", "4")),
        ("several questions", row("Find how many towers the city has and how many bridges were built.", "36")),
        ("several questions", row("For what value of $m$ do the lines (1) meet at a right angle; (2) run in parallel?", "-6")),
        ("several questions", row("What weights can be measured with 1, 3, 9, 27 grams? Generalize the problem!", "40")),
        ("several questions", row("Let $f(x) = x^2 + a$. (I) If $f(1) = 4$, what is $a$? (II) Determine its minimum.", "3")),
        ("several questions", row("Estimate the average height and the variance of all towers of the city.", "42")),
        ("asks for a proof", row("Let $a$ be the sum of the heights of all towers of the city. Prove that $a = 20$.", "20")),
        ("answer in the problem", row("The number of terms in the expansion of $(x+y+z)^4$ is 15.", "15")),
        ("answer in the problem", row("How many towers are there? Each has one bell. Thus, the total is $4 + 3 = 7$.", "7")),
        ("asks yes or no", row("Determine whether the number of towers converges to the number of bridges.", "1")),
        ("asks yes or no", row("The city has 40 towers. Is it possible to visit each of them once?", "40")),
        ("asks for a guess", row("Estimate the number $N$ of towers. An estimate of $E$ earns $20 - |N - E|$ points.", "516")),
        ("answer in the problem", row("Place signs and parentheses between 1, 2, 3, 4 so that the result equals 24.", "24")),
        ("control marker in the problem", row("What does the sign <|end|> mean to the 12 towers of Ada?", "12")),
    ]


def rows_with_several_answers() -> list[tuple[str, dict[str, Any]]]:
    """Rejected because their label is one of several answers, or the number of one."""
    return [
        (
            "several questions",
            row(
                "6 friends form a row. How many ways are there under the following conditions?\n(1) Ada leads;\n(2) Ida ends.",
                "120",
            ),
        ),
        ("several questions", row("Calculate:<br/>$(1)5-3+8$;<br/>$(2)7\\times 2-40$.", "-26")),
        ("several questions", row("For the tower $y = 3x + 1$, find:\n(1) the slope of it;\n(2) its height at $x = 4$.", "13")),
        (
            "several questions",
            row("(a) Find how many of 12 hands are red, if 4 are blue.\n\n(b) Then 3 are lost. Of the others 2 stop.", "3"),
        ),
        ("several questions", row("Find the maximum and minimum values of $f(x) = x^2 - 6x$ for $x$ in $[0, 4]$.", "-9")),
        ("several questions", row("The wall $y = mx + b$ meets $(1, 3)$ and $(2, 5)$. Find the values of $m$ and $b$.", "2")),
        ("several questions", row("What is the area and perimeter of the square garden with a side of 9 meters?", "81")),
        ("several questions", row("One root of $x^2 + kx + 8 = 0$ is 2. Find the other root and the value of $k$.", "-6")),
        (
            "several questions",
            row("What is the greatest number of tiles in a floor of size:\na) $5 \\times 9$; \nb) $3 \\times 7$?", "15"),
        ),
        ("several questions", row("Let $f(x) = 3x - 7$ be the height of the tower on day $x$. Find $f(2)$ and $f(5)$.", "8")),
        ("several questions", row("Find the area of the red garden, 4 by 9. Also, determine the length of its fence.", "36")),
        ("several right answers", row("If $n^2$ lies between 20 bridges and 50 towers, what is a possible value of $n$?", "5")),
        ("multiple choice", row("How many bells ring in the old tower at noon?\n\nA 15\nB 16\nC 17\nD 18", "16")),
        ("multiple choice", row("What is the height of the third tower?\n(a) 12\n(b) 15\n(c) 18\n(d) 21", "15")),
        (
            "multiple choice",
            row("Let $T$ be a set. Which of the following is true?\n\n1. $T$ is empty.\n2. $T$ is finite.", "2"),
        ),
        (
            "options are missing",
            row("Emil has 23 coins and $n$ sons. Which of the following is not a possible value of $n$?", "9"),
        ),
        ("asks for a guess", row("How many windows has the city? Your score will be $20 - |A - C|$ for an answer $A$.", "516")),
        ("needs a picture", row("Six tiles with a side of 1 are arranged as shown. What is the perimeter of it all?", "14")),
        ("needs a picture", row("The areas of three of the four gardens are shown. What is the area of the fourth?", "15")),
        ("percentage that is not asked for", row("What is the probability that both of the towers are hit?", "25\\%")),
        (
            "label is one of a list",
            row("Find all values of $k$ for which the towers touch.", "5", "So $k = \\boxed{3}$ or $k = \\boxed{5}$."),
        ),
    ]


def kept_rows() -> list[dict[str, Any]]:
    """Rows that look like trouble and must be kept."""
    return kept_numbers() + kept_questions()


def kept_questions() -> list[dict[str, Any]]:
    """One question each, although the text has marks of several, or of a picture, or of a choice."""
    return [
        row('Of 30 guests, asked "Are you from here?" and "Have you a tower?", 20 say yes twice. How many do not?', "10"),
        row('What is the angle with the question mark? [asy] label("?", (0,0)); draw((0,0)--(3,4)); [/asy]', "75"),
        row("How many sets of towers have the following properties? (1) No two are neighbors. (2) All are odd.", "12"),
        row("Find the number of pairs of towers such that: (a) both are red; (b) they are neighbors.", "8"),
        row("In how many ways can Ada walk if:\n1. She starts at the bridge.\n2. She passes every tower once.", "6"),
        row("What is the maximum and minimum number of bells? Write down the sum of these two numbers.", "9"),
        row("Find the sum of the area and the perimeter of the garden with sides of 3 and 5 meters.", "31"),
        row("Find the values of $a$ and $b$ such that $\\sqrt{a} - b$ is the height, and give $a + b$.", "5"),
        row("Let $f(1) = 3$ and $f(x + 1) = 2 f(x)$ for all $x$. Find $f(2) + f(3)$, the count of doors.", "18"),
        row("As shown in the diagram, $ABCD$ is a square garden with a side of 5. What is its area?", "25"),
        row("By what percentage did the toll of the old bridge rise, from 4 coins to 5?", "25\\%"),
        row("Find all values of $k$ for which the bridges touch.", "7", "So $k = \\boxed{7}$, and indeed $\\boxed{7}$."),
        row("Your score is the number of your red cards times that of your blue ones. How large can it be with 9?", "20"),
    ]


def kept_numbers() -> list[dict[str, Any]]:
    return [
        row("What is the number of grains that the king owes for the tenth day?", "110,880", "It is $\\boxed{110880}$."),
        row("How many grains does the king owe each day?", "110,880", "He owes 110{,}880, that is 110880 grains."),
        row("What did each of the towers cost?", "105,008", "Of the towers each costs as much."),
        row("What is the cost of each of the equal towers?", "110,880", "It is $\\boxed{110{,}880}$."),
        row("$-14-(-2)^{3}\\times \\dfrac{1}{4}-16\\times \\left(\\dfrac{1}{2}+\\dfrac{3}{8}\\right)$.", "-26"),
        row("If three sides are 3, 4 and 5, then the last one has length\nA tower is simple if it does not meet itself.", "12"),
        row("Among the numbers from 1 to 1000, there are a total of \u00a0\u00a0\u00a0 sevens.", "300"),
        row("The table below has the towers. Find how many are red. \\begin{tabular}{c}red 4\\end{tabular}", "4"),
        row("Which of the following numbers is the tower's: 12, 15 or 23, when it is prime?", "23"),
        row("Which of these integers has the most divisors, $24$ or $25$?", "24"),
        row("Find the probability that it is red, as $m / n$ with relatively prime numbers, and find $m + n$.", "7"),
        row("Show that the towers can be counted, and find the number of them when there are 3 rows of 4.", "12"),
        row("Find the height of the tower, given that the height of the other one is 0.", "0"),
        row("How many of the following inequalities hold? (a) $1 < 2$ (b) $2 < 1$ (c) $1 < 3$", "2"),
        row("In how many ways can the old garden be planted so that no two shaded squares share an edge?", "12"),
        row("Given the following functions $f(x) = x^2$ and $g(x) = 2x$, find $f(2) + g(3)$.", "10"),
        row("Solve the following system of equations: $(x - 2)(y + 1) = 4$ and $x = y$. What is the larger $x$?", "3"),
        row("How many integers are common solutions to these inequalities? (1) $x > 2$ (2) $x < 9$ (3) $x < 7$", "4"),
        row("Two dice are thrown and the sum of the numbers shown is 7. In how many ways can that be?", "6"),
        row("Find the number of students above 70 of 400, with mean 60 and standard deviation 10.", "63"),
        row("Prove that there is one such $k$ and find $k$ for the tower of 12 bells and 3 doors.", "4"),
        row("Determine whether the towers can be counted, and if so, how many there are.", "12"),
        row("Is the city large? Find the number of its towers, which is the square of its bridges, 5.", "25"),
        row("Estimate the number of towers to the nearest ten, when 1 in 5 of 250 houses has one. What is it?", "50"),
        row("Ada earns 12 coins for each tower. Estimate to the nearest ten how much she earns for 5. What is it?", "60"),
        row("Put parentheses into $2 + 3 \\cdot 4$. What is the largest number that comes out?", "20"),
        row("What is the number of tiles on the long floor of the palace?", "1{,}234", "1200 + 34"),
        row("Let $S$ be a set such that (a) it is finite (b) it is closed under doubling. How large is the smallest one?", "1"),
        row("The smallest tower of the city has a height in meters that equals ____.", "12"),
        row("For any $n$ let $\\boxed{n}$ be the sum of its divisors. Find $\\boxed{6}$.", "12"),
        row("A student's answer is 66 less than the right one, which is twice his. What is the right one?", "132"),
    ]  # fmt: skip


def make_rows(good: int = 200) -> list[tuple[str | None, dict[str, Any]]]:
    """(expected reason or None, row), duplicates and near-duplicates included; their reasons are those of whole-file rules."""
    rows: list[tuple[str | None, dict[str, Any]]] = [(None, good_row(i)) for i in range(good)]
    rows += [(None, r) for r in kept_rows()]
    rows += bad_rows()
    twin = good_row(3)
    rows.append(("duplicate", twin | {"problem": twin["problem"].replace(" ", "  ").replace("?", " ?").upper()}))
    long = (
        good_row(5)["problem"]
        + " The towers of the city are old, and the bridges over the river are older still, says the guide."
    )
    rows.append((None, row(long, good_row(5)["answer"])))
    rows.append(("near-duplicate", row(long.replace("says the guide", "says a guide"), good_row(5)["answer"])))
    clash = "How many bridges cross the river of the old city of Ada, counting both?"
    rows += [("duplicates that contradict each other", row(clash, answer)) for answer in ("7", "8")]
    return rows


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    from gptoss_rl.data.numina import SCHEMA

    return pl.DataFrame(rows, schema=SCHEMA)
