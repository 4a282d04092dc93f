"""The wire records: everything that may travel between server and client, and nothing else may.

One message per round and client, and a second one under the federated rule. The server sends REQUEST (and the model,
once, to a client without it); the client answers with REPORT and, if it has figures to report, METRICS. No sample,
label or per-sample output stands in these tables, so none can leave: `check_reply` runs on the client as the last step
before sending, and again on the server on arrival. Exits (exit_arrays.py) and a risk curve (risk_records.py) leave a
client only where the run asks for them and the client's owner permits it.

    query.status   ->  request {round, model, graphs, code, ...}  <-  status {client-id, partition-id, code, ...}
    train          ->  request {run, round, model, ...}           <-  report {client-id, status, labels, rule, sharing}
                       [model: arrays; spec; classes; pools;          [metrics: counts, accuracies, a number per exit]
                       calibration; graphs and their files]           [exits: arrays, by permission]
                       [exits: arrays, once some were merged]         [curve: of risks, in a federated rule]
    train.policy   ->  request, pool of the curves                <-  report, [metrics]
    evaluate       ->  as for train                               <-  report, [metrics]

Every list in `metrics` has M+1 numbers, one per exit with the last exit at the end; a pruned exit does not shorten it.
A number that does not exist is NaN. Client ids and statuses are strings, which only a ConfigRecord holds.
"""

import math
from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from persephonee.clients.personalisation.reports import ExitMetrics, PersonalisationReport, Stage
from persephonee.clients.personalisation.risk.policy_choice import OUTCOMES
from persephonee.fl_app.errors import WireError
from persephonee.fl_app.wire.flower_private import recorddict_to_proto
from persephonee.fl_app.wire.foreign_bytes import refusing
from persephonee.fl_app.wire.limits import FEWEST_TEST_SAMPLES, ID_CHARACTERS, WORDS_CHARACTERS
from persephonee.fl_app.wire.record_keys import (
    EXIT_FIELDS,
    METRICS,
    REPORT,
    REQUEST,
    SPEC,
    STAGES,
    STATUS,
    WITH_A_MODEL,
)
from persephonee.fl_app.wire.risk_records import curve_of
from persephonee.fl_app.wire.value_kinds import Kind, Number, PerExit, shown

STATUS_QUERY = "query.status"
TRAIN, POLICY, EVALUATE = "train", "train.policy", "evaluate"

OK, TOO_SMALL, REFUSED, FAILED, MODEL_MISSING = "ok", "too small", "refused", "failed", "model-missing"
STATUS_KINDS = (OK, TOO_SMALL, REFUSED, FAILED, MODEL_MISSING)

NOT_ASKED, SHARED, NOT_PERMITTED, HELD_BACK = "", "shared", "not permitted", "held back"
SHARING_KINDS = (NOT_ASKED, SHARED, NOT_PERMITTED, HELD_BACK)

_SCALARS = tuple(name for name, kind in METRICS.items() if not isinstance(kind, PerExit))


def to_reply(report: PersonalisationReport) -> RecordDict:
    """Return the reply to a train message; `check_reply` decides whether it may leave."""
    reply = RecordDict(
        {"report": _head(report.client_id, report.status[:WORDS_CHARACTERS], report.labels, report.rule)}
    )
    if report.status == OK:
        reply["metrics"] = MetricRecord(_metrics(report))
    return reply


def refusal(client_id: str, status: str) -> RecordDict:
    """Return the reply of a client that has no figures to report, and says why."""
    name, reason = (
        "".join(letter if letter.isprintable() else " " for letter in text)[:length]
        for text, length in ((client_id, ID_CHARACTERS), (status, WORDS_CHARACTERS))
    )
    return RecordDict({"report": _head(name, reason, labels="", rule="")})


def check_reply(
    reply: RecordDict, num_exits: int | None = None, exits_allowed: bool = False, curve_allowed: bool = False
) -> None:
    """Refuse a reply that holds anything but what stands in REPORT and METRICS, and what else may travel.

    Args:
        reply: what a client is about to send, or has sent.
        num_exits: M, where it is known; then the lists must have M+1 numbers.
        exits_allowed: whether exits may be among it; their arrays are checked in exit_arrays.py.
        curve_allowed: whether a risk curve may be among it.

    Raises:
        WireError: names the record and key.
    """
    with refusing("the reply"):
        _check_reply(reply, num_exits, exits_allowed, curve_allowed)


