from mi_crow_lightning.references.reference import DriftReference as DriftReference
from mi_crow_lightning.references.reference import drift as drift
from mi_crow_lightning.references.table import DriftTable as DriftTable
from mi_crow_lightning.references.table import LayerDrift as LayerDrift
from mi_crow_lightning.references.table import SampleDrift as SampleDrift
from mi_crow_lightning.references.table import SampleTable as SampleTable
