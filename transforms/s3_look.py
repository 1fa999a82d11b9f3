"""A look at an S3 bucket before work: the settings that cost money or files, each with its cure."""

import os
from collections.abc import Callable
from typing import Any

from model.errors import BadInput
from transforms.s3_calls import Told
from transforms.storage import StoreError

DEADLINE_S = 30.0  # a bucket that does not answer for so long is a wrong address rather than a busy store
PROBE = "_runs/.may-write"  # key of an upload that is begun and ended: it leaves no object and no version

Call = Callable[..., dict[str, Any]]


def concerns(call: Call, url: str, folder: str) -> list[str]:
    """Sentences for the operator about the bucket of `url`, where `folder` begins every key; [] where all is well.

    Raises:
      BadInput: there is no such bucket, or it cannot be written to.
    """
    try:
        head = call("head_bucket", url, told=("404", "NoSuchBucket"))
        probe = call("create_multipart_upload", url, Key=f"{folder}{PROBE}")
        call("abort_multipart_upload", url, Key=f"{folder}{PROBE}", UploadId=probe["UploadId"], told=("NoSuchUpload",))
    except Told as e:
        if e.code in ("404", "NoSuchBucket"):
            raise BadInput(f"--out {url}: there is no such bucket: create it") from None
    except StoreError as e:
        raise BadInput(f"--out {e}") from None
    said, hidden = _region(url, head), list[str]()
    rules = _setting(
        call, url, "lifecycle", "get_bucket_lifecycle_configuration", "NoSuchLifecycleConfiguration", hidden
    )
    versions = _setting(call, url, "versioning", "get_bucket_versioning", "", hidden)
    lock = _setting(
        call, url, "object lock", "get_object_lock_configuration", "ObjectLockConfigurationNotFoundError", hidden
    )
    if rules is not None:
        ours = [r for r in rules.get("Rules", []) if r.get("Status") == "Enabled" and _meets(r, folder)]
        said += _lifecycle(url, ours, folder)
        if (versions or {}).get("Status") == "Enabled" and not any("NoncurrentVersionExpiration" in r for r in ours):
            said.append(
                f"{url} keeps old versions: fragments that are deleted stay on the bill: add a lifecycle rule that "
                "expires noncurrent versions after a day, or write to a bucket without versioning"
            )
    kept = (lock or {}).get("ObjectLockConfiguration", {}).get("Rule", {}).get("DefaultRetention")
    if kept:
        much = f"{kept['Days']} days" if "Days" in kept else f"{kept.get('Years')} years"
        said.append(
            f"{url} locks every object for {much}: fragments stay on the bill as long: "
            "write to a bucket without a default retention"
        )
    if hidden:
        said.append(
            f"{url}: these credentials may not look at {' and '.join(hidden)}: see to it that unfinished multipart "
            "uploads and old versions are expired by a lifecycle rule"
        )
    return said


def _setting(call: Call, url: str, what: str, operation: str, none: str, hidden: list[str]) -> dict[str, Any] | None:
    """A setting of the bucket, {} where there is none; None where it cannot be looked at, which `hidden` is told."""
    try:
        return call(operation, url, told=(none,) if none else ())
    except Told:
        return {}
    except StoreError as e:
        if e.kind != "refused":
            raise BadInput(f"--out {e}") from None
        hidden.append(what)
        return None


def _region(url: str, head: dict[str, Any]) -> list[str]:
    found = head.get("BucketRegion") or head["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", "")
    ours = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    if not found or not ours or found == ours:
        return []
    return [
        f"{url} lies in {found} and AWS_REGION is {ours}: bytes between regions are billed and slow: "
        f"run in {found}, or choose a bucket in {ours}"
    ]


def _lifecycle(url: str, rules: list[dict[str, Any]], folder: str) -> list[str]:
    said = []
    if not any("AbortIncompleteMultipartUpload" in r and _covers(r, folder) for r in rules):
        said.append(
            f"{url} has no lifecycle rule for unfinished multipart uploads: parts that a dead worker left stay on the "
            "bill unseen: add a rule with AbortIncompleteMultipartUpload after 2 days"
        )
    for rule in rules:
        expiry = rule.get("Expiration", {})
        if "Days" in expiry or "Date" in expiry:
            when = f"after {expiry['Days']} days" if "Days" in expiry else "on a date"
            said.append(
                f"{url}: a lifecycle rule deletes objects {when}, published tiles too: narrow its prefix or remove it"
            )
    return said


def _prefix(rule: dict[str, Any]) -> str:
    chosen = rule.get("Filter") or {}
    return str(chosen.get("Prefix") or chosen.get("And", {}).get("Prefix") or rule.get("Prefix") or "")


def _meets(rule: dict[str, Any], folder: str) -> bool:
    """Whether a rule reaches any key below the folder. One for tags never does: we set none."""
    chosen = rule.get("Filter") or {}
    tags = "Tag" in chosen or "Tags" in chosen.get("And", {})
    prefix = _prefix(rule)
    return not tags and (prefix.startswith(folder) or folder.startswith(prefix))


def _covers(rule: dict[str, Any], folder: str) -> bool:
    """Whether a rule reaches every key below the folder."""
    return folder.startswith(_prefix(rule))
