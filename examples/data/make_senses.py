"""Make senses-train.tsv and senses-dev.tsv, beside this script, from a WordNet 3.0 dict folder.

A row is one synset's part of speech, its definition and its first example. With Debian's
wordnet-base package: python examples/data/make_senses.py /usr/share/wordnet
"""

import hashlib
import re
import sys
from pathlib import Path

LABELS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
PARTS = {"train": slice(256), "dev": slice(256, 320)}  # of each label's shuffled rows
SEED = "senses-1"

# definition; "example" and then either the end or another part, so no attributed quotations.
GLOSS = re.compile(r'([^"]+?)[;:,\s]*; *"([^"]+)"\s*(?:;|$)')
PLAIN = re.compile(r"[A-Za-z0-9(][A-Za-z0-9 ,;:.?!'()/%$&-]*[A-Za-z0-9.?!)%]")
# Beginnings of words that keep a synset out; $ marks the end of the word.
BLOCKED = """
abduct abus adulter amorous ape$ arab arous ass$ assa atroc attack barbar bastard beaten beauty
behead bestial bigot bitch black bleed blind bloat blood bodily bomb bosom bra$ breast brutal bugger
bullet butcher buttock carjack castrat catholic chast christian cocaine coloni contracep corpse
coward cripple cruel cunt damn dea[dft] defecat deform die[sd]?$ disfigur dope$ drown drug drunk
dumb dying dyke$ dyslex enslav erotic ethnic excre execut explosi fag$ fanatic fascis fat$ feces
figure$ flesh flirt forgetful freak fuck gay$ genital german ghetto girl girth gore$ grave$ guns?$
guys hang(?:ed)?$ harass hate$ hatred hell$ heroin hijack hitler hiv$ homicid homosex hostage
husband idiot illegit imprison improper in.love incest indigen infidel injur insan inva[ds] islam
jesus jew judas kalash kidnap kill knife koran lacerat lascivi lazy lecher lesbian lewd louche
lunatic lust lynch maim marijuana martyr massacre menstru mexic mistress molest murder muslim
mutilat naked narcot native naz negr nigg nude obscen one-night opium orgy orient pagan peasant
penis pervert petticoat phall pimp$ piss poison porn pregnan primitive prison promiscu prostitut
punish pus$ queer quran rac[ei] rape$ retard rifle satan savage scalp schizo scum seduc semen
sensual sex shit shoot shot$ simpleton slain slaughter slave slug slut smother spank spastic
stab(?:b|$) stalin stalked starv stereotyp strangl stupid suffocat suicid swing terror testic tits
tortur trib[ae] ugly urin vagina victim violen virgin voyeur vulgar wars?$ weapon whip whites?$
whore wi[fv]e widow wom[ae]n wound"""
BLOCK = re.compile(r"\b(?:" + "|".join(BLOCKED.replace("$", r"\b").split()) + ")", re.I)


def rank(row: str, salt: str) -> str:
    """Return a sort key that shuffles rows, the same way on every machine and Python."""
    return hashlib.sha256(f"{SEED} {salt} {row}".encode()).hexdigest()


def usable(text: str) -> bool:
    """Tell whether a definition or an example is short, plain and inoffensive."""
    plain = PLAIN.fullmatch(text) and text.count("(") == text.count(")")
    return bool(plain) and 3 <= len(text.split()) <= 20 and not BLOCK.search(text)


def read_rows(path: Path, label: str, seen: set[str]) -> list[str]:
    """Return a row for each usable synset of a data file with texts not yet in seen, shuffled."""
    rows: list[str] = []
    for line in path.read_text(encoding="latin-1").split("\n"):
        head, _, gloss = line.partition(" | ")
        match = GLOSS.match(gloss)
        if not match or BLOCK.search(head.replace("_", " ")):
            continue
        definition, example = (" ".join(part.split()) for part in match.groups())
        texts = {definition.lower(), example.lower()}
        if usable(definition) and usable(example) and not texts & seen:
            seen |= texts
            rows.append(f"{label}\t{definition}\t{example}")
    return sorted(rows, key=lambda row: rank(row, "draw"))


def main(folder: Path) -> None:
    """Draw as many synsets for each label and write both files."""
    seen: set[str] = set()
    pools = [read_rows(folder / f"data.{end}", label, seen) for end, label in LABELS.items()]
    for name, part in PARTS.items():
        rows = sorted((row for pool in pools for row in pool[part]), key=lambda r: rank(r, "order"))
        out = Path(__file__).with_name(f"senses-{name}.tsv")
        out.write_text("\n".join(["label\tdefinition\texample", *rows, ""]), "ascii", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
