import pytest
import s3_double as net

from model.errors import BadInput
from transforms.s3_calls import client_of
from transforms.storage import open_store

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")

moto, road, store = net.FIXTURES


OLD = {"NoncurrentVersionExpiration": {"NoncurrentDays": 1}}


def test_a_bucket_in_order_is_of_no_concern_and_each_setting_that_is_not_has_its_sentence(store, monkeypatch):
    client = client_of(store.endpoint, store.deadline_s)

    def told(rules):
        client.put_bucket_lifecycle_configuration(Bucket=store.bucket, LifecycleConfiguration={"Rules": rules})
        return store.concerns()

    (one,) = store.concerns()
    assert "AbortIncompleteMultipartUpload" in one
    assert told([net.rule(**net.ABORT)]) == told([net.rule("out/", **net.ABORT)]) == []
    assert len(told([net.rule("out/here/2024", **net.ABORT)])) == len(told([net.rule("other/", **net.ABORT)])) == 1
    assert "deletes objects after 9 days" in told([net.rule(**net.ABORT), net.rule("out/", Expiration={"Days": 9})])[0]
    client.put_bucket_versioning(Bucket=store.bucket, VersioningConfiguration={"Status": "Enabled"})
    assert "noncurrent versions" in told([net.rule(**net.ABORT)])[0]
    assert told([net.rule(**net.ABORT), net.rule(**OLD)]) == []
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert "lies in us-east-1 and AWS_REGION is eu-west-1" in store.concerns()[0]
    assert list(store.walk("")) == []


def test_a_lock_on_every_object_is_a_concern(road):
    store = net.bucket("out", ObjectLockEnabledForBucket=True)
    client = client_of(road.url, store.deadline_s)
    assert not any("locks every object" in s for s in store.concerns())
    client.put_object_lock_configuration(
        Bucket=store.bucket,
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 30}},
        },
    )
    assert any("locks every object for 30 days" in s for s in store.concerns())


def test_a_bucket_that_is_not_there_or_not_to_be_written_is_refused_before_work(store, road):
    with pytest.raises(BadInput, match="no such bucket"):
        open_store("s3://nowhere-at-all/x").concerns()
    road.rules["create_multipart_upload"] = net.refused(403, "AccessDenied")
    with pytest.raises(BadInput, match="s3:PutObject"):
        store.concerns()


def test_settings_that_may_not_be_looked_at_are_named(store, road):
    road.rules["get_bucket"] = net.refused(403, "AccessDenied")
    (said,) = store.concerns()
    assert "lifecycle and versioning and object lock" in said
