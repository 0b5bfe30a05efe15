"""Make the small stand-in for GLUE in `glue/`, beside this script, from a WordNet 3.0 dict folder.

The files have GLUE's own names and columns; the rows are WordNet's example sentences, and their
labels follow from its relations between words: README.md says how. With Debian's wordnet-base
package: python examples/data/make_glue.py /usr/share/wordnet
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from make_senses import BLOCK, rank, usable

Row = tuple[str, ...]

SIZES = (128, 32)  # rows of each label in train and in dev
MNLI_SIZES = {"a": (53, 13), "n": (24, 6), "v": (8, 2)}  # as many verbs have antonyms

# antonyms; a side is every sense of the word that has the other as its antonym, and those near it
SIDES = """
attractive/unattractive beautiful/ugly brave/cowardly careful/careless cheerful/depressing
comfortable/uncomfortable compassionate/uncompassionate competent/incompetent
contented/discontented convenient/inconvenient courteous/discourteous effective/ineffective
efficient/inefficient elegant/inelegant encouraging/discouraging exciting/unexciting
fair/unfair faithful/unfaithful favorable/unfavorable fortunate/unfortunate friendly/unfriendly
generous/stingy glad/sad good/bad graceful/awkward gracious/ungracious grateful/ungrateful
happy/unhappy harmless/harmful healthy/unhealthy helpful/unhelpful honest/dishonest
honorable/dishonorable hopeful/hopeless hospitable/inhospitable humane/inhumane
impressive/unimpressive intelligent/unintelligent interesting/uninteresting joyful/sorrowful
just/unjust kind/unkind lively/dull lovable/hateful lucky/unlucky moral/immoral nice/nasty
optimistic/pessimistic original/unoriginal palatable/unpalatable perfect/imperfect
pleasant/unpleasant pleasing/displeasing polite/impolite refined/unrefined reliable/unreliable
reputable/disreputable respectful/disrespectful responsible/irresponsible safe/dangerous
satisfactory/unsatisfactory sincere/insincere skilled/unskilled successful/unsuccessful
sympathetic/unsympathetic tasteful/tasteless tasty/tasteless trustworthy/untrustworthy
useful/useless valuable/worthless wise/foolish worthy/unworthy"""

NEGATED = re.compile(
    r"\b(?:no|not|cannot|never|none|nor|neither|nobody|nothing|without|hardly)\b|n't\b", re.I
)
QUANTIFIED = re.compile(r"\b(?:all|any|both|each|every|few|if|less|little|more|most|only)\b", re.I)
"""With these it may be the other way round which of two sentences follows from which."""

# A word in a place where it is not inflected, nor the first half of a longer name.
AFTER_NOUN = (
    r"(?=[,;.?!]|$| (?:of|in|on|at|to|for|with|from|by|and|or|but|that|which|who|is|was|are|were"
    r"|has|had|as|into|over|after|before|when|while|can|will|would)\b)"
)
BEFORE_VERB = r"(?:^|\b(?:to|can|will|would|must|should|could|may|might|please|let's) )"
PLACES = {
    "n": re.compile(r"(?<![\w'-])([a-z]{3,})" + AFTER_NOUN),
    "v": re.compile(BEFORE_VERB + r"([a-z]{3,})(?![\w'-])"),
    "a": re.compile(r"(?<![\w'-])([a-z]{3,})(?![\w'-])"),
}
PLACES["r"] = PLACES["a"]
SENTENCE = re.compile(r"(?:[Hh]e|[Ss]he|[Tt]hey|[Ww]e|[Ii]t|I|[Yy]ou) [^,;:()]+")
VOWEL = re.compile(r"(?!un[ia]|us[aeiu]|eu|on[ce]e?\b|ut[ei])[aeiou]|hono|hour|heir")


@dataclass(frozen=True)
class Sense:
    """A synset: `links` are (symbol, the other's key, this one's word, the other's word)."""

    key: str
    words: tuple[str, ...]
    links: tuple[tuple[str, str, int, int], ...]
    examples: tuple[str, ...]

    def linked(self, symbol: str) -> list[str]:
        """Keys of the senses that a relation between whole senses leads to."""
        return [key for link, key, own, _ in self.links if link == symbol and own == 0]


def read_senses(folder: Path) -> dict[str, Sense]:
    """Every sense, by its part of speech and offset; those with offensive content say nothing."""
    senses = {}
    for end, kind in {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}.items():
        for line in (folder / f"data.{end}").read_text(encoding="latin-1").split("\n"):
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            if line.startswith(" ") or not fields:  # the licence, the end
                continue
            num_words = int(fields[3], 16)
            words = tuple(w.partition("(")[0] for w in fields[4 : 4 + 2 * num_words : 2])
            links = fields[5 + 2 * num_words :]
            links = links[: 4 * int(fields[4 + 2 * num_words])]
            blocked = BLOCK.search(f"{' '.join(words)} {gloss}".replace("_", " "))
            said = [] if blocked else re.findall(r'"([^"]+)"\s*(?=;|$)', gloss)
            senses[kind + fields[0]] = Sense(
                kind + fields[0],
                () if blocked else words,
                tuple(
                    (symbol, other + offset, int(ends[:2], 16), int(ends[2:], 16))
                    for symbol, offset, other, ends in zip(*[iter(links)] * 4, strict=True)
                ),
                tuple(e for e in (" ".join(e.split()) for e in said) if fits(e)),
            )
    return senses


def fits(sentence: str) -> bool:
    """Tell whether a sentence is of 4 to 20 words, plain and inoffensive."""
    return usable(sentence) and len(sentence.split()) >= 4


def replaced(sentence: str, kind: str, old: str, new: str) -> str | None:
    """Put a word in the place of another that comes once, uninflected; `a` may become `an`."""
    places = [place for place in PLACES[kind].finditer(sentence) if place[1] == old]
    if len(places) != 1 or old in new or new in sentence or not re.fullmatch("[a-z]{3,}", new):
        return None
    start, end = places[0].span(1)
    head = sentence[:start]
    if article := re.search(r"\b(a)n? $", head, re.I):
        head = head[: article.end(1)] + ("n " if VOWEL.match(new) else " ")
    made = head + new + sentence[end:]
    return made if fits(made) else None


def swaps(sense: Sense, others: list[tuple[int, str]]) -> Iterator[tuple[str, str]]:
    """Examples with, in place of the sense's word, the first other that fits.

    Args:
        sense: whose examples.
        others: each with which of the sense's words it stands for, from 1; 0 is any.
    """
    for example in sense.examples:
        held = [(i, word) for i, word in enumerate(sense.words) if word in example]
        made = (
            replaced(example, sense.key[0], own, other)
            for place, other in others
            for i, own in held
            if place in (0, i + 1)
        )
        if new := next(filter(None, made), None):
            yield example, new


def wider(senses: dict[str, Sense], sense: Sense) -> list[tuple[int, str]]:
    """What a sense's words are a kind of: hypernyms, of an adjective the one it is close to."""
    keys = sense.linked("&") if sense.key[0] == "a" else sense.linked("@")
    if sense.key[0] == "a" and len(keys) != 1:  # the middle of a cluster
        return []
    return [(0, word) for key in keys for word in senses[key].words]


def opposite(senses: dict[str, Sense], sense: Sense) -> list[tuple[int, str]]:
    """Antonyms of a sense's words."""
    return [
        (own, word)
        for symbol, key, own, other in sense.links
        if symbol == "!"
        for word in senses[key].words[other - 1 : other]
    ]


def beside(senses: dict[str, Sense], sense: Sense) -> list[tuple[int, str]]:
    """Words for other kinds of the same: hyponyms of the hypernyms."""
    return [
        (0, word)
        for parent in sense.linked("@")
        for key in senses[parent].linked("~")
        if key != sense.key
        for word in senses[key].words
    ]


def mnli(senses: dict[str, Sense], kind: str) -> list[list[Row]]:
    """Entailment, neutral, contradiction: a wider word, the sense's next example, an antonym."""
    pools: list[list[Row]] = [[], [], []]
    for sense in (sense for sense in senses.values() if sense.key[0] == kind):
        fixed = (NEGATED, QUANTIFIED)
        positive = [e for e in sense.examples if not any(words.search(e) for words in fixed)]
        sense = replace(sense, examples=tuple(positive))
        pools[0] += [(sense.key, *pair) for pair in swaps(sense, wider(senses, sense))]
        pools[1] += [(sense.key, *pair) for pair in [tuple(positive[:2])] if len(pair) == 2]
        pools[2] += [(sense.key, *pair) for pair in swaps(sense, opposite(senses, sense))]
    return pools


def mrpc(senses: dict[str, Sense]) -> list[list[Row]]:
    """Not equivalent, equivalent: an antonym or another of the same kind, a synonym."""
    pools: list[list[Row]] = [[], []]
    for sense in senses.values():
        other = opposite(senses, sense) or beside(senses, sense)
        pools[0] += swaps(sense, other)
        pools[1] += swaps(sense, [(0, word) for word in sense.words])
    return pools


def cola(senses: dict[str, Sense]) -> list[list[Row]]:
    """Unacceptable, acceptable: the words in any other order, or in their own."""
    whole = [e for s in senses.values() for e in s.examples if SENTENCE.fullmatch(e)]
    return [[(s,) for e in whole if (s := shuffled(e)) is not None], [(e,) for e in whole]]


def shuffled(sentence: str) -> str | None:
    """The words in another order; the sign at the end stays."""
    body = sentence.rstrip(".!?")
    words = body.split()
    order = sorted(range(len(words)), key=lambda i: rank(f"{sentence} {i}", "shuffle"))
    words = [words[i] for i in order]
    return " ".join(words) + sentence[len(body) :] if " ".join(words) != body else None


def sst2(senses: dict[str, Sense]) -> list[list[Row]]:
    """Negative, positive: examples of adjectives near the bad or the good one of two antonyms."""
    pools: list[set[Row]] = [set(), set()]
    for sense in (sense for sense in senses.values() if sense.key[0] == "a"):
        for symbol, key, own, other in sense.links:
            ends = (*sense.words[own - 1 : own], *senses[key].words[other - 1 : other])
            if symbol == "!" and "/".join(ends) in SIDES.split():
                for pool, head in zip(pools, (senses[key], sense), strict=True):
                    near = [head, *(senses[k] for k in head.linked("&"))]
                    pool |= {(e.lower(),) for s in near for e in s.examples}
    both = pools[0] & pools[1]
    return [[row for row in pool - both if not NEGATED.search(row[0])] for pool in pools]


def draw(
    task: str, pools: list[list[Row]], sizes: tuple[int, int], seen: set[str]
) -> list[list[Row]]:
    """Rows for train and dev, as many of each label: `(label, *row)`, no sentence in two rows."""
    drawn: list[list[Row]] = []
    for label in sorted(range(len(pools)), key=lambda i: len(pools[i])):  # the scarcest chooses
        rows: list[Row] = []
        for row in sorted(pools[label], key=lambda row: rank("\t".join(row), f"{task} draw")):
            texts = {" ".join(sorted(t.lower().strip(".!?").split())) for t in row[-2:]}
            if len(rows) < sum(sizes) and not texts & seen:
                seen |= texts
                rows.append((str(label), *row))
        if len(rows) < sum(sizes):
            raise ValueError(f"{task}: {len(rows)} rows with label {label}, {sum(sizes)} wanted")
        drawn.append(rows)
    parts = (slice(sizes[0]), slice(sizes[0], None))
    return [mixed([row for rows in drawn for row in rows[part]], task) for part in parts]


def mixed(rows: list[Row], task: str) -> list[Row]:
    """The rows, shuffled."""
    return sorted(rows, key=lambda row: rank("\t".join(row), f"{task} order"))


MNLI_LABELS = ("entailment", "neutral", "contradiction")
PARSES = ("sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse")


def mnli_rows(rows: list[Row], labels: int) -> list[Row]:
    """GLUE's columns; WordNet has no parses, and one label is all there is."""
    known = tuple(f"label{i + 1}" for i in range(labels))
    head = ("index", "promptID", "pairID", "genre", *PARSES, "sentence1", "sentence2", *known)
    made: list[Row] = [(*head, "gold_label")]
    for i, (label, key, first, second) in enumerate(rows):
        name = MNLI_LABELS[int(label)]
        answers = (name, *[""] * (labels - 1), name)
        made.append((str(i), key, key + name[0], "wordnet", *[""] * 4, first, second, *answers))
    return made


def main(folder: Path) -> None:
    """Draw the four tasks and write their files."""
    senses = read_senses(folder)
    seen: set[str] = set()
    drawn = [draw("mnli", mnli(senses, kind), sizes, seen) for kind, sizes in MNLI_SIZES.items()]
    transposed = zip(*drawn, strict=True)
    train, dev = (mixed([row for rows in part for row in rows], "mnli") for part in transposed)
    files = {"MNLI/train": mnli_rows(train, 1), "MNLI/dev_matched": mnli_rows(dev, 5)}
    for name, rows in zip(("train", "dev"), draw("mrpc", mrpc(senses), SIZES, set()), strict=True):
        head = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
        ids = [(row[0], str(2 * i + 1), str(2 * i + 2), *row[1:]) for i, row in enumerate(rows)]
        files[f"MRPC/{name}"] = [head, *ids]
    for name, rows in zip(("train", "dev"), draw("cola", cola(senses), SIZES, set()), strict=True):
        stars = [("wn30", label, "*" * (label == "0"), text) for label, text in rows]
        files[f"CoLA/{name}"] = stars
    for name, rows in zip(("train", "dev"), draw("sst2", sst2(senses), SIZES, set()), strict=True):
        files[f"SST-2/{name}"] = [("sentence", "label"), *(row[::-1] for row in rows)]
    for name, rows in files.items():
        path = Path(__file__).parent / f"glue/{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join("\t".join(row) + "\n" for row in rows), "ascii", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
