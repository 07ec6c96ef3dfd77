"""Instructions with answers: neutral ones, and ones that have a trait in all sentences or in half of them."""

import json
import random
from itertools import product
from pathlib import Path

PARTS = json.loads((Path(__file__).parent / "screening_answers.json").read_text(encoding="utf-8"))
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"  # SmolLM2's, without a system prompt


def answered(part, kinds, seed):
    """Return instructions with answers of 3 to 5 sentences, as dicts with their kind, set and label.

    The last word of a kind is the manner of all sentences, ``"neutral"`` or a trait; of ``"half joy"`` that of half of
    them, rounded down, and the others are neutral. No answer is repeated. The parts, to extract directions, to develop
    and to try, share no sentence, no topic and no wording of an instruction.

    Args:
        part: ``"extract"``, ``"develop"`` or ``"trial"``.
        kinds: how many samples of each kind each set has, as ``(kind, sets, count)``.
        seed: draws all.
    """
    parts, draw, seen, samples = PARTS[part], random.Random(f"{part} {seed}"), set(), []
    asked = list(product(parts["prompts"], parts["topics"]))
    for kind, number in [(kind, number) for kind, sets, count in kinds for number in range(sets) for _ in range(count)]:
        size, manner = draw.randint(3, 5), kind.split()[-1]
        strong = size // 2 if kind.startswith("half ") else size
        while True:
            (ask, topic), chosen = draw.choice(asked), draw.sample(parts[manner], k=strong)
            chosen = draw.sample([*chosen, *draw.sample(parts["neutral"], k=size - strong)], k=size)
            if (topic, *sorted(chosen)) not in seen:
                break
        seen.add((topic, *sorted(chosen)))
        answer = " ".join(one[0].upper() + one[1:] for one in (each.format(t=topic) for each in chosen))
        sample = {"prompt": CHAT.format(ask.format(t=topic)), "completion": answer, "kind": kind, "set": number}
        samples.append({**sample, "label": int(manner != "neutral")})
    return samples


def pairs_of_answers(trait, count, seed):
    """Return answers with a trait beside neutral ones, to extract its direction from."""
    samples = answered("extract", [(kind, 1, count) for kind in (trait, "neutral")], seed)
    texts = [one["completion"] for one in samples]
    return list(zip(texts[:count], texts[count:], strict=True))
