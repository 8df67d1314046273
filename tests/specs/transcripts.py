"""Makes up transcripts as HH-RLHF has them, all harmless, with everything that is irregular about real ones."""

from __future__ import annotations

import json
import random
from pathlib import Path

_NOUNS = (
    "apple barley basket bench bicycle blanket bottle bread bridge bucket button candle carrot chair cherry clock cloud coat "
    "copper corner cotton cup curtain desk door drawer feather fence flour fork garden glass glove hammer handle hat hinge honey "
    "jacket kettle ladder lamp lantern leaf lemon letter lid linen map marble mirror mug nail needle oak oats onion orange oven "
    "paint paper peach pear pebble pencil pepper pillow pine plate plum pocket pot pumpkin rain ribbon rice ring river rope "
    "rose salt sand scarf seed shelf shoe shovel silk soap spoon stone string sugar table tea thread tile timber towel tray "
    "tulip vase vine wagon walnut water wheat wheel willow window wool yarn"
)
WORDS = _NOUNS.split()

MAIL = "Write to ada@example.org about it."
RUDE = "Only an idiot would ask that."


def talk(*turns: str) -> str:
    """Return a transcript of turns, the human's first."""
    return "".join(f"\n\n{('Human', 'Assistant')[number % 2]}: {turn}" for number, turn in enumerate(turns))


def record(prompt: tuple[str, ...], chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": talk(*prompt, chosen), "rejected": talk(*prompt, rejected)}


def sentence(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(WORDS, k=words)).capitalize() + "."


def regular(draw: random.Random) -> dict[str, str]:
    """Return a pair like no other, about every third with a longer conversation before it."""
    turns = draw.choice((1, 1, 3))
    prompt = (*(sentence(draw, 8) for _ in range(turns - 1)), sentence(draw, 12).replace(".", "?"))
    return record(prompt, sentence(draw, draw.randint(3, 30)), sentence(draw, draw.randint(3, 30)))


def transcripts(pairs: int = 160, seed: int = 7) -> list[str]:
    """Return lines: `pairs` regular pairs, and upon them a few of each kind of trouble. The same for the same seed."""
    draw = random.Random(seed)
    good = [regular(draw) for _ in range(pairs)]
    lines: list[dict[str, str] | str] = list(good)
    prompts = [(sentence(draw, 12).replace(".", "?"),) for _ in range(40)]
    answers = [sentence(draw, 20) for _ in range(80)]
    for number, prompt in enumerate(prompts[:10]):  # a prompt with two pairs, and nearly the same prompt with a third
        nearly = (prompt[0].replace("?", ", please?"),)
        lines += [record(asked, answers[number * 2 + n], sentence(draw, 9)) for n, asked in enumerate((prompt, prompt))]
        lines.append(record(nearly, sentence(draw, 10), sentence(draw, 9)))
    for number in range(10, 20):  # a conversation, and the same conversation one turn later
        first, answer = prompts[number], answers[number * 2]
        lines.append(record(first, answer, sentence(draw, 8)))
        lines.append(record((*first, answer, sentence(draw, 9)), sentence(draw, 10), sentence(draw, 8)))
    for number in range(20, 24):  # nearly the same pair
        long, other = sentence(draw, 60), sentence(draw, 20)
        lines += [record(prompts[number], text, other) for text in (long, long.replace(".", " indeed."))]
    for number in range(24, 34):  # different prompts, one of whose responses hold the same words
        lines += [record((sentence(draw, 10),), f"{answers[number * 2]} {sentence(draw, 4)}", sentence(draw, 6)) for _ in "ab"]
    lines += good[:3]  # there already
    lines += [{"chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in good[3:5]]  # preferred both ways
    lines += [record(prompts[34], answers[68], answers[68]), record(prompts[35], answers[69], f"{answers[69]} ")]  # identical
    lines += [record(prompts[36], f"{answers[70]} Human: thanks!", answers[71]) for _ in "a"]
    lines += [record(prompts[36], f"{answers[70]}\n\nHuman: and then?\n\nAssistant: Soap.", answers[71])]
    lines += [record(prompts[36], "", answers[72])]
    lines += [{"chosen": talk(*prompts[37], "Tea.", "And?", "Rice."), "rejected": talk(*prompts[37], "Tea.", "Or?", "Rope.")}]
    lines += [
        {side: f"\n\nHuman: A cup.{talk(*prompts[38], text)}" for side, text in (("chosen", "Tea."), ("rejected", "No."))}
    ]
    lines += [
        record(prompts[39], f"{answers[73]} {MAIL}", answers[74]),
        record(prompts[39], f"{answers[75]} {RUDE}", answers[76]),
    ]
    lines += [
        "{",
        "[]",
        {"chosen": talk("A?", "B.")},
        {"chosen": "Tea.", "rejected": "Rice."},
        {"chosen": talk("A?", "B.", "C?"), "rejected": talk("A?", "B.", "D?")},
        {"chosen": talk("A?", "B."), "rejected": talk("C?", "D.")},
    ]
    return [line if isinstance(line, str) else json.dumps(line) for line in lines]


def write_lines(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
