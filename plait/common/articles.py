"""How the name of a drawing is said in an English sentence."""

import re

_PROPER = re.compile(r"^(Santa|Mrs\.|Mx|mount|Tokyo|T-Rex)\b")
_STUFF = """
bread bacon garlic butter salt ice rice sushi oden popcorn soap wood yarn thread coral fog fire mate sake tennis
bowling volleyball baseball basketball badminton softball rugby football confetti broccoli ginger milk
"""
_STUFF_WORDS = frozenset(_STUFF.split())
_AN = re.compile(r"(?!uni|e[uw]|one|US\b|UK\b)[aeiouAEIOU]|hour|x-ray|SOS|NG\b|L\b|M\b")


def with_article(name: str, group: str = "") -> str:
    """Return a name as it is said in a sentence: ``an ox``, ``the flag of Chad``, ``grapes``, ``Aries``."""
    if name.startswith("flag of "):
        return f"the {name}"
    return f"{'an' if _AN.match(name) else 'a'} {name}" if is_countable(name, group) else name


def is_countable(name: str, group: str = "") -> bool:
    """Return whether a name is that of one thing among others: no proper name, no stuff, no plural."""
    head = re.split(r" (?:with|without|of|in|on|and|facing|under|at|for|showing) ", name)[0].split()
    plural = head[0] in ("men", "women", "people", "busts") or re.search(r"[^sui']s$", head[-1])
    return not (group == "zodiac" or _PROPER.match(name) or plural or head[-1] in _STUFF_WORDS)