def _check_reply(reply: RecordDict, num_exits: int | None, exits_allowed: bool, curve_allowed: bool) -> None:
    optional = {name for name, allowed in (("exits", exits_allowed), ("curve", curve_allowed)) if allowed}
    _check_records(reply, required={"report"}, optional={"metrics", *optional})
    _check_record("report", reply["report"], ConfigRecord, REPORT)
    status, sharing = (str(reply.config_records["report"][key]) for key in ("status", "sharing"))
    for key, value, kinds in (("status", status, STATUS_KINDS), ("sharing", sharing, SHARING_KINDS)):
        if value.split(":")[0] not in kinds:
            raise WireError(f"report/{key}: expected one of {', '.join(filter(None, kinds))}, got {shown(value)}.")
    if (rule := str(reply.config_records["report"]["rule"])) not in ("", *OUTCOMES):
        raise WireError(f"report/rule: expected one of {', '.join(OUTCOMES)}, got {shown(rule)}.")
    if ("metrics" in reply) != (status == OK):
        raise WireError(f"metrics travel with the status 'ok' and no other, got {shown(status)}.")
    if ("exits" in reply) != (sharing == SHARED) or (sharing == SHARED and status != OK):
        raise WireError(f"exits travel with 'shared' and 'ok' and nothing else, got {shown(sharing)}.")
    if "curve" in reply:
        if status != OK:
            raise WireError(f"a curve travels with the status 'ok' and no other, got {shown(status)}.")
        curve_of(reply["curve"], num_exits)
    if status == OK:
        _check_record("metrics", reply["metrics"], MetricRecord, METRICS)
        num_test = int(reply.metric_records["metrics"]["num_test"])  # type: ignore[arg-type]
        if 0 < num_test < FEWEST_TEST_SAMPLES:
            raise WireError(f"metrics: figures over {num_test} samples, expected {FEWEST_TEST_SAMPLES} or more.")
        lengths = {len(value) for value in reply.metric_records["metrics"].values() if isinstance(value, list)}
        if len(lengths) != 1 or lengths != {num_exits + 1 if num_exits is not None else min(lengths)}:
            wanted = "the same number of" if num_exits is None else str(num_exits + 1)
            raise WireError(f"metrics: expected lists of {wanted} numbers, got {sorted(lengths)}.")


def from_reply(
    reply: RecordDict,
    num_exits: int,
    exits_allowed: bool = False,
    is_personalised: bool = False,
    curve_allowed: bool = False,
) -> PersonalisationReport:
    """Return what a client reports.

    Args:
        reply: of a client.
        num_exits: M, the number of early exits.
        exits_allowed: whether exits may be among it.
        is_personalised: the client was asked to personalise, so that no number may be missing of its test part: one
            NaN would make one of the mean of the round.
        curve_allowed: whether a risk curve may be among it.

    Raises:
        WireError: the reply holds something that may not travel, or lacks something that must.
    """
    check_reply(reply, num_exits, exits_allowed, curve_allowed)
    if is_personalised and "metrics" in reply:
        _check_complete(reply.metric_records["metrics"])
    head: Mapping[str, Any] = reply.config_records["report"]
    names = {"client_id": head["client-id"], "status": head["status"], "labels": head["labels"], "rule": head["rule"]}
    if "metrics" not in reply:
        return no_report(names["client_id"], names["status"])
    metrics: Mapping[str, Any] = reply.metric_records["metrics"]
    return PersonalisationReport(
        **names,
        **{name: metrics[name] for name in _SCALARS},
        rolled_back_exits=tuple(i for i, flag in enumerate(metrics["rolled_back"]) if flag == 1.0),
        exit_metrics=tuple(_exit(metrics, stage, i) for stage in STAGES for i in range(num_exits + 1)),
    )


def make_request(
    *,
    round_number: int,
    model: str,
    code: str,
    graphs: str = "",
    user: str = "",
    run: str = "",
    personalise: bool = False,
) -> RecordDict:
    """Return what the server asks of a client; the model is added for a client that lacks it, and merged exits."""
    names = {"run": run, "model": model, "graphs": graphs, "code": code, "user": user}
    return RecordDict({"request": ConfigRecord({**names, "round": round_number, "personalise": personalise})})


def read_request(content: RecordDict) -> Mapping[str, Any]:
    """Return the request in a message from the server.

    Raises:
        WireError: it holds anything but REQUEST, the model, exits and a pool; whoever uses these two checks them.
    """
    optional = {"model", "spec", "graph-files", "exits", "pool", *WITH_A_MODEL}
    _check_records(content, required={"request"}, optional=optional)
    _check_record("request", content["request"], ConfigRecord, REQUEST)
    if ("model" in content) != ("spec" in content):
        raise WireError("a model travels with its specification, and one of them is missing.")
    if ("graph-files" in content) != ("graphs" in content):
        raise WireError("graphs travel with their description, and one of them is missing.")
    if "spec" in content:
        _check_record("spec", content["spec"], ConfigRecord, SPEC)
    for name, keys in WITH_A_MODEL.items():
        if name in content:
            if "model" not in content:
                raise WireError(f"{name}: travels with a model, which is missing.")
            _check_record(name, content[name], ConfigRecord, keys)
    return dict(content.config_records["request"])


