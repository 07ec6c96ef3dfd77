"""Figures of what a run did, drawn with matplotlib (``pip install 'mi-crow-lightning[plot]'``).

    plot_heatmap        numbers of one statistic      -> layer x step
    plot_histogram      histograms of one layer       -> activation x step, or one curve a step
    plot_effects        changes that controllers made -> how large, at which layer
    plot_separability   scores of a steering vector   -> AUROC and d' over the layers
    plot_drift          how far layers moved         -> cosine, CKA, norm ratio and angle over the layers
    plot_sweep          a measure by strength         -> the vector beside random ones

``HookCallback.plot(...)``, ``history().plot(...)`` and the like call them. They take plain rows and numbers and return
``(figure, axes)``.
"""

from mi_crow_lightning._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
