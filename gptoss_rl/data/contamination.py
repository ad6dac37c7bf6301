"""Which problems of one collection stand in another: exactly, in part, or nearly.

The one place where this is decided; filters, evaluation sets and the launch gate use it.

    exact     equal after normalisation (gptoss_rl.data.normalise; numbers are kept)
    ngram     at least half of the shorter text's runs of 10 words stand in the other
    near      Jaccard similarity of 3-word shingles of at least 0.8, found by MinHash and then computed exactly
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from datasketch import MinHash, MinHashLSH
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from gptoss_rl.data.normalise import SHINGLE, jaccard, normalise, shingles

NGRAM, NGRAM_SHARE = 10, 0.5
NEAR = 0.8
PERMUTATIONS = 64
KINDS = ("exact", "ngram", "near")
LSH_THRESHOLD = 0.7  # below NEAR, because MinHash only estimates


@dataclass(frozen=True)
class Match:
    """A problem of the pool that stands in the other collection."""

    pool_id: str
    other_id: str
    other_set: str
    kind: str  # exact, ngram or near
    similarity: float
    pool_text: str
    other_text: str


@dataclass(frozen=True)
class Problem:
    id: str
    text: str
    source: str  # name of the set it stands in


def signature(tokens: Iterable[str]) -> MinHash:
    """MinHash of a set of shingles; the hash is CRC-32, the same on every machine and Python."""
    made = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=zlib.crc32, permutations=_PERMUTATIONS)
    made.update_batch([token.encode() for token in tokens])
    return made


_PERMUTATIONS = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=zlib.crc32).permutations


class Index:
    """A collection to look problems up in."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems: list[Problem] = []
        self.sets: list[set[str]] = []
        self.known: set[str] = set()  # the shingles of all problems
        self.exact: dict[str, list[int]] = defaultdict(list)
        self.by_ngram: dict[str, list[int]] = defaultdict(list)
        self.ngram_counts: list[int] = []
        self.near = MinHashLSH(threshold=LSH_THRESHOLD, num_perm=PERMUTATIONS)
        for problem in problems:
            self._add(problem)

    def _add(self, problem: Problem) -> None:
        number, text = len(self.problems), normalise(problem.text)
        tokens, ngrams = shingles(text), shingles(text, NGRAM)
        self.problems.append(problem)
        self.sets.append(tokens)
        self.known |= tokens
        self.ngram_counts.append(len(ngrams))
        self.exact[text].append(number)
        for ngram in ngrams:
            self.by_ngram[ngram].append(number)
        self.near.insert(number, signature(tokens))

    def may_match(self, normalised: str) -> bool:
        """False only when no problem can match; costs no MinHash, and is False for nearly all of a large collection.

        A shared run of ten words is a run of eight shared shingles, and texts as alike as NEAR share that part of theirs.
        """
        words = normalised.split()
        tokens = list(map(" ".join, zip(*(words[i:] for i in range(SHINGLE)), strict=False))) or [normalised]
        shared = bytes(map(self.known.__contains__, tokens))  # a byte for each shingle, 1 or 0
        if b"\1" * (NGRAM - SHINGLE + 1) in shared:
            return True
        distinct = set(tokens)
        return len(distinct & self.known) >= NEAR * len(distinct)

    def matches(self, problem: Problem) -> list[Match]:
        """The closest match in every set that has one, exact before partial before near; the closest of all comes first."""
        text, closest = normalise(problem.text), {}
        if not self.may_match(text):
            return []
        for kind, shares in (("exact", self._equal), ("ngram", self._partial), ("near", self._near)):
            for number, share in sorted(shares(text).items(), key=lambda item: (-item[1], item[0])):
                closest.setdefault(self.problems[number].source, self._match(problem, number, kind, share))
        return list(closest.values())

    def find(self, problem: Problem) -> Match | None:
        """The closest match of a problem; None when there is none."""
        return next(iter(self.matches(problem)), None)

    def similar(self, problem: Problem) -> set[int]:
        """Numbers of all problems of the index that match, in any form."""
        text = normalise(problem.text)
        return self._equal(text).keys() | self._partial(text).keys() | self._near(text).keys()

    def _equal(self, text: str) -> dict[int, float]:
        return dict.fromkeys(self.exact.get(text, ()), 1.0)

    def _partial(self, text: str) -> dict[int, float]:
        """Number -> share of the shorter text's n-grams, where it is high enough."""
        if len(text.split()) <= NGRAM:
            return {}
        ngrams = shingles(text, NGRAM)
        hits = Counter(number for ngram in ngrams for number in self.by_ngram.get(ngram, ()))
        shares = {n: count / min(len(ngrams), self.ngram_counts[n]) for n, count in hits.items()}
        return {n: share for n, share in shares.items() if share >= NGRAM_SHARE}

    def _near(self, text: str) -> dict[int, float]:
        """Number -> Jaccard similarity, where it is high enough."""
        tokens = shingles(text)
        shares = {n: jaccard(tokens, self.sets[n]) for n in self.near.query(signature(tokens))}
        return {n: share for n, share in shares.items() if share >= NEAR}

    def _match(self, problem: Problem, number: int, kind: str, similarity: float) -> Match:
        other = self.problems[number]
        return Match(problem.id, other.id, other.source, kind, round(similarity, 4), problem.text, other.text)


