"""Names of things to look up in a long context: pairs of a quality and a thing, enough for lists of 128K tokens."""

FIRST = """

amber ancient arctic autumn azure bitter blank blue bold brave brief bright bronze brown busy calm careful cheap clean
clear clever cold common cool copper coral crimson crisp curious daily damp dark deep distant double dry dull dusty
eager early easy eastern elegant empty equal exact faint fair famous fancy fast fierce final fine firm flat fluffy
foggy formal fresh frozen full funny gentle giant glad golden grand grave gray great green grim happy hard harsh heavy
hidden high hollow honest huge humble icy inner ivory jolly keen kind large late lazy light little lively lonely long
loud low loyal lucky marble mellow mild misty modern modest narrow natural neat noble northern odd olive open orange
pale perfect plain polite proud purple quick quiet rapid rare ready red rough round royal rusty salty scarlet secret
sharp shiny short shy silent silver simple slim slow small smooth soft solid southern square steady
""".split()
SECOND = """

acorn anchor ant apple apron arrow badge bagel ball bamboo banana banjo barrel basket bat beacon bean bear beaver bee
bell berry bird boat bottle bow bowl box brick bridge brush bucket button cabin cactus cake camel candle canoe card
carrot castle cat chain chair cherry clock cloud coat coin comet cookie cow crab crane crow crown cup daisy deer desk
dog door dragon drum duck eagle engine falcon fan feather fern fish flag flute forest fork fox frog garden ghost
giraffe glove goat goose grape guitar hammer harp hat hawk helmet honey horse island jacket jar kettle key kite ladder
lake lamp leaf lemon lion lizard lock maple mask meadow melon mirror moon moose mouse needle nest oak ocean onion
otter owl paddle panda parrot peach pear pencil penguin piano pillow pine planet pony potato puppy rabbit radio raven
ribbon river robin rocket rose sail seal shell ship shoe
""".split()
# Two words of which neither alone says which pair is meant: looking one up takes both.
KEYS = [f"{first} {second}" for first in FIRST for second in SECOND]
