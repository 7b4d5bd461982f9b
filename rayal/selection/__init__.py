"""Joint choice: which k rows together. Pure functions on arrays, and the objectives behind them."""

from rayal.selection.fisher import Fisher
from rayal.selection.functions import (
    joint_entropy,
    k_center,
    kmeans_plus_plus,
    select_rows,
    top_k,
)
from rayal.selection.information import bait, bait_regression
from rayal.selection.joint_entropy import JointEntropy
from rayal.selection.kcenter import KCenter
from rayal.selection.kcenter_tworound import TwoRoundKCenter
from rayal.selection.kmeans import KMeansPP
from rayal.selection.kmeans_parallel import KMeansParallel
from rayal.selection.neighbors import nearest_neighbors
from rayal.selection.objective import Objective
from rayal.selection.topk import TopK, UniformDraw

__all__ = [
    "top_k",
    "k_center",
    "kmeans_plus_plus",
    "joint_entropy",
    "bait",
    "bait_regression",
    "nearest_neighbors",
    "select_rows",
    "Objective",
    "TopK",
    "UniformDraw",
    "KCenter",
    "TwoRoundKCenter",
    "KMeansPP",
    "KMeansParallel",
    "JointEntropy",
    "Fisher",
]
