"""Captions of a scene in English and Turkish: the canonical one, and the many ways people say it.

Turkish puts the reference first, in the genitive, and the relation on its own noun:
"mavi bir kürenin solunda kırmızı bir küp" is "at a blue sphere's left a red cube".
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from sdjax.errors import InputError
from sdjax.toyworld.scene import REVERSE, Scene, Solid, pick

LANGUAGES = ("en", "tr")

COLOURS_TR = {
    "red": "kırmızı",
    "green": "yeşil",
    "blue": "mavi",
    "yellow": "sarı",
    "orange": "turuncu",
    "purple": "mor",
    "white": "beyaz",
    "black": "siyah",
}
SHAPES_TR = {
    "cube": "küp",
    "sphere": "küre",
    "cone": "koni",
    "cylinder": "silindir",
    "ring": "halka",
    "object": "cisim",
}
# The last vowel chooses among -ın -in -un -ün, a final vowel adds an n, and cisim loses its second i.
GENITIVE_TR = {
    "küp": "küpün",
    "küre": "kürenin",
    "koni": "koninin",
    "silindir": "silindirin",
    "halka": "halkanın",
    "cisim": "cismin",
}
SIZES_TR = {"small": "küçük", "large": "büyük"}
RELATIONS_TR = {"left of": "solunda", "right of": "sağında", "in front of": "önünde", "behind": "arkasında"}

# Other ways to say a word, as likely as their share of the row; the first is the canonical one.
RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "in front of": ("in front of",),
    "behind": ("behind",),
}
TIME_WORDS_EN = {"day": ("by day", "in daylight"), "night": ("at night",)}
TIME_WORDS_TR = {"day": ("gündüz", "gündüz vakti"), "night": ("gece", "gece vakti")}

# The same read backwards: what colour a word says, and what shape, "" for any.
COLOUR_OF = {word: colour for colour, turkish in COLOURS_TR.items() for word in (colour, turkish)}
SHAPE_OF = {
    word: "" if shape == "object" else shape
    for shape, turkish in SHAPES_TR.items() for word in (shape, turkish, GENITIVE_TR[turkish])
}

Named = tuple[str, str, str]  # size, colour and shape of a solid as far as they are said, "" where not


def describe(scene: Scene, language: str = "en", sizes: bool = True) -> str:
    """The canonical caption in "en" or "tr": all but the time of day, sizes where asked for."""
    _check(language)
    named = [(s.size if sizes else "", s.colour, s.shape) for s in scene.solids]
    if language == "en":
        said = [_solid_en(n) for n in named]
        return said[0] if scene.relation is None else f"{said[0]} {scene.relation} {said[1]}"
    if scene.relation is None:
        return _solid_tr(named[0])
    return f"{_solid_tr(named[1], genitive=True)} {RELATIONS_TR[scene.relation]} {_solid_tr(named[0])}"


def caption(scene: Scene, rng: np.random.Generator, language: str = "en") -> str:
    """A true caption in "en" or "tr", as one of many people might put it; lower-case letters and spaces only.

    Half leave out sizes, two thirds the time, one in 25 the colour or the shape of a solid; of those
    of two solids half begin with the other one, and a fifth leave out the relation.
    """
    _check(language)
    solids, relation = scene.solids, scene.relation
    if relation is not None and rng.random() < 0.5:
        solids, relation = solids[::-1], REVERSE[relation]
    if rng.random() < 0.2:
        relation = None
    named = _name(solids, rng)
    time = scene.time if rng.random() < 1 / 3 else None
    return (_sentence_en if language == "en" else _sentence_tr)(named, relation, time, rng)


def named_last(said: str, scene: Scene) -> list[Solid | None]:
    """For each word of a caption of the scene the solid whose noun was the last to be said, None before the first."""
    words, nouns, colour = said.split(), {}, ""
    for i, word in enumerate(words):
        colour = COLOUR_OF.get(word, colour)
        if word in SHAPE_OF:
            nouns[i], colour = (colour, SHAPE_OF[word]), ""
    # Where a colour or a shape is left out, only one order lets every noun name a solid of its own.
    order = next(
        order for order in permutations(scene.solids)
        if all(c in ("", solid.colour) and s in ("", solid.shape) for (c, s), solid in zip(nouns.values(), order))
    )
    solids = dict(zip(nouns, order))
    found: list[Solid | None] = []
    for i in range(len(words)):
        found.append(solids.get(i, found[-1] if found else None))
    return found


def _check(language: str) -> None:
    if language not in LANGUAGES:
        raise InputError(f"language: found {language!r}, expected 'en' or 'tr'; choose one of the two")


def _name(solids: tuple[Solid, ...], rng: np.random.Generator) -> list[Named]:
    sizes = rng.random() < 0.5
    named = [(s.size if sizes else "", s.colour, s.shape) for s in solids]
    if rng.random() < 0.04:
        i = pick(rng, range(len(named)))
        size, colour, shape = named[i]
        named[i] = pick(rng, ((size, "", shape), (size, colour, "object")))
    return named


def _solid_en(named: Named) -> str:
    words = " ".join(word for word in named if word)
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _sentence_en(named: list[Named], relation: str | None, time: str | None, rng: np.random.Generator) -> str:
    if rng.random() < 0.2:
        other = {"small": "little", "large": "big", "": ""}
        named = [(other[size], colour, shape) for size, colour, shape in named]
    link = pick(rng, RELATION_WORDS[relation]) if relation else "and"
    said = f" {link} ".join(_solid_en(n) for n in named)
    frame = rng.random()
    if frame < 0.15:
        said = f"a picture of {said}"
    elif frame < 0.3:
        said = f"there is {said} on the floor"
    elif frame < 0.4:
        said = f"there is {said}"
    if time is None:
        return said
    when = pick(rng, TIME_WORDS_EN[time])
    return f"{when} {said}" if 0.15 <= frame < 0.4 and rng.random() < 0.5 else f"{said} {when}"


def _solid_tr(named: Named, genitive: bool = False, article: str = "bir") -> str:
    size, colour, shape = named
    noun = GENITIVE_TR[SHAPES_TR[shape]] if genitive else SHAPES_TR[shape]
    words = (SIZES_TR.get(size, size), COLOURS_TR.get(colour, ""), article, noun)
    return " ".join(word for word in words if word)


def _sentence_tr(named: list[Named], relation: str | None, time: str | None, rng: np.random.Generator) -> str:
    if rng.random() < 0.2:
        other = {"small": "ufak", "large": "kocaman", "": ""}
        named = [(other[size], colour, shape) for size, colour, shape in named]
    article = "bir" if rng.random() < 0.75 else ""
    said = [_solid_tr(n, article=article) for n in named]
    frame = rng.random()
    if relation is not None:
        place = f"{_solid_tr(named[1], True, article)} {RELATIONS_TR[relation]}"
        # With the place last the first solid is the topic: "kırmızı küp mavi kürenin solunda".
        said = [f"{said[0]} {place}" if frame > 0.8 else f"{place} {said[0]}"]
    sentence = " ve ".join(said)
    if frame < 0.1:
        sentence = f"resimde {sentence} var"
    elif frame < 0.25:
        sentence = f"yerde {sentence} var"
    elif frame < 0.35:
        sentence = f"{sentence} var"
    elif frame < 0.4 and len(named) == 1:
        sentence = f"{_solid_tr(named[0], True, article)} resmi"
    return sentence if time is None else f"{pick(rng, TIME_WORDS_TR[time])} {sentence}"
