from mi_crow_lightning.store.local_store import LocalStore as LocalStore
from mi_crow_lightning.store.store import Store as Store
