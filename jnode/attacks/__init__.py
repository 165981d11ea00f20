"""Attacks on any JAX classifier, through whatever solver it holds."""

from jnode.attacks.apgd import APGDCE as APGDCE
from jnode.attacks.apgd import APGDDLR as APGDDLR
from jnode.attacks.apgd import APGDT as APGDT
from jnode.attacks.base import AbstractAttack as AbstractAttack
from jnode.attacks.base import check_budget as check_budget
from jnode.attacks.base import describe as describe
from jnode.attacks.fab import FAB as FAB
from jnode.attacks.fab import FABT as FABT
from jnode.attacks.loop import MISCLASSIFIED as MISCLASSIFIED
from jnode.attacks.loop import STANDING as STANDING
from jnode.attacks.loop import Attacked as Attacked
from jnode.attacks.loop import Outcome as Outcome
from jnode.attacks.loop import run as run
from jnode.attacks.losses import RandomModel as RandomModel
from jnode.attacks.registry import ATTACKS as ATTACKS
from jnode.attacks.registry import autoattack as autoattack
from jnode.attacks.registry import make as make
from jnode.attacks.registry import number as number
from jnode.attacks.registry import parse as parse
from jnode.attacks.simple import FGSM as FGSM
from jnode.attacks.simple import PGD as PGD
from jnode.attacks.simple import GaussianNoise as GaussianNoise
from jnode.attacks.square import Square as Square
