from mi_crow_lightning.report.feature import Feature as Feature
from mi_crow_lightning.report.feature import Support as Support
from mi_crow_lightning.report.layer_table import LayerTable as LayerTable
from mi_crow_lightning.report.layer_table import ModelLayer as ModelLayer
from mi_crow_lightning.report.run_report import HookedLayer as HookedLayer
from mi_crow_lightning.report.run_report import HookPlan as HookPlan
from mi_crow_lightning.report.run_report import RunReport as RunReport
