"""Alarms: rules on what a run reads, and what is done when one fires.

==================  ===================================================================================
`Alarm`             a rule and its actions, for ``HookCallback(alarms=[...])``
`default_alarms`    the alarms that ``HookCallback(alarms="default")`` has
`Rule`              the base of a rule: override ``judge(values)``
`Action`            the base of an action: override ``act(firing, run)``
`Firing`            what fired, and where
`load_snapshot`     reads what a `Snapshot` wrote; ``python -m mi_crow_lightning replay`` runs it again
==================  ===================================================================================
"""

from mi_crow_lightning._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
