"""The same everyday sentences in four languages, by topic; the label says whether a sentence is English."""

from __future__ import annotations

from collections.abc import Iterator

_NAMES = {
    "en": ("The teacher", "My neighbour", "The old man"),
    "fr": ("Le professeur", "Mon voisin", "Le vieil homme"),
    "de": ("Der Lehrer", "Mein Nachbar", "Der alte Mann"),
    "es": ("El profesor", "Mi vecino", "El anciano"),
}
_WHAT = {
    "kitchen": """
cuts the bread with a sharp knife|coupe le pain avec un couteau tranchant|schneidet das Brot mit einem scharfen Messer|corta el pan con un cuchillo afilado
washes the plates after dinner|lave les assiettes après le dîner|wäscht die Teller nach dem Abendessen|lava los platos después de la cena
puts a little salt into the soup|met un peu de sel dans la soupe|gibt ein wenig Salz in die Suppe|pone un poco de sal en la sopa
drinks a cup of coffee in the morning|boit une tasse de café le matin|trinkt am Morgen eine Tasse Kaffee|bebe una taza de café por la mañana
cooks rice for the whole family|prépare du riz pour toute la famille|kocht Reis für die ganze Familie|cocina arroz para toda la familia
""",
    "travel": """
takes the first train to the city|prend le premier train pour la ville|nimmt den ersten Zug in die Stadt|toma el primer tren a la ciudad
has lost the key of the hotel room|a perdu la clé de la chambre d'hôtel|hat den Schlüssel des Hotelzimmers verloren|ha perdido la llave de la habitación
waits for the bus near the bridge|attend le bus près du pont|wartet bei der Brücke auf den Bus|espera el autobús cerca del puente
buys a map of the island|achète une carte de l'île|kauft eine Karte der Insel|compra un mapa de la isla
drives along the coast at night|roule le long de la côte pendant la nuit|fährt in der Nacht an der Küste entlang|conduce por la costa de noche
""",
    "weather": """
says that it will rain tomorrow|dit qu'il va pleuvoir demain|sagt, dass es morgen regnen wird|dice que mañana va a llover
closes the window because of the wind|ferme la fenêtre à cause du vent|schließt wegen des Windes das Fenster|cierra la ventana por el viento
looks at the dark clouds over the sea|regarde les nuages sombres sur la mer|betrachtet die dunklen Wolken über dem Meer|mira las nubes oscuras sobre el mar
likes the snow on the mountains|aime la neige sur les montagnes|mag den Schnee auf den Bergen|le gusta la nieve de las montañas
sits in the shade of a tree|est assis à l'ombre d'un arbre|sitzt im Schatten eines Baumes|está sentado a la sombra de un árbol
""",
    "school": """
reads a long story to the children|lit une longue histoire aux enfants|liest den Kindern eine lange Geschichte vor|lee un cuento largo a los niños
writes three words on the wall|écrit trois mots sur le mur|schreibt drei Wörter an die Wand|escribe tres palabras en la pared
forgets the book in the library|oublie le livre à la bibliothèque|vergisst das Buch in der Bibliothek|olvida el libro en la biblioteca
answers every question with a smile|répond à chaque question avec un sourire|beantwortet jede Frage mit einem Lächeln|responde a cada pregunta con una sonrisa
counts the chairs in the room|compte les chaises de la salle|zählt die Stühle im Zimmer|cuenta las sillas de la sala
""",
}  # fmt: skip


def sentences() -> Iterator[dict[str, str]]:
    """Every name with every predicate in every language; a predicate in all of these is one group."""
    for topic, table in _WHAT.items():
        for number, line in enumerate(table.strip().splitlines()):
            for (language, names), predicate in zip(_NAMES.items(), line.split("|"), strict=True):
                for name in names:
                    # The one Spanish predicate of a feeling takes its person in the dative.
                    subject = "A " + name[0].lower() + name[1:] if predicate.startswith("le gusta") else name
                    yield {
                        "text": f"{subject} {predicate}.".replace("A el ", "Al "),
                        "label": "english" if language == "en" else "another",
                        "group": f"{topic} {number}",
                        "domain": topic,
                    }
