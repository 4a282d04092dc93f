"""The summary of a run in words: the headline, and what to see in each figure.

The sentences follow the numbers: they say as plainly that something got worse as that it got better.
"""

from persephonee.server.results.promise import promise_text
from persephonee.server.results.summary import Change, ExitSummary, Spread, Summary

UNKNOWN = "–"
# A number and its unit stay on one line.
SPACE = "\N{NO-BREAK SPACE}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction such as 0.953 as "95.3 %"."""
    return UNKNOWN if value is None else f"{100 * value:.{digits}f}{SPACE}%"


def mean_percent(spread: Spread | None, digits: int = 1) -> str:
    """Return the mean over users of a fraction as "95.3 %"."""
    return percent(spread.mean if spread else None, digits)


def mega_macs(macs: float | None) -> str:
    """Return MACs as "2.7 MMAC"."""
    return UNKNOWN if macs is None else f"{macs / 1e6:,.{1 if macs >= 1e6 else 3}f}{SPACE}MMAC"


def number_of_bytes(count: float | None) -> str:
    """Return a number of bytes as "912 B", "3.1 KB" or "8.6 MB" (powers of 1000)."""
    if count is None:
        return UNKNOWN
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= size:
            return f"{count / size:.1f}{SPACE}{unit}"
    return f"{count:.0f}{SPACE}B"


def number_of_seconds(seconds: float | None) -> str:
    """Return a duration as "1.4 s" or "3 min 05 s"."""
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f}{SPACE}s"
    return f"{int(seconds) // 60}{SPACE}min {int(seconds) % 60:02d}{SPACE}s"


def headline_exit(summary: Summary) -> ExitSummary | None:
    """Return the cheapest early exit that reaches the original's mean accuracy, or else the most accurate one."""
    early = [entry for entry in summary.exits if not entry.is_last and entry.accuracy_after is not None]
    reaching = [entry for entry in early if _reaches_original(entry, summary)]
    if reaching:
        return reaching[0]
    return max(early, key=lambda entry: entry.accuracy_after.mean if entry.accuracy_after else 0.0, default=None)


def headline(summary: Summary) -> str:
    """Return what the run showed, in a few sentences for a reader who knows early exits but not this run."""
    return " ".join(headline_sentences(summary))


def headline_sentences(summary: Summary) -> list[str]:
    """Return the sentences of the headline, the most important one first."""
    counts = summary.counts
    if not counts.ok:
        return [f"No user gave a valid result: of {counts.asked} clients asked, {_left_out_text(summary)}."]
    # what is deployed comes first: an exit alone is how the paper reads a figure
    promise = promise_text(summary.promise) if summary.promise else ""
    sentences = [_policy_sentence(summary), promise, _exit_sentence(summary)]
    if counts.ok < counts.asked:
        left_out = counts.asked - counts.ok
        sentences.append(f"Left out: {left_out} of {counts.asked} clients asked, {_left_out_text(summary)}.")
    return [sentence for sentence in sentences if sentence]


def exits_caption(summary: Summary) -> str:
    """Return a sentence on what the figure of accuracy per exit shows."""
    early = [entry for entry in summary.exits if not entry.is_last and entry.accuracy_after and entry.accuracy_before]
    if not early:
        return ""
    gains = [(_gain(entry), entry.exit) for entry in early]
    (gain, best), (least, worst) = max(gains), min(gains)
    number = sum(_reaches_original(entry, summary) for entry in early)
    return (
        f"Exit {best} gains most ({_points(gain)} on average), exit {worst} least ({_points(least)}); on average "
        f"{number} of {len(early)} early exits now match the original network. Boxes hold the middle half of users, "
        f"whiskers reach from the 5th to the 95th percentile."
    )


def users_caption(summary: Summary) -> str:
    """Return a sentence on what the figure of users over accuracy shows."""
    after, original = summary.policy.accuracy_after, summary.policy.accuracy_original
    if after is None or original is None:
        return ""
    against = summary.policy.against_original
    return (
        f"The further right, the better: the worst-served 5 % of users get at most {percent(after.p05)} from their "
        f"personal policy, and {percent(original.p05)} from the original network; "
        f"{_change_text(against, 'the policy beats the original', 'falls behind it')}."
    )


