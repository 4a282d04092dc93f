"""Exit pruning: exits that do not pay for their heads go, and the policy is calibrated again (Sec. 3.1.4)."""

from persephonee.clients.personalisation.calibration import CalibratedPolicy, CalibrationSet, calibrate
from persephonee.clients.personalisation.settings import PersonalisationSettings


def prune(samples: CalibrationSet, calibrated: CalibratedPolicy, settings: PersonalisationSettings) -> CalibratedPolicy:
    """Return the policy without the exits that do not pay.

    Takes away, one at a time, the exit without which the calibrated policy is cheapest, as long as that is no dearer
    than with it. An exit pays when the samples that leave there save more than its head costs all samples that pass.
    With no exit left the original network is in force.

    Args:
        samples: what the exits answer on the calibration samples.
        calibrated: the policy with all exits that may be used.
        settings: of the calibration.
    """
    while exits := calibrated.policy.exits_in_use:
        fewer = [tuple(e for e in exits if e != gone) for gone in exits]
        candidates = [calibrate(samples, settings, remaining) for remaining in fewer]
        best = min(candidates, key=lambda one: (one.point.cost, -one.point.accuracy))
        if best.point.cost > calibrated.point.cost:
            break
        calibrated = best
    return calibrated
