"""A look at a bucket before work: what its settings cost a run, or keep it from doing, and the command that helps."""

from typing import Any

from model.errors import BadInput
from transforms.gcs_calls import TIMEOUT, fresh_client, patient
from transforms.storage import StoreError

# What the verbs of a store need: roles/storage.objectUser has all four.
RIGHTS = tuple(f"storage.objects.{verb}" for verb in ("create", "delete", "get", "list"))
# Days that are paid at least (https://cloud.google.com/storage/pricing#early-delete); fragments live for minutes.
PAID_DAYS = {"NEARLINE": 30, "COLDLINE": 90, "ARCHIVE": 365}
DAY_S = 86_400


def concerns_of(bucket: str, prefix: str, patience_s: float) -> list[str]:
    """Sentences, each with its cure; [] where all is well.

    Raises:
      BadInput: no such bucket, no credentials, or rights are missing.
    """
    place = f"gs://{bucket}"
    try:
        client = fresh_client()
        found = client.bucket(bucket)
        pages = {"max_results": 1, "fields": "items(name)", "timeout": TIMEOUT, "retry": None}
        patient("listing of", place, patience_s, lambda: list(client.list_blobs(bucket, **pages)))
    except FileNotFoundError:
        raise BadInput(f"there is no bucket {place}: create it, or mend --out") from None
    except StoreError as e:
        if e.kind != "refused":
            raise
        raise BadInput(e.reason) from None
    try:
        granted = patient(
            "look at", place, patience_s, lambda: found.test_iam_permissions(RIGHTS, timeout=TIMEOUT, retry=None)
        )
    except (FileNotFoundError, StoreError):
        granted = RIGHTS  # servers for tests cannot tell
    missing = sorted(set(RIGHTS) - set(granted))
    if missing:
        cure = "grant it roles/storage.objectUser on the bucket"
        raise BadInput(f"{place}: the account that runs this has no {', '.join(missing)}: {cure}")
    try:
        patient("look at", place, patience_s, lambda: found.reload(timeout=TIMEOUT, retry=None))
    except StoreError as e:
        if e.kind != "refused":
            raise
        cure = "grant it roles/storage.bucketViewer, or see yourself that soft delete and versioning are off"
        return [f"{place}: this account may not look at the bucket's settings: {cure}"]
    return [f"{place} {what}" for what in _settings(found, prefix, f"gcloud storage buckets update {place}")]


def _settings(found: Any, prefix: str, update: str) -> list[str]:
    sentences = []
    place = str(found.location or "").upper()
    if found.location_type in ("multi-region", "dual-region"):
        sentences.append(
            f"lies in {place}, more than one region: every byte written is billed for its copies, fragments too; "
            "a bucket in the workers' own region costs less"
        )
    soft = found.soft_delete_policy.retention_duration_seconds or 0
    if soft:
        sentences.append(
            f"keeps what is deleted for {soft / DAY_S:g} days (soft delete): fragments, as large as the product, stay "
            f"on the bill that long; {update} --clear-soft-delete"
        )
    if found.versioning_enabled:
        sentences.append(
            "keeps old versions: fragments and replaced items stay on the bill until somebody removes them; "
            f"{update} --no-versioning"
        )
    if found.retention_period:
        sentences.append(
            f"keeps every object for {found.retention_period / DAY_S:g} days (retention policy): neither fragments can "
            f"be removed nor items replaced, and the run fails at that; {update} --clear-retention-period, or another "
            "bucket"
        )
    if found.default_event_based_hold:
        sentences.append(
            "puts a hold on every new object: neither fragments can be removed nor items replaced, and the run fails "
            f"at that; {update} --no-default-event-based-hold"
        )
    days = PAID_DAYS.get(found.storage_class or "")
    if days:
        sentences.append(
            f"stores objects as {found.storage_class}: fragments are billed for {days} days although they live for "
            f"minutes; {update} --default-storage-class=STANDARD"
        )
    sentences += [_lifecycle(rule, update) for rule in found.lifecycle_rules if _touches(rule, prefix)]
    return sentences


def _touches(rule: Any, prefix: str) -> bool:
    """Whether a lifecycle rule takes live objects below `prefix`."""
    condition = rule.get("condition", {})
    if rule.get("action", {}).get("type") not in ("Delete", "SetStorageClass"):
        return False
    if condition.get("isLive") is False or "numNewerVersions" in condition or "daysSinceNoncurrentTime" in condition:
        return False
    wanted = condition.get("matchesPrefix") or [""]
    return any(p.startswith(f"{prefix}/" if prefix else "") or f"{prefix}/".startswith(p) for p in wanted)


def _lifecycle(rule: Any, update: str) -> str:
    action, condition = rule["action"], rule.get("condition", {})
    age = f" after {condition['age']} days" if "age" in condition else ""
    does = "removes objects" if action["type"] == "Delete" else f"makes objects {action.get('storageClass', 'colder')}"
    return (
        f"has a lifecycle rule that {does}{age}, the published ones too: take it away or let it leave this folder out "
        f"(matchesPrefix); {update} --lifecycle-file=FILE"
    )
