from mi_crow_lightning.figures.drift import plot_drift as plot_drift
from mi_crow_lightning.figures.effects import plot_effects as plot_effects
from mi_crow_lightning.figures.heatmap import plot_heatmap as plot_heatmap
from mi_crow_lightning.figures.histogram import plot_histogram as plot_histogram
from mi_crow_lightning.figures.separability import plot_separability as plot_separability
from mi_crow_lightning.figures.sweep import plot_sweep as plot_sweep