def cost_caption(summary: Summary) -> str:
    """Return a sentence on what the figure of accuracy against cost shows."""
    policy = summary.policy
    if policy.cost_fraction_after is None:
        return ""
    before = f" ({mean_percent(policy.cost_fraction_before)} before)" if policy.cost_fraction_before else ""
    return (
        f"Upwards is more accurate, leftwards is cheaper: the personal policy runs at "
        f"{mean_percent(policy.cost_fraction_after)} of the original's cost{before} and reaches "
        f"{mean_percent(policy.accuracy_after)}, the original {mean_percent(policy.accuracy_original)}."
    )


def rates_caption(summary: Summary) -> str:
    """Return a sentence on what the figure of exit rates shows."""
    if not summary.exits:
        return ""
    first, last = summary.exits[0], summary.exits[-1]
    return (
        f"{percent(first.exit_rate_after, 0)} of a user's samples leave at exit 0 "
        f"({percent(first.exit_rate_before, 0)} before); {percent(last.exit_rate_after, 0)} still need the whole "
        f"network ({percent(last.exit_rate_before, 0)} before)."
    )


def rounds_caption(summary: Summary) -> str:
    """Return a sentence on what the curve over rounds shows."""
    first, last = summary.rounds[0], summary.rounds[-1]
    return (
        f"From round {first.round} to round {last.round} the personal policy went from "
        f"{percent(first.accuracy_after)} to {percent(last.accuracy_after)}, its cost from "
        f"{percent(first.cost_fraction)} to {percent(last.cost_fraction)} of the original's."
    )


def _exit_sentence(summary: Summary) -> str:
    entry = headline_exit(summary)
    if entry is None or entry.accuracy_after is None:
        return ""
    original = mean_percent(summary.policy.accuracy_original)
    reached, before = mean_percent(entry.accuracy_after), mean_percent(entry.accuracy_before)
    cost = percent(entry.cost_fraction, 0)
    changed = _change_text(entry.change, "it is more accurate than before", "less accurate")
    if _reaches_original(entry, summary):
        return (
            f"Alone, exit {entry.exit} now reaches {reached} on average ({before} before personalisation; the original "
            f"network {original}) at {cost} of the original's cost; {changed}."
        )
    return (
        f"No early exit reaches the original network's {original} on average; exit {entry.exit} comes closest with "
        f"{reached} ({before} before personalisation) at {cost} of its cost; {changed}."
    )


def _policy_sentence(summary: Summary) -> str:
    policy = summary.policy
    if policy.accuracy_after is None:
        return ""
    threshold = f" (median {policy.threshold.median:.2f})" if policy.threshold else ""
    changed = _change_text(policy.change, "it is more accurate than before", "less accurate")
    return (
        f"With each user's own threshold{threshold} the whole policy reaches {mean_percent(policy.accuracy_after)} "
        f"({mean_percent(policy.accuracy_before)} before personalisation; the original network "
        f"{mean_percent(policy.accuracy_original)}) at {mean_percent(policy.cost_fraction_after, 0)} of the original's "
        f"cost; {changed}."
    )


def _change_text(change: Change | None, rose: str, fell: str) -> str:
    if change is None:
        return "how it changed is not known"
    helped, hurt = round(change.helped * change.users), round(change.hurt * change.users)
    if helped == change.users:
        return f"{rose} for all {change.users} users"
    return f"{rose} for {helped} of {change.users} users and {fell} for {hurt or 'none'}"


def _left_out_text(summary: Summary) -> str:
    counts = summary.counts
    kinds = ((counts.too_small, "too small"), (counts.refused, "refused"), (counts.failed, "failed"))
    return ", ".join(f"{count} {kind}" for count, kind in kinds if count) or "none"


def _reaches_original(entry: ExitSummary, summary: Summary) -> bool:
    original = summary.policy.accuracy_original
    return bool(entry.accuracy_after and original and entry.accuracy_after.mean >= original.mean - 1e-9)


def _gain(entry: ExitSummary) -> float:
    return (
        entry.accuracy_after.mean - entry.accuracy_before.mean
        if entry.accuracy_after and entry.accuracy_before
        else 0.0
    )


def _points(gain: float) -> str:
    return f"{100 * gain:+.1f} percentage points".replace("-", "−")
