"""Watch and steer a network's activations inside PyTorch Lightning.

::

    watch = HookCallback(
        detectors=[ActivationStatistics("block:*")],
        controllers=[SteeringController("block:12", vector=v, strength=4.0, tokens="generated")],
    )
    trainer = lightning.Trainer(callbacks=[watch], logger=TensorBoardLogger("logs"))
    trainer.fit(module)        # every block's activations stream into TensorBoard
    trainer.predict(module)    # the same model, steered
"""

from mi_crow_lightning._lazy import attach
from mi_crow_lightning._moved import install
from mi_crow_lightning._short_names import make_known

install()
_exported, _listed, __all__ = attach(__name__, __file__)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("mi-crow-lightning")
        except PackageNotFoundError:  # a folder that was never installed
            return "0+unknown"
    return _exported(name)


def __dir__() -> list[str]:
    return [*_listed(), "__version__"]


make_known()  # at the end, as what it imports uses the names above
