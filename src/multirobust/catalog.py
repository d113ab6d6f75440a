"""Every name that a user can write, with one line on what it is. Imports nothing heavy.

`multirobust list` prints these tables and the configuration checks names against them, both
without importing PyTorch. The tests hold them equal to the tables of builders.
"""

from __future__ import annotations

__all__ = [
    "ATTACKS",
    "DATASETS",
    "DEFENSES",
    "EVALUATION_SETS",
    "MODELS",
    "PRESETS",
    "REPRODUCTIONS",
    "SUITES",
    "THREATS",
]

DEFENSES = {
    "standard": "cross-entropy on clean images (Nat)",
    "adv_linf": "adversarial training on linf PGD (Madry et al. 2017)",
    "adv_l2": "adversarial training on l2 PGD",
    "adv_l1": "adversarial training on l1 PGD",
    "trades": "TRADES on linf, beta 6 (Zhang et al. 2019)",
    "adv_avg": "mean loss over the attacks of all norms (Tramèr and Boneh 2019, Eq. 4)",
    "adv_max": "the strongest attack of each image (Tramèr and Boneh 2019, Eq. 3)",
    "msd": "multi steepest descent: the best norm at every step (Maini et al. 2020)",
    "ant": "adversarial noise training: noise learned to raise the loss (Rusak et al. 2020)",
    "sat": "stochastic adversarial training: one attack a batch, uniformly (Eq. 5)",
    "sat_ac": "SAT and adversarial consistency with Gaussian noise (Table 3)",
    "mng_ac": "SAT, consistency and the meta-learned noise generator (Algorithm 1)",
    "mng_ac_spatial": "mng_ac with rotation and translation, projected on l2, in its set (Table 4)",
    "rst_linf": "robust self-training: trades with pseudo-labeled data (Carmon et al. 2019)",
    "mng_ac_rst": "mng_ac with pseudo-labeled data (Table 2)",
    "e_at": "the extreme norms, drawn by their robust errors (Croce and Hein 2022)",
    "ramp": "logit pairing of two norms, natural training mixed in (Jiang and Singh 2024)",
    "sat_mixed": "SAT with Auto-PGD whose attack is chosen for each image (defense.sampler)",
    "mng_ac_mixed": "mng_ac with Auto-PGD whose attack is chosen for each image (defense.sampler)",
    "plus": "ours: sampler, steps and consistency that did best at equal passes (defense.plus_*)",
}

ATTACKS = {
    "pgd": "projected gradient descent in any threat (Madry et al. 2017, Eq. 1)",
    "apgd": "Auto-PGD: chooses its step sizes; linf, l2, l1 (Croce and Hein 2020, 2021)",
    "lockstep_apgd": "Auto-PGD for training: all steps, the image of greatest loss",
    "fab": "FAB-T: walks along the boundary to its closest point (Croce and Hein 2020)",
    "square": "random search with square windows, no gradient (Andriushchenko et al. 2020)",
    "tournament": "APGD whose budget grows where it decides, with a fallback for masked gradients",
    "msd": "multi steepest descent over several threats (Maini et al. 2020)",
    "carlini_wagner": "least l2 distance by Adam on a penalized margin (Carlini and Wagner 2017)",
    "brendel_bethge": "least distance along the boundary (Brendel et al. 2019); linf, l2, l1",
    "elastic_net": "EAD: least l1 distance by shrinkage (Chen et al. 2018)",
    "salt_and_pepper": "ever more black and white pixels, no gradient; l1",
    "spatial_grid": "rotation and translation, all of a grid of 775 (Engstrom et al. 2019)",
    "spatial_random": "rotation and translation, the worst of ten draws",
    "spatial_gradient": "rotation and translation by gradient ascent from a random start",
    "stadv": "a field of bounded displacements by gradient ascent (Xiao et al. 2018)",
    "recolor": "one smooth bounded map of colors by gradient ascent (Laidlaw and Feizi 2019)",
    "elastic": "each pixel from nearby, a smoothed flow (Kang et al. 2019)",
    "jpeg_linf": "JPEG coefficients moved, bounded in linf (Kang et al. 2019)",
    "jpeg_l2": "JPEG coefficients moved, bounded in l2",
    "jpeg_l1": "JPEG coefficients moved, bounded in l1",
    "fog": "adversarial diamond-square fog (Kang et al. 2019)",
    "snow": "adversarial flakes along streaks (Kang et al. 2019)",
    "gabor": "sparse Gabor noise with adversarial weights (Kang et al. 2019)",
    "corruption": "one of 19 common corruptions; the model is not asked",
    "stored_images": "ready-made images, such as those of CIFAR-10-C",
    "worst_case": "wrapper: of several attacks, the image of greatest loss",
    "projected": "wrapper: the images of an attack, brought into a ball",
    "restarts": "wrapper: one attack several times, the image of greatest loss",
}

