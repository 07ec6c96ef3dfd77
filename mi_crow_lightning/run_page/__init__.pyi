from mi_crow_lightning.run_page.page import Page as Page
from mi_crow_lightning.run_page.page import write_page as write_page
