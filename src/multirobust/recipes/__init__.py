"""The shipped recipes, one TOML file each, and the paper's tables and figures made from them."""

from multirobust.recipes.kinds import remade, reproduce
from multirobust.recipes.products import Product
from multirobust.recipes.progress import Progress
from multirobust.recipes.reproduction import Reproduction, load_reproduction
from multirobust.recipes.scales import DATA, Scale, scale_of
from multirobust.recipes.study import Study

__all__ = [
    "DATA",
    "Product",
    "Progress",
    "Reproduction",
    "Scale",
    "Study",
    "load_reproduction",
    "remade",
    "reproduce",
    "scale_of",
]