DATASETS = {
    "digits": "1,797 real 8x8 scans of handwritten digits, embedded (scikit-learn)",
    "cifar10": "60,000 32x32 color images in 10 classes, from the official pickles",
    "cifar100": "60,000 32x32 color images in 100 classes, from the official pickles",
    "svhn": "99,289 32x32 color digits of house numbers, from the official .mat files",
    "tinyimagenet": "110,000 64x64 color images in 200 classes; the annotated val is the test set",
}

EVALUATION_SETS = {
    "cifar10c": "only to evaluate on: test images of CIFAR-10, corrupted (suite corruptions)",
}
"""Data sets that have no training images."""

MODELS = {
    "small_cnn": "four 3x3 convolutions with BatchNorm; widths are an option",
    "preact_resnet_18": "pre-activation ResNet-18 with a 3x3 stem (He et al. 2016)",
    "preact_resnet_50": "pre-activation ResNet-50 with true bottlenecks (He et al. 2016)",
    "wrn_28_2": "wide ResNet 28-2 (Zagoruyko and Komodakis 2016)",
    "wrn_28_10": "wide ResNet 28-10, the paper's network for CIFAR-10 and SVHN",
    "wrn_34_10": "wide ResNet 34-10",
}

SUITES = {
    "quick": "PGD in linf, l2 and l1 (50, 50 and 100 steps), two random starts each",
    "fast": "the verdict of autoattack for a fraction of its passes: a tournament of targets",
    "autoattack": "APGD-CE, APGD-T, FAB-T, Square in every norm, published budgets",
    "autoattack_rand": "for randomized models: APGD-CE and APGD-DLR on the mean of 20 passes",
    "paper": "all attacks of the paper: PGD, AutoAttack, C&W, Brendel-Bethge, EAD, salt and pepper",
    "spatial": "rotation and translation: grid, worst of ten draws, gradient ascent",
    "unforeseen": "elastic, JPEG, fog, snow, Gabor, StAdv, ReColor, each at its published levels",
    "corruptions": "the 19 common corruptions at five severities (Hendrycks and Dietterich 2019)",
}

THREATS = {
    "cifar10": "linf 8/255, l2 128/255, l1 2000/255 (the paper)",
    "svhn": "linf 8/255, l2 128/255, l1 2000/255 (the paper)",
    "tinyimagenet": "linf 4/255, l2 80/255, l1 2000/255 (the paper)",
    "e_at": "linf 8/255, l2 0.5, l1 12 (Croce and Hein 2022)",
    "e_at_hard": "linf 8/255, l2 1.5, l1 12 (Jiang and Singh 2024): no two cover the third",
    "digits": "linf 0.15, l2 0.75, l1 2.5 (8x8 scans)",
}

PRESETS = {
    "paper": "the equations of the paper (default)",
    "official": "the published code: a generator that sees noise only, moved by SGD with momentum",
    "plus": "ours: trains plus, with what did best at equal passes",
}

REPRODUCTIONS = {
    "breakdown": "the paper's sixteen attacks, each alone, against the multi-norm methods",
    "choose-the-attack": "ours: defenses, samplers and third views at equal passes",
    "cifar10-c": "19 common corruptions at five severities",
    "figure-2": "union and clean accuracy against beta (figure-4 is its clean accuracy)",
    "figure-3": "the loss along the steepest directions of each norm",
    "figure-4": "clean accuracy against beta; the same models as figure-2",
    "figure-5": "images with the noise that the generator makes for them",
    "figure-6": "as figure-3; the paper shows it for SVHN (--data svhn)",
    "table-1": "ten methods against linf, l1 and l2 attacks, and their training time",
    "table-2": "RST and MNG-AC with pseudo-labeled images",
    "table-3": "SAT, with the consistency loss, with the noise generator",
    "table-4": "rotation and translation, unseen and seen in training",
    "table-5": "the boundary between two classes in the penultimate features",
    "unforeseen": "elastic, JPEG, fog, snow, Gabor, StAdv and ReColor, maximized",
}
"""What `multirobust reproduce` makes, each in one line."""
