"""Attacks on any JAX classifier, through whatever solver it holds."""

from jnode.attacks.apgd import APGDCE as APGDCE
from jnode.attacks.apgd import APGDDLR as APGDDLR
from jnode.attacks.apgd import APGDT as APGDT
from jnode.attacks.autoattack import autoattack as autoattack
from jnode.attacks.base import AbstractAttack as AbstractAttack
from jnode.attacks.carlini_wagner import CarliniWagner as CarliniWagner
from jnode.attacks.corruptions import CORRUPTIONS as CORRUPTIONS
from jnode.attacks.deepfool import DeepFool as DeepFool
from jnode.attacks.ensemble import MISCLASSIFIED as MISCLASSIFIED
from jnode.attacks.ensemble import STANDING as STANDING
from jnode.attacks.ensemble import Ensemble as Ensemble
from jnode.attacks.ensemble import run as run
from jnode.attacks.fab import FAB as FAB
from jnode.attacks.fab import FABT as FABT
from jnode.attacks.fgsm import FGSM as FGSM
from jnode.attacks.mifgsm import MIFGSM as MIFGSM
from jnode.attacks.noise import GaussianNoise as GaussianNoise
from jnode.attacks.noise import SaltAndPepperNoise as SaltAndPepperNoise
from jnode.attacks.noise import UniformNoise as UniformNoise
from jnode.attacks.pgd import PGD as PGD
from jnode.attacks.random_model import RandomModel as RandomModel
from jnode.attacks.registry import ATTACKS as ATTACKS
from jnode.attacks.registry import make as make
from jnode.attacks.registry import number as number
from jnode.attacks.registry import parse as parse
from jnode.attacks.square import Square as Square