def find_matches(pool: Iterable[Problem], others: Iterable[Problem]) -> list[Match]:
    """Every problem of the pool that stands in the others, with its closest match."""
    index = Index(others)
    return [match for problem in pool if (match := index.find(problem)) is not None]


def families(problems: list[Problem]) -> list[list[int]]:
    """The problems' positions, those together that match each other in any form, directly or by way of others."""
    index = Index(problems)
    pairs = [(position, other) for position, problem in enumerate(problems) for other in index.similar(problem)]
    first, second = zip(*pairs, strict=True) if pairs else ((), ())
    graph = coo_array((np.ones(len(pairs)), (first, second)), shape=(len(problems), len(problems)))
    _, family = connected_components(graph, directed=False)
    members: dict[int, list[int]] = defaultdict(list)
    for position, number in enumerate(family):
        members[int(number)].append(position)
    return list(members.values())


def thresholds() -> dict[str, float]:
    """What counts as a match; stands in every manifest."""
    return {"ngram_words": NGRAM, "ngram_share": NGRAM_SHARE, "shingle_words": SHINGLE, "jaccard": NEAR,
            "minhash_permutations": PERMUTATIONS}  # fmt: skip


def match_table(matches: list[Match], compared: Iterable[str] = ()) -> dict[str, dict[str, int]]:
    """Set -> kind of match -> how many problems of the pool; one that stands in two sets counts in both.

    Args:
        compared: the sets that were looked in; they are named also when nothing was found, for 0 is not "never looked".
    """
    counts = {name: dict.fromkeys(KINDS, 0) for name in sorted({*compared, *(match.other_set for match in matches)})}
    for match in matches:
        counts[match.other_set][match.kind] += 1
    return counts


def match_rows(matches: list[Match]) -> list[dict]:
    return [asdict(match) for match in matches]


def near_duplicates(normalised: list[str], labels: list[int]) -> np.ndarray:
    """Which texts repeat an earlier one: (n,) int, the position of the earlier one or -1.

    Texts that differ in a number are variants, not duplicates, and templates have many: a repetition must also have the
    same label.
    """
    seen = MinHashLSH(threshold=LSH_THRESHOLD, num_perm=PERMUTATIONS)
    earlier = np.full(len(normalised), -1)
    for position, text in enumerate(tqdm(normalised, desc="near-duplicates", unit="problem", disable=None)):
        tokens = shingles(text)
        hashed = signature(tokens)
        for candidate in sorted(seen.query(hashed)):
            if labels[candidate] == labels[position] and jaccard(tokens, shingles(normalised[candidate])) >= NEAR:
                earlier[position] = candidate
                break
        else:
            seen.insert(position, hashed)
    return earlier