def no_report(client_id: str, status: str) -> PersonalisationReport:
    """Return the report that stands for a client without figures."""
    figures: dict[str, Any] = {n: math.nan if isinstance(METRICS[n], Number) else 0 for n in _SCALARS}
    return PersonalisationReport(
        client_id=client_id, status=status, labels="", rule="", rolled_back_exits=(), exit_metrics=(), **figures
    )


def make_status(
    *,
    client_id: str,
    partition_id: int,
    code: str,
    model_held: bool,
    sharing_allowed: bool,
    needs_graphs: bool = False,
) -> RecordDict:
    """Return the answer to the status query; `check_status` decides whether it may leave."""
    record = ConfigRecord({"client-id": client_id, "partition-id": partition_id, "code": code})
    record["model-held"], record["sharing-allowed"], record["needs-graphs"] = model_held, sharing_allowed, needs_graphs
    return RecordDict({"status": record})


def check_status(reply: RecordDict) -> Mapping[str, Any]:
    """Return the record of an answer to the status query.

    Raises:
        WireError: it holds anything but what stands in STATUS.
    """
    with refusing("the answer"):
        _check_records(reply, required={"status"}, optional=set())
        _check_record("status", reply["status"], ConfigRecord, STATUS)
    return dict(reply.config_records["status"])


def content_bytes(content: RecordDict) -> int:
    """Return the size in bytes of what travels, serialised as Flower does; addresses and ids are not counted.

    The model's arrays are not serialised again for counting: they are counted by their data.
    """
    arrays = sum(record.count_bytes() for record in content.array_records.values())
    rest = RecordDict({k: v for k, v in content.items() if not isinstance(v, ArrayRecord)})
    return arrays + int(recorddict_to_proto(rest).ByteSize())


def _head(client_id: str, status: str, labels: str, rule: str) -> ConfigRecord:
    head = ConfigRecord({"client-id": client_id, "status": status, "labels": labels, "rule": rule})
    head["sharing"] = NOT_ASKED
    return head


def _metrics(report: PersonalisationReport) -> dict[str, Any]:
    by_place = {(metrics.stage, metrics.exit): metrics for metrics in report.exit_metrics}
    paths = range(max((place for _, place in by_place), default=0) + 1)
    values: dict[str, Any] = {}
    for name in _SCALARS:
        value = getattr(report, name)
        values[name] = float(value) if isinstance(METRICS[name], Number) else int(value)
    values["rolled_back"] = [float(place in report.rolled_back_exits) for place in paths]
    for stage in Stage:
        for name in EXIT_FIELDS:
            values[f"{stage}.{name}"] = [_number(by_place.get((stage, place)), name) for place in paths]
    return values


def _number(metrics: ExitMetrics | None, name: str) -> float:
    value = None if metrics is None else getattr(metrics, name)
    return math.nan if value is None else float(value)


def _exit(metrics: Mapping[str, Any], stage: str, place: int) -> ExitMetrics:
    values = {name: metrics[f"{stage}.{name}"][place] for name in EXIT_FIELDS}
    values["kept"] = values["kept"] == 1.0
    values["macs"] = 0 if math.isnan(values["macs"]) else int(values["macs"])
    return ExitMetrics(exit=place, stage=Stage(stage), num_test=metrics["num_test"], **values)


def _check_complete(metrics: Mapping[str, Any]) -> None:
    for name, value in metrics.items() if metrics["num_test"] else ():
        if any(math.isnan(number) for number in (value if isinstance(value, list) else [value])):
            raise WireError(f"metrics/{name}: expected a number of each exit, got nan.")


def _check_records(content: RecordDict, required: set[str], optional: set[str]) -> None:
    for name in sorted(set(content) ^ required):
        if name not in content:
            raise WireError(f"the record {name!r} is missing.")
        if name not in optional:
            raise WireError(f"the record {shown(name)} may not travel.")


def _check_record(
    name: str, record: object, kind: type[ConfigRecord] | type[MetricRecord], allowed: Mapping[str, Kind]
) -> None:
    if not isinstance(record, kind):
        raise WireError(f"{name}: expected a {kind.__name__}, got {type(record).__name__}.")
    for key in sorted(set(record) | set(allowed)):
        if key not in allowed:
            raise WireError(f"{name}/{key[:40]} may not travel.")
        if key not in record:
            raise WireError(f"{name}/{key} is missing.")
        if complaint := allowed[key].complaint(record[key]):
            raise WireError(f"{name}/{key}: expected {complaint}.")
