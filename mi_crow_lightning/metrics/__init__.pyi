# activation.histogram, the function, is left out: once loaded, the submodule `histogram` has that name.
from mi_crow_lightning.metrics.activation import STATISTICS as STATISTICS
from mi_crow_lightning.metrics.activation import channel_statistics as channel_statistics
from mi_crow_lightning.metrics.activation import statistics as statistics
from mi_crow_lightning.metrics.activation_statistics import ActivationStatisticsMetric as ActivationStatisticsMetric
from mi_crow_lightning.metrics.histogram import Histogram as Histogram
from mi_crow_lightning.metrics.log2_bins import EDGES as EDGES
from mi_crow_lightning.metrics.one_pass.measure import measure as measure
from mi_crow_lightning.metrics.one_pass.measure import summarize as summarize
from mi_crow_lightning.metrics.one_pass.summary import Group as Group
from mi_crow_lightning.metrics.one_pass.summary import Summary as Summary
from mi_crow_lightning.metrics.rows import ROW_SIZE as ROW_SIZE
from mi_crow_lightning.metrics.rows import Row as Row
from mi_crow_lightning.metrics.rows import empty_rows as empty_rows
from mi_crow_lightning.metrics.rows import merge as merge
from mi_crow_lightning.metrics.rows import merge_all as merge_all
