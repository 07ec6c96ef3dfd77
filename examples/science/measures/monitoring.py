"""System prompts ask for more or less of a trait: does the projection of the last prompt token foretell the answer?"""

import mi_crow_lightning as mcl
from examples.science.lab import gaps, load
from examples.science.reading import direction, means_of
from examples.science.texts import TEXTS, TRAITS, pairs_of

BLOCK = 16  # 0.55 of the depth


def chat(lm: mcl.LanguageModel, system: str, question: str) -> str:
    """Return a conversation up to where the answer begins."""
    turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return lm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def run(trait: str, seed: int, quick: bool) -> dict:
    """Return, of each system prompt, the mean projection at the end of the prompt and the mean gap of the answer."""
    lm, about, layer = load(), TRAITS[trait], f"block:{BLOCK}"
    questions = TEXTS["questions"][trait][: 2 if quick else None]
    unit = next(iter(direction(lm, pairs_of(trait, seed), layer).normalise().values())).double()
    rows = []
    for system in TEXTS["systems"][trait]:
        prompts = [chat(lm, system, question) for question, _ in questions]
        answers = [prompt + stem for prompt, (_, stem) in zip(prompts, questions, strict=True)]
        along = means_of(lm, prompts, layer=layer, tokens="last") @ unit
        rows.append(
            {"system": system, "projection": along.mean().item(), "score": gaps(lm, about, answers).mean().item()}
        )
    return {"trait": trait, "seed": seed, "rows": rows}
