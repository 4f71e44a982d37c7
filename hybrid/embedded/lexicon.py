"""The words of the embedded tasks. Each is one token of the embedded tokenizer."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "ann bob cid dan eva fay gus hal ida jim kim leo mia ned oli pam ray sue tom una vic wes zoe "
    "max amy ben cora dora emil finn gina hugo"
)
DAYS = _words("monday tuesday wednesday thursday friday saturday sunday")
MONTHS = _words(
    "january february march april may june july august september october november december"
)
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
PLACES = _words("cafe park bank school office garden station museum market harbor")
TOPICS = _words("rent music food travel sport money health art books trains")
CATEGORIES: dict[str, tuple[str, ...]] = {
    "animals": _words("cat dog cow pig hen fox owl bear wolf frog goat duck horse mouse"),
    "colors": _words(
        "red blue green black white pink gray brown gold purple orange silver yellow teal"
    ),
    "fruits": _words(
        "apple pear plum fig lemon mango peach grape melon cherry banana kiwi date lime"
    ),
    "tools": _words(
        "saw axe drill hammer knife rope nail pliers ladder brush wrench shovel rake file"
    ),
    "birds": _words("robin crow swan eagle hawk dove wren finch stork heron gull raven lark swift"),
    "metals": _words(
        "iron zinc lead tin copper nickel cobalt chrome steel bronze brass titanium radium mercury"
    ),
}
NUMBER_WORDS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")

# English to Zed, an invented language: nouns, adjectives, verbs.
NOUNS = dict(
    zip(
        CATEGORIES["animals"],
        _words("ka mo ti ru ne sa lo vi pu do bel dar fim gor"),
        strict=True,
    )
)
ADJECTIVES = dict(
    zip(
        _words("red blue green black white big small old happy quiet"),
        _words("hul jep kis lum nof tav zun ral xem qui"),
        strict=True,
    )
)
VERBS = dict(
    zip(
        _words("sees likes finds helps chases hears wants meets"),
        _words("woz yab cav dex pim sorn tek bru"),
        strict=True,
    )
)
VARIABLES = tuple("abcdmnpqstuvwxyz")
