"""Why ours differs from the paper's, by claim, for the tables' last column; a reason shows only where ours falls short.

Written by hand after looking at what the runs show. Each names a cause that another table of the same page supports.
"""

FEW_SAMPLES = "too few samples a user: in the paper's own Fig. 4 exit 3 needs 150, exit 2 2,000, and exit 1 more"
FEW_PHOTOGRAPHS = "the exits learnt from 100 photographs a class, the paper's from ImageNet's 1,300"
NO_BETTER_THAN_ITS_TEACHER = (
    "without labels an exit follows the original and seldom passes it; ours begin further below it, for want of "
    'photographs to learn from, and have few samples to catch up with: see "Samples, with labels and without"'
)
SMALL_NETWORK = "at 96 px the heads cost up to a sixth of the network's work, and of its parameters more"
SATURATED = "ten digits are easy: nearly every user has 90% before personalisation, so there is little to gain"

STAND_INS = {
    "smoke": "a few writers and a tiny CNN: smoke scale shows that the way works, no more",
    "resnet50": FEW_SAMPLES,
    "mobilenet_v2": FEW_SAMPLES,
    "qmnist": SATURATED,
    "writers": "drawn writers, whose first exit begins far below the others; see the exits after it",
}
"""The reason where there is no closer one, by study."""

_REACHES = "first exit that reaches the original, "
_BEGINS_BELOW = f"{FEW_PHOTOGRAPHS}, so that they begin below the original; see how much each gains on itself"
_PHOTOGRAPHS = {
    "accuracy rises from the first to the deepest early exit, before personalisation": FEW_PHOTOGRAPHS,
    f"{_REACHES}hard labels": FEW_SAMPLES,
    f"{_REACHES}self-distillation": NO_BETTER_THAN_ITS_TEACHER,
    "deepest early exit against the original, hard labels": _BEGINS_BELOW,
    "fewer parameters for the original's accuracy, self-distillation": NO_BETTER_THAN_ITS_TEACHER,
    "fewer MACs for the original's accuracy, self-distillation": NO_BETTER_THAN_ITS_TEACHER,
    "throughput at the original's accuracy, self-distillation": NO_BETTER_THAN_ITS_TEACHER,
    "fewer MACs, no labels, at the original's accuracy": NO_BETTER_THAN_ITS_TEACHER,
    "fewer parameters, no labels, at the original's accuracy": NO_BETTER_THAN_ITS_TEACHER,
    "throughput, no labels, at the original's accuracy": NO_BETTER_THAN_ITS_TEACHER,
    "training exits against training the whole network, paper's way": "another processor, batches of 16",
    "training exits against training the whole network, features cached": "another processor, batches of 16",
    "cheaper training": "at 96 px the heads weigh more against the backbone than at 224 px",
    "largest gain of an early exit over the original": _BEGINS_BELOW,
    "fewer parameters for 13 points more than the original, hard labels": _BEGINS_BELOW,
    "fewer MACs for 13 points more than the original, hard labels": _BEGINS_BELOW,
}

REASONS: dict[str, dict[str, str]] = {
    "resnet50": _PHOTOGRAPHS,
    "mobilenet_v2": {
        **_PHOTOGRAPHS,
        "fewer parameters for the original's accuracy, hard labels": SMALL_NETWORK,
        "fewer parameters, labels, at the original's accuracy": SMALL_NETWORK,
    },
}
"""By study and claim."""


def reason(study: str, claim: str, *, falls_short: bool) -> str:
    """Return why the claim differs on a study, nothing where ours does not fall short of the paper's."""
    if not falls_short:
        return ""
    return REASONS.get(study, {}).get(claim, STAND_INS.get(study, ""))
