"""The fields of the World Factbook that facts are made of, and the wordings that put a fact into a text.

Documents use a field's own name, as the Factbook does. Queries use other words for it, and other sentences, so that a
query shares little with the documents of its fact but the name of the country and the value.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """A field of the Factbook.

    Attributes:
        path: Names that lead to the field in the data of a country.
        name: What documents call the field.
        other_name: What queries call the field.
        verb: "is" or "are".
    """

    path: str
    name: str
    other_name: str
    verb: str = "is"


FIELDS = (
    Field("Government/Capital/name", "capital", "seat of government"),
    Field("Geography/Location", "location", "place on the map"),
    Field("Geography/Climate", "climate", "usual weather"),
    Field("Geography/Terrain", "terrain", "shape of the land"),
    Field("Geography/Natural resources", "natural resources", "raw materials", "are"),
    Field("Geography/Land boundaries/border countries", "border countries", "neighbouring states", "are"),
    Field("Geography/Area - comparative", "comparative area", "size beside other places"),
    Field("Geography/Elevation/highest point", "highest point", "tallest summit"),
    Field("Geography/Elevation/lowest point", "lowest point", "least height above the sea"),
    Field("Geography/Natural hazards", "natural hazards", "dangers of nature", "are"),
    Field("Environment/Environmental issues", "environmental issues", "ecological troubles", "are"),
    Field("Government/Government type", "government type", "form of rule"),
    Field("Government/Independence", "independence", "start as a state of its own"),
    Field("Government/National holiday", "national holiday", "main public celebration"),
    Field("Government/Legal system", "legal system", "kind of law before the courts"),
    Field("Government/National anthem(s)/title", "national anthem", "song of the state"),
    Field("Government/National symbol(s)", "national symbols", "emblems of the state", "are"),
    Field("Government/National color(s)", "national colors", "tints on state occasions", "are"),
    Field("Economy/Agricultural products", "agricultural products", "yields of the farms", "are"),
    Field("Economy/Industries", "industries", "branches of manufacturing", "are"),
    Field("Economy/Exports - commodities", "export commodities", "goods sold abroad", "are"),
    Field("Economy/Exports - partners", "export partners", "biggest foreign buyers", "are"),
    Field("Economy/Imports - commodities", "import commodities", "goods bought abroad", "are"),
    Field("Economy/Imports - partners", "import partners", "biggest foreign sellers", "are"),
    Field("Communications/Internet country code", "Internet country code", "ending of web addresses"),
)

STATEMENTS = (
    "The {name} of {country} {verb} {value}.",
    "{country} – {name}: {value}.",
    "According to the World Factbook, the {name} of {country} {verb} {value}.",
    "Look up {country}, and you read that the {name} {verb} {value}.",
)
"""Texts of documents."""
PROMPTS = (
    "Concerning {country}, the {other_name} {verb}",
    "In a word about {country}: the {other_name} {verb}",
    "When somebody asks about {country}, tell them that its {other_name} {verb}",
)
"""Prompts of queries; the completion is the value, after a space."""
QUESTIONS = (
    "What {verb} the {name} of {country}?",
    "Tell me the {name} of {country}.",
    "{country}: {name}?",
    "I need the {name} of {country} from the World Factbook.",
)
"""Questions of the chats that are documents; the answer is the value."""
OTHER_QUESTIONS = (
    "I am writing about {country}. What {verb} the {other_name}?",
    "Do you know the {other_name} there, in {country}?",
    "Quiz time! {country} – the {other_name}?",
)
"""Questions of the chats that are queries."""
