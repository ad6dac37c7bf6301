"""What problem texts look like that cannot be used, as regular expressions.

Plain strings are for polars (Rust's syntax: no look-around), compiled ones for single rows. gptoss_rl.data.numina says which
rule uses which; gptoss_rl.data.numina_fixture and tests/test_verdicts.py have rows for each, on both sides.
"""

import re

VERBS = (
    "find|compute|determine|calculate|evaluate|solve|what|how|which|who|when|where|give|express|simplify|count|state|write|"
    "name|estimate|round|convert|factor|describe|prove|show|expand|identify|decide|add|subtract|multiply|divide|enter|choose|"
    "remove|provide|specify|minimi[sz]e|maximi[sz]e|reduce|exhibit|rearrange|come up with"
)
# A place to fill in: underscores, a run of the fixed spaces that translations leave, or a box with a word in it.
BLANK = r"(?:_{2,}|(?:\\_){2,}|(?:_ ){3,}|\x{a0}{3,}|▲|\\q?quad[\s$.\\)\]]*$|\\boxed\{\\text)"
# A question asks, commands or leaves something open; text that does neither is a heading or a fragment.
ASKS = (
    rf"\?|{BLANK}|(?i)\b(?:{VERBS}|fill|number of|value of|sum of|maximum|minimum|largest|smallest|equals?|is equal to|"
    r"closest to|(?:is|are) to be found|needs? to be determined)\b|\\qquad|"
    r"(?m)(?:\bis|\bare|\bwas|\bwere|\blength|\bapproximately|\btotal of|\bposition|\bas|=|:)[\s$.:\\]*$|=\s*\\+\)\s*\.?\s*$|"
    r"(?:\bis|\bare|\blabeled|\bnearest|\blength|=)[\s$]*(?:\[asy\]|\\begin\{tabular)"
)
# Text without a word is an expression to evaluate, unless it states an equation or has several lines.
EXPRESSION = r"^[\s$\\()\[\]]*(?:\\[A-Za-z]+|[0-9{}()\[\]|+*/^.,$:;\\!' -])+$"
FOREIGN = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Cyrillic}\p{Arabic}]{2,}"
OPTIONS = (
    r"\(A\)[\s\S]{1,400}\(B\)[\s\S]{1,400}\(C\)|\\textbf\{\(A\)|"
    r"(?:^|\s)A[.)]\s[\s\S]{1,400}?\sB[.)]\s[\s\S]{1,400}?\sC[.)]\s|"
    r"\n\s*A\s+[-$\\0-9(][^\n]*\n\s*B\s+[-$\\0-9(][^\n]*\n\s*C\s+[-$\\0-9(]|"
    r"[?:.]\s*\n\s*\(a\)[^\n]{1,30}\n\s*\(b\)[^\n]{1,30}\n\s*\(c\)[^\n]{1,30}\n\s*\(d\)|"
    r"(?i:\bwhich (?:\w+ )?of (?:the following|these)\b[\s\S]*\n\s*1[.)][\s\S]*\n\s*2[.)]|"
    r"\b(?:select|choose|pick|mark) (?:the |one of the )?(?:correct|right|following)\b|\boptions are:|\bwhich option\b)"
)
# What is said in quotation marks, or written into a drawing, asks nothing of the reader.
ASIDE = r"\"[^\"\n]{0,300}\"|“[^”\n]{0,300}”|``[^'\n]{0,300}''|\[asy\][\s\S]*?\[/asy\]"
# A second part counts when it asks something: (a) and (b) also number the conditions of one question.
GET = "find|determine|calculate|compute|evaluate|solve|simplify|what (?:is|are)|how (?:many|much)|give"
MORE = "compare|discuss|verify|judge|explain|justify|draw|sketch|construct|try"
SECOND = r"(?:\(2\)|\(b\)|\((?:ii|II|Ⅱ)\)|\n\s*2[.)]|\n\s*b[.)])"
HOW_MANY_OF = r"(?i)\bhow many (?:\w+ ){0,6}(?:of|these|the following)\b"
MANY = "equations|inequalities|expressions|limits|integrals|derivatives|systems|sums|products|questions|problems|functions"
# At the start of a line or after punctuation: f(2), (a, b) and (x - 2) are no numbers of parts.
MARK = r"(?:(?:\n|[:;,.])[\s$]*\((?:2|b|ii|II|Ⅱ)\)|(?:\n|[;.])[\s$]*[2b]\)|\n\s*[2b]\.|[.:]\s+2\.\s)"
NUMBERED = rf"(?i)\b(?:the following|these|each)(?: \w+){{0,2}} (?:{MANY})\b[\s\S]*{MARK}"
CLAUSE = r"(?i:(?:if|when|given|suppose|for|let|in)\b[^?]{0,200}?\b|please\s)?"
# A list whose first item asks, or that goes on where a question stopped: "Calculate: (1) ...", "How many, if (a) ...". One
# question may well list its conditions, but does not ask "under" each of them.
FIRST = r"(?:<br ?/?>|[\s$\\({-])*\(?(?:[1ai①Ⅰ]\)|①|1[.)]\s)"
SECOND_ITEM = r"[\s\S]*(?:\((?:2|b|ii|②|Ⅱ)\)|②|\n\s*[2b][.)])"
LISTED = (
    rf"(?i)(?:\b(?:{GET})(?: the following(?: \w+)?)?\s*[:,]?){FIRST}{SECOND_ITEM}|"
    rf"\b(?:{GET})\b[^.?!]*\b(?:if|when)[\s:]*\(?[1a]\){SECOND_ITEM}|"
    r"\b(?:under|according to|for|in|given) (?:each of )?the following (?:\w+ )?"
    rf"(?:conditions|requirements|situations|circumstances|cases|results)\b[\s\S]{{0,60}}?{FIRST}{SECOND_ITEM}|"
    rf"(?:^|[\n:;,.>])[\s$\\(]*(?:\([1aiⅠ]\)|①|\n\s*1\.\s)[\s$\\)]*(?:\([^()]{{1,12}}\)\s*)?{CLAUSE}(?:{GET}|prove|show|use)\b"
    rf"{SECOND_ITEM}"
)
# "What is the volume for sides of: a) ... b) ...", unless what is listed are conditions of one question.
CASES = rf"(?i)\b(?:{GET})\b[^.?!]*:\s*\(?[1a]\)[\s\S]*\s\(?[2b]\)"
CONDITIONS = r"(?i)\bthat:|\b(?:satisf[a-z]+|conditions?|properties|statements?|true|system)\b[^:]{0,60}:"
PARTS = rf"{SECOND}[\s$\\)]*{CLAUSE}(?i:{VERBS}|{MORE})\b|②\s*(?i:please )?(?i:{VERBS})\b|\?[\s\S]*\?"
# One sentence that asks twice, unless the second number is made of the first: "..., and find m + n".
EXTREMES = "maximum|minimum|largest|smallest|greatest|least|highest|lowest"
# No sum among them: "the sum of the area and the perimeter" is one number.
QUANTITY = (
    "values?|number|area|perimeter|volume|length|circumference|radius|root|height|width|distance|probability|angle|equation"
)
UNKNOWN = r"(?:\$[^$]{1,20}\$|\\\([^)]{1,20}\\\)|[A-Za-z])"
TWO_ASKS = (
    r"(?i)\b(?:find|determine|calculate|compute|what (?:is|are)|how (?:many|much))\b[^.?!;]*"
    r"\band (?:what|how (?:many|much|long|far)|find|determine|calculate|compute)\b|"
    r"\bfor (?:what|which) (?:real )?(?:values?|numbers?)\b[\s\S]*\(1\)[\s\S]*\(2\)|"
    r"\b(?:find|estimate|calculate|determine|compute) the (?:\w+ ){0,3}(?:mean|average|expectation)\b[^.?!;]{0,60}"
    r"\band (?:the )?(?:variance|standard deviation)\b|"
    rf"\b(?:{GET})\s+(?:the |its |both )*(?:{EXTREMES})(?: possible)?(?: values?)? and (?:the )?(?:{EXTREMES})\b|"
    rf"\b(?:{GET}) (?:{UNKNOWN}|(?:the |its )?(?:\w+ ){{0,2}}(?:{QUANTITY})(?: of (?:the |a )?\S+(?: \S+)?)?),? "
    rf"and (?:also )?(?:(?:the|its) (?:\w+ ){{0,2}})?(?:{QUANTITY})\b|"
    rf"\b(?:{GET}) both\b|"
    rf"\b(?:{GET}) (?:(?:the )?(?:values|lengths|areas|sizes|measures) of )?(?:the )?{UNKNOWN} and {UNKNOWN}"
    r"(?:[.?;\s]*$|,? (?:respectively|given|if|when|where|and|;)\b[^.?!]*[.?]?\s*$)|"
    r"[.?!]\s+also,? (?:find|determine|calculate|compute|what|how)\b|\bgenerali[sz]e\b[^.?!]*[.!?]?\s*$"
)
ONE_OF_BOTH = (
    r"(?i)\bremainder\b|numerator|relatively prime|coprime|\bthe form\b|"
    r"\b(?:written|expressed|express it|put) (?:in|as)\b|\bsum of (?:these|the two|both)\b"
)
# A choice of which nothing follows but words.
OF_THESE = (
    r"(?i)\bwhich (?:one )?of (?:the following|these)\b(?:[^0-9$:\\\n,]|\$[a-z]\$)*$|\bwhich could not be\b[^0-9$:\\\n,]*$"
)
# One of several right answers is asked for; the answer column holds another.
ANY_OF_THEM = r"(?i)\b(?:a|one|any) possible value\b"
# A lone \\quad between dollars is a blank too.
ANY_BLANK = rf"(?:{BLANK}|\$\s*\\q?quad\s*\$|\\\(\s*\\q?quad\s*\\\))"
BLANKS = rf"{ANY_BLANK}[\s\S]*[^_\\\s\x{{a0}}][\s\S]*{ANY_BLANK}"
PICTURE = r"(?i)<img|!\[|\[img\]|\\includegraphics"
DRAWABLE = (
    "star|figure|diagram|picture|graph|chart|table|grid|cube|square|rectangle|triangle|polygon|pentagon|hexagon|octagon|circle|"
    "trapezoid|parallelogram|quadrilateral|solid|shape|map|board|spinner|net|flag|pattern|network|problem|region|pyramid|paths?|directions|multiplication|subtraction"
)
# Text that leaves its data to a picture or a table, which is there when it is drawn or set in the text itself. "In the
# diagram" alone is none of these: what it shows is mostly told as well.
POINTS_TO_PICTURE = (
    r"(?i)\b(?:graph|chart|table|picture|image|figure|diagram|drawing)s? (?:below|above|shows?|displays?|represents?)\b|"
    r"\bfollowing (?:bar |line |circle )?(?:graph|chart|image|picture|histogram)\b|"
    r"\b(?:shown|seen|pictured|exhibited|drawn) (?:below|above)\b|\bshown in the (?:\w+ )?(?:graph|chart|table)\b|"
    r"\b(?:is|are) (?:shown|pictured|depicted|illustrated)(?:[.,?]| in (?:the|a)\b)|"
    r"\b(?:arranged?|placed|form(?:ed)?|divided|removed|tilted|labell?ed)\b[^.?!;]{0,60}\bas shown\b|"
    r"\b(?:in|into|on) the (?:image|illustration)\b|\bthe given (?:grid|image|picture)\b|\bshaded in gr[ae]y\b|"
    rf"\bthe (?:\w+ )?shaded\b|\bthe (?:[a-z-]+ )?(?:{DRAWABLE}) shown(?:[,.]| (?:is|are|has|have|consists|here|at)\b)"
)
DRAWN = r"\[asy\]|\\begin\{(?:tabular|array|tikz|[bpv]?matrix)|\|[^|\n]*\|[^|\n]*\|"
# Yes or no, whatever the answer column holds; unless a number is asked for besides.
WHETHER = (
    r"(?i)(?:^|[.,:;?!]\s+|\n\s*|\band )(?:determine|decide|find out|investigate|judge|check|ascertain) (?:whether|if)\b|"
    r"(?:^|[.!?]\s+|\n\s*)(?:is|are|was|were|does|do|did|can|could|will|has|have) [^.?!]*\?\s*$"
)
NUMBER_TOO = (
    r"(?i)\b(?:how (?:many|much|far|long|old)|what|which|find (?:the|all|its|their|it|this|that|a)\b|find [$\\]|compute|"
    r"calculate|evaluate|give (?:the|its)|state (?:the|its)|list (?:the|all)|determine (?:the|its|all))\b"
)
PROOF = r"(?i)\b(?:prove|show|demonstrate|disprove) (?:that|or disprove|this|the following|why)\b|\bprove\b[^.?!]{0,20}$"
# Guessing games with partial credit; nobody derives the number.
GUESS = (
    r"(?i)\byour score\b[^.?!]{0,30}\bwill be\b|"
    r"\bestimate\b[\s\S]*\b(?:earns?|receives?|scores?)\b[\s\S]{0,120}(?:\bpoints\b|\\(?:max|min|left|lfloor)\b)"
)
# An answer in percent to a problem that does not name the unit: 0.25 would be graded against the label 25.
PERCENT = re.compile(r"(?i)%|per ?cent")
STATED = re.compile(r"(?i)\banswer\s*(?:is|:|=)\s*\$?(-?[0-9]+)\b")
# Signs to be put between numbers: an expression is asked for, and its given value stands in the answer column.
SIGNS = re.compile(
    r"(?i)\b(?:place|put|insert|write|use|add|arrange)\b[^.?!]*\b(?:signs?|parenthes[ei]s|brackets|operations?)\b"
)
ASKS_NUMBER = re.compile(
    r"(?i)\b(?:how (?:many|much)|what|which|find the|compute|determine|calculate|largest|smallest|least|maximum|minimum)\b"
)
COMMANDS = re.compile(rf"(?i)\?|\b(?:{VERBS})\b")
RESULT = re.compile(r"(?i)(?:\bis|=|\bequals?|\bequal to)[\s$\\(]*(-?[0-9]+)[\s$\\).]*$")
CONCLUDES = re.compile(r"(?i)\b(?:the answer is|thus|therefore|hence|consequently)\b[^?]*$")
# Words by which a problem asks for several numbers. "The cost of each" of two things is a list of two.
ASKS_LIST = re.compile(
    r"(?i)separated by|ordered (?:pair|triple)|\blist (?:all|the|them|your|every)\b|\bfind all\b|"
    r"\ball (?:possible |real |positive |integer )*(?:values|solutions|integers|numbers|primes)|"
    r"(?<!number of )(?<!number of real )(?<!number of integer )\b(?:solutions|roots)\b|coordinates|respectively|"
    r"(?:ascending|increasing|descending) order|\bof each\b|\b(?:did|do|does|will|would|must|should|can) each\b[^.?!]*\?\s*$|"
    r"\b(?:is|are|was|were|costs?) each\s*\?|\bwhat are\b|\bare what\b|\bwhat values\b|"
    r"\bwhich (?:two |three )?(?:numbers|integers|values|primes|are)\b|\bhow many\b[^.?!]*\band how many\b|"
    r"\b(?:find|determine|name|give|what were) (?:the |two |three |four |both |these |those |such |other |positive |prime )*"
    r"(?:numbers|integers|values|primes|ages|prices|costs|dimensions|lengths|sides|digits)\b"
)
# Words by which it asks for one. Two groups of digits count as one number only after such a word.
ASKS_ONE = re.compile(
    r"(?i)\b(?:how (?:many|much|far|long|old|tall|high|big|large)|what|find|compute|determine|calculate|evaluate|convert|"
    r"estimate|simplify|multiply|add|subtract|divide|round|equals?)\b|=[\s$]*$"
)
# A bare comma between digits; `{,}` and `,\!` are how a thousands group is typeset and separate no list.
BARE_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9])")
