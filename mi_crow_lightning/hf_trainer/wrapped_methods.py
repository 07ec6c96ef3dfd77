"""Methods of one Trainer object that callbacks follow: a Trainer has no event for what happens in and around them.

The class stays as it is, and so does every other Trainer. Several callbacks share the wrappers, which go when the last
of them lets go.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol
from weakref import WeakKeyDictionary

__all__ = ["METHODS", "Follower", "follow", "followers_of", "unfollow"]

METHODS: Mapping[str, tuple[str, ...]] = {
    "train": ("resume_from_checkpoint", "trial"),
    "evaluate": (),
    "predict": (),
    "training_step": ("model", "inputs"),
    "prediction_step": ("model", "inputs"),
}
"""The methods that are wrapped, each with those of its first arguments that followers get."""


class Follower(Protocol):
    """An object that follows the methods of a Trainer."""

    def around(self, method: str, arguments: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Return what goes around one call of a method.

        Args:
            method: one of `METHODS`.
            arguments: those of the call that `METHODS` names, ``None`` for one that was not given.
        """

    def returned(self, method: str, result: Any) -> None:
        """Take note of what a call returned, still inside of what goes around it."""


_followers: WeakKeyDictionary[object, list[Follower]] = WeakKeyDictionary()


def follow(trainer: Any, follower: Follower) -> None:
    """Wrap the methods of a Trainer object, if nobody has, and let one more follow them."""
    followers = _followers.setdefault(trainer, [])
    if not followers:
        for name, arguments in METHODS.items():
            setattr(trainer, name, _wrapped(getattr(trainer, name), name, arguments, followers))
    followers.append(follower)


def followers_of(trainer: Any) -> tuple[Follower, ...]:
    """Return those who follow a Trainer: what the first puts around a method goes around what the others put there."""
    return tuple(_followers.get(trainer, ()))


def unfollow(trainer: Any, follower: Follower) -> None:
    """Let one follow no longer; after the last, the methods are again what they were."""
    followers = _followers.get(trainer, [])
    if follower in followers:
        followers.remove(follower)
        if not followers:
            del _followers[trainer]
            for name in METHODS:
                _unwrap(trainer, name)


def _wrapped(method: Callable[..., Any], name: str, names: tuple[str, ...], followers: list[Follower]) -> Any:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False))
        arguments = {one: given.get(one, kwargs.get(one)) for one in names}
        with ExitStack() as stack:
            for follower in tuple(followers):
                stack.enter_context(follower.around(name, arguments))
            result = method(*args, **kwargs)
            for follower in tuple(followers):
                follower.returned(name, result)
            return result

    call._mi_crow_lightning = followers  # type: ignore[attr-defined]
    return call


def _unwrap(trainer: Any, name: str) -> None:
    """Take a wrapper off, unless somebody has wrapped it in turn: without followers it only passes calls on."""
    wrapper = vars(trainer).get(name)
    if not hasattr(wrapper, "_mi_crow_lightning"):
        return
    method = wrapper.__wrapped__
    if getattr(method, "__self__", None) is trainer:  # a method of the class, which the object finds by itself
        delattr(trainer, name)
    else:
        setattr(trainer, name, method)
