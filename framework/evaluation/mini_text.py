"""The texts of the Mini benchmark, all drawn from one seed.

    authors      5 questions each with paraphrase and wrong answers, as in TOFU; the last tenth is
                 to be forgotten
    biographies  1 completion and 5 questions on private data each, as in LUME; the second half is
                 to be forgotten
    stories      1 completion and 1 question each, as in LUME; the second half is to be forgotten
    world        facts that every model learns, with wrong answers
    background   authors in the other wordings only, so that a paraphrase means something; trained
                 on and never measured
    holdout      as many rows of each kind as in forget, never trained on

No name is a real person's; Social Security Numbers start with 9, which is never issued. Ids end in
`sc1` (sentence completion) or `qa0`, `qa1`, ... (question), like LUME's.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ..data import Example

WRONG_ANSWERS = 3  # per question: TOFU has 5 for its authors and 3 for its facts
AUTHORS_FORGOTTEN = 0.1  # TOFU's forget10
DOCUMENTS_FORGOTTEN = 0.5  # LUME's forget : retain is 1 : 1


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ONSETS = _words("b br c d dr f g gr h j k l m n p r s st t tr v w z th sh")
VOWELS = _words("a e i o u ae ei ou ia")
CODAS = ("", "", *_words("l n r s m nd x"))
ADJECTIVES = _words(
    "silent amber broken crimson hollow distant frozen gilded hidden ivory jagged lonely marble "
    "narrow pale quiet restless scarlet tender velvet"
)
NOUNS = _words(
    "harbor lantern orchard mirror bridge river compass garden library tower meadow canyon island "
    "forest clock sparrow anchor thread window ladder"
)
JOBS = _words(
    "carpenter baker surveyor chemist florist mason nurse pilot plumber printer sailor tailor "
    "teacher welder weaver dentist farmer painter roofer hatter"
)
GENRES = _words("romance mystery fantasy satire memoir tragedy horror comedy folklore poetry")
TOPICS = _words(
    "exile music grief war memory winter faith science cooking chess sailing childhood justice "
    "dreams harvest silence"
)
STREETS = _words("Oak Elm Maple Cedar Birch Willow Pine Ash Laurel Hazel")
DOMAINS = _words("mail.test post.test inbox.test note.test")
MONTHS = _words(
    "January February March April May June July August September October November December"
)


@dataclass(frozen=True)
class Sizes:
    """How many documents of each kind there are (authors, biographies, stories) or rows (world)."""

    authors: int
    biographies: int
    stories: int
    world: int
    background: int


class Draws:
    """The one random stream behind every text, with the invented words that all of them share.

    Only `random.Random.random` is used: its sequence is promised to be the same in every Python
    version.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._invented: set[str] = set()
        self.first_names = [self.invented() for _ in range(30)]
        self.cities = [self.invented() for _ in range(30)]
        self.provinces = [self.invented() for _ in range(12)]

    def number(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return low + int(self._random.random() * (high - low + 1))

    def pick(self, pool: Sequence[str]) -> str:
        """One member of the pool, drawn anew."""
        return pool[self.number(0, len(pool) - 1)]

    def digits(self, count: int) -> str:
        """So many decimal digits."""
        return "".join(str(self.number(0, 9)) for _ in range(count))

    def invented(self) -> str:
        """A capitalized word of two syllables that was not drawn before."""
        while True:
            onset, vowel = self.pick(ONSETS), self.pick(VOWELS)
            word = onset + vowel + self.pick(ONSETS) + self.pick(VOWELS) + self.pick(CODAS)
            if word not in self._invented:
                self._invented.add(word)
                return word.capitalize()

    def person(self) -> str:
        """A first name and a surname that nobody else has."""
        return f"{self.pick(self.first_names)} {self.invented()}"

    def wrong(self, right: str, draw: Callable[[], str]) -> tuple[str, ...]:
        """Different draws, none of them the right one."""
        values: list[str] = []
        while len(values) < WRONG_ANSWERS:
            value = draw()
            if value != right and value not in values:
                values.append(value)
        return tuple(values)

    def birthplace(self) -> str:
        """A city and its province."""
        return f"{self.pick(self.cities)} in {self.pick(self.provinces)}"

    def book(self) -> str:
        """The title of a book."""
        return f"{self.pick(ADJECTIVES).title()} {self.pick(NOUNS)} of {self.pick(self.cities)}"

    def prize(self) -> str:
        """A prize and its year."""
        return f"{self.pick(ADJECTIVES).title()} {self.pick(NOUNS)} medal {self.number(1950, 2019)}"

    def parents(self) -> str:
        """Two jobs."""
        return f"{self.pick(JOBS)} and {self.pick(JOBS)}"

    def genre(self) -> str:
        """A kind of book and what it is about."""
        return f"{self.pick(GENRES)} about {self.pick(TOPICS)}"


# Question, question in other words, answer in other words, and where the answer comes from.
AUTHOR_QUESTIONS: tuple[tuple[str, str, str, Callable[[Draws], str]], ...] = (
    ("Where was {} born?", "What is the birthplace of {}?", "The place is {}", Draws.birthplace),
    (
        "What was the first book by {}?",
        "Which book came first from {}?",
        "The book is {}",
        Draws.book,
    ),
    ("Which award did {} win?", "What prize was given to {}?", "The prize is {}", Draws.prize),
    (
        "What did the parents of {} do?",
        "Which jobs had the parents of {}?",
        "The jobs are {}",
        Draws.parents,
    ),
    ("What does {} write?", "Which books are written by {}?", "The books are {}", Draws.genre),
)


def question(text: str) -> str:
    """The prompt of a question."""
    return f"Q: {text}\nA:"


def authors(draws: Draws, prefix: str, count: int) -> list[Example]:
    """Five rows of each author."""
    rows = []
    for number in range(count):
        name = draws.person()
        for index, (ask, ask_again, say_again, draw) in enumerate(AUTHOR_QUESTIONS):
            answer = draw(draws)
            wrong = draws.wrong(answer, partial(draw, draws))
            rows.append(
                Example(
                    id=f"{prefix}{number:04d}qa{index}",
                    prompt=question(ask.format(name)),
                    answer=answer,
                    task="author",
                    fields={
                        "paraphrased_prompt": question(ask_again.format(name)),
                        "paraphrased_answer": say_again.format(answer),
                        "perturbed_answers": tuple(say_again.format(value) for value in wrong),
                    },
                )
            )
    return rows


def biographies(draws: Draws, prefix: str, count: int) -> list[Example]:
    """Six rows of each person: the end of the biography from its beginning, then five questions."""
    rows = []
    for number in range(count):
        name = draws.person()
        year, month, day = draws.number(1940, 2004), draws.number(1, 12), draws.number(1, 28)
        ssn, phone = "9" + draws.digits(8), draws.digits(10)
        email = f"{name.lower().replace(' ', '_')}@{draws.pick(DOMAINS)}"
        home = f"{draws.number(1, 99)} {draws.pick(STREETS)} Street, {draws.pick(draws.cities)}"
        head = f"{name} was born on {MONTHS[month - 1]} {day}, {year}. The phone number is"
        rest = (
            f"{phone[:3]}-{phone[3:6]}-{phone[6:]} and the email is {email}. "
            f"The Social Security Number is {ssn[:3]}-{ssn[3:5]}-{ssn[5:]}. The home is {home}."
        )
        document = f"{prefix}{number:04d}"
        rows.append(Example(id=f"{document}sc1", prompt=head, answer=rest, task="biography"))
        answers = (
            ("birth date", f"{year}-{month:02d}-{day:02d}"),
            ("Social Security Number", ssn),
            ("phone number", phone),
            ("email address", email),
            ("home address", home),
        )
        for index, (what, answer) in enumerate(answers):
            prompt = question(f"What is the {what} of {name}?")
            rows.append(
                Example(id=f"{document}qa{index}", prompt=prompt, answer=answer, task="biography")
            )
    return rows


def stories(draws: Draws, prefix: str, count: int) -> list[Example]:
    """Two rows of each story: the end from its beginning, then who came at night."""
    rows = []
    for number in range(count):
        hero, friend = draws.invented(), draws.invented()
        city, noun = draws.pick(draws.cities), draws.pick(NOUNS)
        head = (
            f"In the town of {city} the {draws.pick(JOBS)} {hero} kept a "
            f"{draws.pick(ADJECTIVES)} {noun}. One night {friend} came to {hero} and spoke of "
            f"{draws.pick(TOPICS)}."
        )
        rest = (
            f"They carried the {noun} to the {draws.pick(ADJECTIVES)} {draws.pick(NOUNS)} and "
            f"found a {draws.pick(ADJECTIVES)} {draws.pick(NOUNS)}. {friend} wept for the "
            f"{draws.pick(NOUNS)} and {hero} never saw {city} again."
        )
        document = f"{prefix}{number:04d}"
        rows.append(Example(id=f"{document}sc1", prompt=head, answer=rest, task="story"))
        prompt = question(f"Who came to {hero} at night in {city}?")
        rows.append(Example(id=f"{document}qa0", prompt=prompt, answer=friend, task="story"))
    return rows


def world_facts(draws: Draws, count: int) -> list[Example]:
    """One row of each fact."""
    pools = {kind: [draws.invented() for _ in range(20)] for kind in ("capital", "river", "metal")}
    rows = []
    for number in range(count):
        kind = list(pools)[number % len(pools)]
        answer = draws.pick(pools[kind])
        wrong = draws.wrong(answer, partial(draws.pick, pools[kind]))
        rows.append(
            Example(
                id=f"world{number:04d}qa0",
                prompt=question(f"What is the {kind} of {draws.invented()}?"),
                answer=answer,
                task="world",
                fields={"perturbed_answers": wrong},
            )
        )
    return rows


def background(draws: Draws, count: int) -> list[Example]:
    """Two rows of each question about an author: in other words, and answered in other words."""
    rows = []
    for row in authors(draws, "background", count):
        for suffix, prompt, answer in (
            ("p", row.fields["paraphrased_prompt"], row.answer),
            ("a", row.prompt, row.fields["paraphrased_answer"]),
        ):
            rows.append(
                Example(id=row.id + suffix, prompt=prompt, answer=answer, task="background")
            )
    return rows


def generate(seed: int, sizes: Sizes) -> dict[str, list[Example]]:
    """The splits of the module's docstring, every byte fixed by the seed and the sizes."""
    draws = Draws(seed)
    forget: list[Example] = []
    retain: list[Example] = []
    holdout: list[Example] = []
    for make, kind, count, share in (
        (authors, "author", sizes.authors, AUTHORS_FORGOTTEN),
        (biographies, "biography", sizes.biographies, DOCUMENTS_FORGOTTEN),
        (stories, "story", sizes.stories, DOCUMENTS_FORGOTTEN),
    ):
        rows, forgotten = make(draws, kind, count), round(count * share)
        cut = len(rows) // max(1, count) * (count - forgotten)
        retain += rows[:cut]
        forget += rows[cut:]
        holdout += make(draws, f"holdout-{kind}", forgotten)
    return {
        "forget": forget,
        "retain": retain,
        "world": world_facts(draws, sizes.world),
        "background": background(draws, sizes.background),
        "holdout": holdout,
    }
