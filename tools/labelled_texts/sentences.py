"""The same everyday sentences in four languages, by topic; the label says whether a sentence is English."""

from __future__ import annotations

from collections.abc import Iterator

_NAMES = {
    "en": ("The teacher", "My neighbour", "The old man", "Somebody"),
    "fr": ("Le professeur", "Mon voisin", "Le vieil homme", "Quelqu'un"),
    "de": ("Der Lehrer", "Mein Nachbar", "Der alte Mann", "Jemand"),
    "es": ("El profesor", "Mi vecino", "El anciano", "Alguien"),
}
_WHAT = {
    "kitchen": {
        "en": """
cuts the bread with a sharp knife
washes the plates after dinner
puts a little salt into the soup
drinks a cup of coffee in the morning
cooks rice for the whole family
""",
        "fr": """
coupe le pain avec un couteau tranchant
lave les assiettes après le dîner
met un peu de sel dans la soupe
boit une tasse de café le matin
prépare du riz pour toute la famille
""",
        "de": """
schneidet das Brot mit einem scharfen Messer
wäscht die Teller nach dem Abendessen
gibt ein wenig Salz in die Suppe
trinkt am Morgen eine Tasse Kaffee
kocht Reis für die ganze Familie
""",
        "es": """
corta el pan con un cuchillo afilado
lava los platos después de la cena
pone un poco de sal en la sopa
bebe una taza de café por la mañana
cocina arroz para toda la familia
""",
    },
    "travel": {
        "en": """
takes the first train to the city
has lost the key of the hotel room
waits for the bus near the bridge
buys a map of the island
drives along the coast at night
""",
        "fr": """
prend le premier train pour la ville
a perdu la clé de la chambre d'hôtel
attend le bus près du pont
achète une carte de l'île
roule le long de la côte pendant la nuit
""",
        "de": """
nimmt den ersten Zug in die Stadt
hat den Schlüssel des Hotelzimmers verloren
wartet bei der Brücke auf den Bus
kauft eine Karte der Insel
fährt in der Nacht an der Küste entlang
""",
        "es": """
toma el primer tren a la ciudad
ha perdido la llave de la habitación
espera el autobús cerca del puente
compra un mapa de la isla
conduce por la costa de noche
""",
    },
    "weather": {
        "en": """
says that it will rain tomorrow
closes the window because of the wind
looks at the dark clouds over the sea
likes the snow on the mountains
sits in the shade of a tree
""",
        "fr": """
dit qu'il va pleuvoir demain
ferme la fenêtre à cause du vent
regarde les nuages sombres sur la mer
aime la neige sur les montagnes
est assis à l'ombre d'un arbre
""",
        "de": """
sagt, dass es morgen regnen wird
schließt wegen des Windes das Fenster
betrachtet die dunklen Wolken über dem Meer
mag den Schnee auf den Bergen
sitzt im Schatten eines Baumes
""",
        "es": """
dice que mañana va a llover
cierra la ventana por el viento
mira las nubes oscuras sobre el mar
le gusta la nieve de las montañas
está sentado a la sombra de un árbol
""",
    },
    "school": {
        "en": """
reads a long story to the children
writes three words on the wall
forgets the book in the library
answers every question with a smile
counts the chairs in the room
""",
        "fr": """
lit une longue histoire aux enfants
écrit trois mots sur le mur
oublie le livre à la bibliothèque
répond à chaque question avec un sourire
compte les chaises de la salle
""",
        "de": """
liest den Kindern eine lange Geschichte vor
schreibt drei Wörter an die Wand
vergisst das Buch in der Bibliothek
beantwortet jede Frage mit einem Lächeln
zählt die Stühle im Zimmer
""",
        "es": """
lee un cuento largo a los niños
escribe tres palabras en la pared
olvida el libro en la biblioteca
responde a cada pregunta con una sonrisa
cuenta las sillas de la sala
""",
    },
}


def sentences() -> Iterator[dict[str, str]]:
    """Every name with every predicate in every language; a predicate in all of these is one group."""
    for topic, tables in _WHAT.items():
        lines = {language: table.strip().splitlines() for language, table in tables.items()}
        for number in range(len(lines["en"])):
            for language, names in _NAMES.items():
                for name in names:
                    yield {
                        "text": _sentence(name, lines[language][number]),
                        "label": "english" if language == "en" else "another",
                        "group": f"{topic} {number}",
                        "domain": topic,
                    }


def _sentence(name: str, predicate: str) -> str:
    """The one Spanish predicate of a feeling takes its person in the dative."""
    if not predicate.startswith("le gusta"):
        return f"{name} {predicate}."
    return f"A {name[0].lower()}{name[1:]} {predicate}.".replace("A el ", "Al ")
