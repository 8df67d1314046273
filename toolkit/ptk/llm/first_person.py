"""Says a persona in the first person: `The user is new to this and prefers examples` -> `I am new to this and prefer examples`.

English, and by rules: the verb of the sentence and those that stand beside it are turned, and so are pronouns that speak of the user.
What a relative clause says (`a planner who prefers`) has its own subject and stays as it is.
"""

from __future__ import annotations

import re

__all__ = ["first_person"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_IRREGULAR = {
    "is": "am",
    "was": "was",
    "has": "have",
    "does": "do",
    "goes": "go",
    "isn't": "am not",
    "wasn't": "wasn't",
    "hasn't": "haven't",
    "doesn't": "don't",
}
_STANDS = _words("can could may might must shall should will would cannot can't won't wouldn't had did didn't")
_REGULAR = _words(
    """accepts admires admits aims appreciates approaches asks assumes avoids believes brings cares checks chooses comes compares
    considers cooks craves demands deserves dislikes distrusts doubts embraces enjoys expects explores faces favors favours fears feels
    finds focuses follows gets gives hates hopes insists keeps knows lacks leads learns leans lets likes lives longs looks loves
    makes means minds needs opposes owns pays plans prefers prioritises prioritizes promotes puts questions reads regards rejects
    relies remembers requires respects responds runs sees seeks seems shares speaks spends strives studies struggles supports takes
    teaches tends thinks thrives travels treats tries trusts understands uses validates values wants watches weighs welcomes
    wishes wonders works worries writes"""
)
_ALSO_NOUNS = _words(
    """aims approaches doubts fears feels follows hopes likes looks minds needs plans questions respects shares studies supports
    takes tries uses values wants watches wishes works worries"""
)
_ENDS_A_NOUN = _words("and or but of in on at for with to from as than over rather that which who when while about into")

_USER = r"(?:the|this)\s+user"
_ADVERB = r"(?:(?:\w+ly|also|often|always|never|still|just|rather|sometimes|usually|now)\s+)*"
_SUBJECT = re.compile(rf"(?i)\b{_USER}(?P<between>\s+{_ADVERB})(?P<verb>[a-z]+(?:['’]t)?)\b")
_POSSESSIVE = re.compile(rf"(?i)\b{_USER}['’]s\b")
_OBJECT = re.compile(rf"(?i)\b{_USER}\b")
_BESIDE = re.compile(
    rf"(?i)(?P<before>(?:(?:[,;]\s+|\b)(?:and|but|or|yet)|[,;])\s+{_ADVERB})(?P<verb>[a-z]+(?:['’]t)?)(?=(?P<after>\W+\w+|\W*$))"
)
_RELATIVE = re.compile(r"(?i)\b(?:who|whose|whom|somebody|someone|anyone)\b")
_SINGULAR = re.compile(r"(?i)\b(?:what|which|that)\s+(?:\w+ly\s+)?(?:is|has|does|\w*[a-rt-z]s)\b")
_OTHERS = re.compile(r"(?i)\b(?:even if|whether|although|though|because|since|unless|until|if|when|where|as|than)\s+$")
_THEY = re.compile(r"They\b|Their\b")
_PRONOUN = re.compile(
    r"(?i)\b(?P<word>they(?:['’](?:re|ve|ll|d)|\s+are|\s+were)?|them|their|theirs|themsel(?:ves|f)|himself|herself|his or her)\b"
)
_PRONOUNS = {
    "they": "I",
    "they're": "I'm",
    "they've": "I've",
    "they'll": "I'll",
    "they'd": "I'd",
    "they are": "I am",
    "they were": "I was",
    "them": "me",
    "their": "my",
    "theirs": "mine",
    "themselves": "myself",
    "themself": "myself",
    "himself": "myself",
    "herself": "myself",
    "his or her": "my",
}
_SENTENCE = re.compile(r"(?<=[.!?])(\s+)(?=[A-Z])")


def first_person(persona: str) -> str:
    """Return the persona as the user would say it of themselves.

    A text that does not speak of `the user` comes back as it is. Pronouns inside a relative clause stay (`a parent who wants their
    children safe`), and so do those that may speak of something else (`even if they are long`).
    """
    if not _OBJECT.search(persona):
        return persona
    parts = _SENTENCE.split(persona)
    return "".join(part if number % 2 else _turned(part) for number, part in enumerate(parts))


def _turned(sentence: str) -> str:
    relative = _RELATIVE.search(sentence)
    end = relative.start() if relative else len(sentence)
    head, tail = sentence[:end], sentence[end:]
    if _SUBJECT.search(head) or _THEY.match(head):
        head = _PRONOUN.sub(_pronoun, _BESIDE.sub(_verb_beside, head))
    text = _POSSESSIVE.sub(lambda found: _as_written("my", found[0]), _SUBJECT.sub(_subject, head + tail))
    return _OBJECT.sub(lambda found: _as_written("me", found[0]), text)


def _subject(found: re.Match[str]) -> str:
    verb = found["verb"].lower().replace("’", "'")
    if found.start() == 0 or verb in _IRREGULAR or verb in _REGULAR or verb in _STANDS:
        return f"I{found['between']}{_conjugated(found['verb'])}"
    return found[0]  # `helps the user decide`


def _verb_beside(found: re.Match[str]) -> str:
    verb, after = found["verb"], found["after"].strip()
    # `a reply that explains and offers help`: the reply offers; but only people prefer.
    of_a_thing = verb.lower() != "prefers" and _SINGULAR.search(found.string, 0, found.start()) is not None
    if of_a_thing or not _is_verb(verb.lower(), after):
        return found[0]
    return found["before"] + _conjugated(verb)


def _is_verb(word: str, after: str) -> bool:
    if word in _IRREGULAR:
        return True
    if word not in _REGULAR:
        return False
    following = re.sub(r"\W", "", after).lower()
    plain = after[:1].isalnum()  # no comma or full stop between
    return word not in _ALSO_NOUNS or (bool(following) and plain and following not in _ENDS_A_NOUN)


def _pronoun(found: re.Match[str]) -> str:
    word = " ".join(found["word"].lower().replace("’", "'").split())
    if word.startswith("they") and _OTHERS.search(found.string[: found.start()]):
        return found[0]
    return _as_written(_PRONOUNS[word], found[0])


def _as_written(word: str, before: str) -> str:
    """Return `word` with a capital where `before` has one."""
    return word[0].upper() + word[1:] if before[0].isupper() else word


def _conjugated(verb: str) -> str:
    """Return the form of a verb that goes with `I`."""
    plain = verb.lower().replace("’", "'")
    if plain in _IRREGULAR:
        return _IRREGULAR[plain]
    if plain in _STANDS or not plain.endswith("s") or plain.endswith("ss"):
        return verb
    if plain.endswith("ies") and len(plain) > 4:
        return plain[:-3] + "y"
    if plain.endswith(("sses", "shes", "ches", "xes", "zzes", "oes")):
        return plain[:-2]
    return plain[:-1]
