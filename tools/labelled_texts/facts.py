"""Simple facts in four languages: a sentence up to its last word or words, the right ending, and which fact it is.

Two facts of a kind make a pair that swaps its endings, and are one group: in each group every ending is as often right
as wrong, and every subject as often in a true sentence as in a false one, so no word tells the classes apart, neither
within a group nor by what it was in others. (With endings swapped between groups a probe that has learnt nothing but
words falls below chance: what was right in one group is wrong in another.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

LANGUAGES = ("en", "fr", "de", "es")


class Fact(NamedTuple):
    """What stands in front of the ending, the right ending and a wrong one, in each of LANGUAGES."""

    group: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    foils: tuple[str, ...]


# Name in each language (French and Spanish with their article in the genitive), then the capital.
_CAPITALS = """
France|de la France|Frankreich|de Francia : Paris|Paris|Paris|París
Italy|de l'Italie|Italien|de Italia : Rome|Rome|Rom|Roma
Spain|de l'Espagne|Spanien|de España : Madrid|Madrid|Madrid|Madrid
Germany|de l'Allemagne|Deutschland|de Alemania : Berlin|Berlin|Berlin|Berlín
Austria|de l'Autriche|Österreich|de Austria : Vienna|Vienne|Wien|Viena
Greece|de la Grèce|Griechenland|de Grecia : Athens|Athènes|Athen|Atenas
Portugal|du Portugal|Portugal|de Portugal : Lisbon|Lisbonne|Lissabon|Lisboa
Poland|de la Pologne|Polen|de Polonia : Warsaw|Varsovie|Warschau|Varsovia
Russia|de la Russie|Russland|de Rusia : Moscow|Moscou|Moskau|Moscú
Japan|du Japon|Japan|de Japón : Tokyo|Tokyo|Tokio|Tokio
China|de la Chine|China|de China : Beijing|Pékin|Peking|Pekín
Egypt|de l'Égypte|Ägypten|de Egipto : Cairo|Le Caire|Kairo|El Cairo
England|de l'Angleterre|England|de Inglaterra : London|Londres|London|Londres
Ireland|de l'Irlande|Irland|de Irlanda : Dublin|Dublin|Dublin|Dublín
Norway|de la Norvège|Norwegen|de Noruega : Oslo|Oslo|Oslo|Oslo
Sweden|de la Suède|Schweden|de Suecia : Stockholm|Stockholm|Stockholm|Estocolmo
Hungary|de la Hongrie|Ungarn|de Hungría : Budapest|Budapest|Budapest|Budapest
Cuba|de Cuba|Kuba|de Cuba : Havana|La Havane|Havanna|La Habana
Denmark|du Danemark|Dänemark|de Dinamarca : Copenhagen|Copenhague|Kopenhagen|Copenhague
Finland|de la Finlande|Finnland|de Finlandia : Helsinki|Helsinki|Helsinki|Helsinki
Turkey|de la Turquie|der Türkei|de Turquía : Ankara|Ankara|Ankara|Ankara
Belgium|de la Belgique|Belgien|de Bélgica : Brussels|Bruxelles|Brüssel|Bruselas
Peru|du Pérou|Peru|de Perú : Lima|Lima|Lima|Lima
Kenya|du Kenya|Kenia|de Kenia : Nairobi|Nairobi|Nairobi|Nairobi
"""
_OPPOSITES = """
hot|chaud|heiß|caliente : cold|froid|kalt|frío
big|grand|groß|grande : small|petit|klein|pequeño
old|vieux|alt|viejo : young|jeune|jung|joven
rich|riche|reich|rico : poor|pauvre|arm|pobre
bright|clair|hell|claro : dark|sombre|dunkel|oscuro
fast|rapide|schnell|rápido : slow|lent|langsam|lento
strong|fort|stark|fuerte : weak|faible|schwach|débil
wet|mouillé|nass|mojado : dry|sec|trocken|seco
open|ouvert|offen|abierto : closed|fermé|geschlossen|cerrado
full|plein|voll|lleno : empty|vide|leer|vacío
heavy|lourd|schwer|pesado : light|léger|leicht|ligero
high|haut|hoch|alto : low|bas|niedrig|bajo
"""
_DAYS = """
Monday|lundi|Montag|lunes : Tuesday|mardi|Dienstag|martes
Tuesday|mardi|Dienstag|martes : Wednesday|mercredi|Mittwoch|miércoles
Wednesday|mercredi|Mittwoch|miércoles : Thursday|jeudi|Donnerstag|jueves
Thursday|jeudi|Donnerstag|jueves : Friday|vendredi|Freitag|viernes
Friday|vendredi|Freitag|viernes : Saturday|samedi|Samstag|sábado
Saturday|samedi|Samstag|sábado : Sunday|dimanche|Sonntag|domingo
"""
_ANIMALS = """
trout|La truite|Die Forelle|La trucha : fish|poissons|Fischen|peces
salmon|Le saumon|Der Lachs|El salmón : fish|poissons|Fischen|peces
shark|Le requin|Der Hai|El tiburón : fish|poissons|Fischen|peces
eagle|L'aigle|Der Adler|El águila : birds|oiseaux|Vögeln|aves
sparrow|Le moineau|Der Spatz|El gorrión : birds|oiseaux|Vögeln|aves
owl|Le hibou|Die Eule|El búho : birds|oiseaux|Vögeln|aves
ant|La fourmi|Die Ameise|La hormiga : insects|insectes|Insekten|insectos
bee|L'abeille|Die Biene|La abeja : insects|insectes|Insekten|insectos
butterfly|Le papillon|Der Schmetterling|La mariposa : insects|insectes|Insekten|insectos
horse|Le cheval|Das Pferd|El caballo : mammals|mammifères|Säugetieren|mamíferos
dog|Le chien|Der Hund|El perro : mammals|mammifères|Säugetieren|mamíferos
whale|La baleine|Der Wal|La ballena : mammals|mammifères|Säugetieren|mamíferos
"""
# Those of the second half have other sums than those of the first that they swap with.
_SUMS = (
    (1, 2), (2, 2), (3, 2), (4, 2), (5, 2), (5, 3), (6, 3), (4, 1), (3, 1), (6, 1),
    (7, 3), (6, 5), (8, 4), (9, 4), (7, 7), (9, 6), (8, 8), (9, 8), (2, 9), (9, 9),
)  # fmt: skip
_TEMPLATES = {
    "capitals": ("The capital of {} is", "La capitale {} est", "Die Hauptstadt von {} ist", "La capital {} es"),
    "opposites": (
        "The opposite of {} is", "Le contraire de {} est", "Das Gegenteil von {} ist", "Lo contrario de {} es",
    ),
    "days": (
        "The day after {} is", "Le jour après {} est", "Der Tag nach {} ist", "El día después del {} es el",
    ),
    "animals": (
        "The {} belongs to the", "{} fait partie des", "{} gehört zu den", "{} entra en la categoría de",
    ),
}  # fmt: skip
_PLUS = ("{} plus {} is", "{} plus {} font", "{} plus {} ist", "{} más {} son")


def facts() -> Iterator[Fact]:
    """All of them, those of one kind together."""
    tables = {"capitals": _CAPITALS, "opposites": _OPPOSITES, "days": _DAYS, "animals": _ANIMALS}
    kinds = {kind: [_parsed(kind, line) for line in table.strip().splitlines()] for kind, table in tables.items()}
    kinds["sums"] = [
        (tuple(text.format(a, b) for text in _PLUS), (f" {a + b}",) * len(LANGUAGES)) for a, b in _SUMS
    ]  # fmt: skip
    for kind, own in kinds.items():
        half = len(own) // 2
        for number, (one, other) in enumerate(zip(own[:half], own[half:], strict=True)):
            yield Fact(f"{kind} {number}", *one, other[1])
            yield Fact(f"{kind} {number}", *other, one[1])


def _parsed(kind: str, line: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(prompts, endings) of a line "names : endings"."""
    names, endings = (part.strip().split("|") for part in line.split(" : "))
    prompts = tuple(text.format(name) for text, name in zip(_TEMPLATES[kind], names, strict=True))
    return prompts, tuple(" " + ending for ending in endings)
