"""Mutants of the records: what a file says of itself, changed by hand."""

import base64
import dataclasses
import json

import numpy as np

from model import modelfile, parity
from model.families import profile_for
from mutants.bases import mutant
from mutants.encoder import heads_apart
from mutants.tools import amend, constant, edit, records, write
from mutants.weights import one_weight_one_per_cent_off


@mutant("v1.0-early", "v2", "v2 int8", by=("constants", "profile"))
def a_mean_in_the_profile(proto, context):
    """A statistic corrected in the profile by hand, the graph left as it is."""
    mean = list(context.base.profile.s2_mean)
    mean[4] += 10
    amend(proto, "profile", s2_mean=mean)


@mutant("v1.1-mpc", "v1.1-aws", by=("profile",))
def the_sampler_of_v2(proto, context):
    """The two padding rules confused: v2's on a v1.1 encoder."""
    amend(proto, "profile", sampler="v2")


@mutant("v2")
def the_sampler_of_v1_1(proto, context):
    """The two padding rules confused: v1.1's on a v2 student."""
    amend(proto, "profile", sampler="v1.1", empty_modality="bin-of-absent-rows")


@mutant("v1.1-mpc", "v1.1-aws", by=("profile",))
def the_other_source_allowed(proto, context):
    """A file made to accept the catalogue at hand."""
    profile = context.other_profile
    amend(proto, "profile", s2_sources=profile.s2_sources, s1_sources=profile.s1_sources)


@mutant("v1.1-mpc")
def the_profile_of_v1_0(proto, context):
    """v1.0's profile laid on v1.1's weights."""
    sizes = context.sizes
    write(proto, profile=profile_for("v1.0-qat", sizes.native_dims, context.base.profile.dims).to_json())


@mutant("v1.1-mpc", "v2")
def fewer_values_in_the_profile(proto, context):
    """A product of 8 values announced, one of 10 written."""
    amend(proto, "profile", dims=8)


@mutant("v1.1-mpc")
def another_native_width(proto, context):
    """A profile of an encoder with more values than this one has."""
    amend(proto, "profile", native_dims=192)


@mutant("v1.1-mpc", "v1.0-qat")
def another_resampling_claimed(proto, context):
    """The training era's resampling set by hand in a file that is named for today's."""
    amend(proto, "profile", s2_resampling="nearest")


@mutant("v2", "v1.1-mpc", by=("profile",))
def cirrus_masked(proto, context):
    """A stricter mask set by hand: snow and thin cirrus are data to these weights."""
    amend(proto, "profile", scl_invalid=[0, 1, 2, 3, 8, 9, 10, 11])


@mutant("v2", seldom=True)
def bands_in_another_order(proto, context):
    """Two bands exchanged in the profile: d-pixels would be built in that order."""
    bands = list(context.base.profile.s2_bands)
    bands[3], bands[4] = bands[4], bands[3]
    amend(proto, "profile", s2_bands=bands)


@mutant("v1.1-mpc", seldom=True)
def a_sampler_without_long_series(proto, context):
    """The largest bins taken out to save memory: 128 observations where the weights saw 256."""
    amend(proto, "profile", sampler_bins=list(range(8, 129, 8)))


@mutant("v1.1-aws", seldom=True)
def radar_scaled_in_the_other_width(proto, context):
    """float64 for OPERA's radar, where the reference has float32: some values move by one."""
    amend(proto, "profile", s1_arithmetic="float64")


@mutant("v1.0-qat")
def minus_128_in_the_profile(proto, context):
    """The v1 reference's clip in the profile."""
    amend(proto, "profile", code_min=-128)


@mutant("v2", alike=True)
def notes_edited(proto, context):
    """The notes to the reader rewritten."""
    amend(proto, "profile", notes="Approved for every source.")


@mutant("v1.1-mpc GRU", "v1.1-mpc int8", by=("variant",))
def a_gpu_promised(proto, context):
    """`linear_before_reset=0` announced for CUDA, which would hand it back to the CPU without a word."""
    amend(proto, "variant", devices=["cpu", "cuda"])


@mutant("v1.1-mpc GRU")
def a_scan_promised(proto, context):
    """A record of another recurrence than the file has."""
    amend(proto, "variant", recurrence="scan", devices=["cpu", "cuda"])


@mutant("v2", "v1.1-mpc")
def wider_limits_claimed(proto, context):
    """A damaged float32 file that calls itself int8, whose limits are wide."""
    one_weight_one_per_cent_off(proto, context)
    amend(proto, "variant", precision="int8", devices=["cpu"])
    write(proto, name=records(proto)["name"] + "-int8")


@mutant("v2")
def float16_claimed(proto, context):
    """A float32 file under the record of a half-precision one."""
    amend(proto, "variant", precision="fp16")
    write(proto, name=records(proto)["name"] + "-fp16")


@mutant("v2 int8", "v2 fp16")
def float32_claimed(proto, context):
    """A narrow file sold as the exact one."""
    suffix = f"-{context.base.precision}"
    amend(proto, "variant", precision="fp32", devices=["cpu", "cuda"])
    write(proto, name=records(proto)["name"].removesuffix(suffix))


@mutant("v1.0-early", "v2")
def other_heads_in_the_record(proto, context):
    """The number of heads in the record is not that of the graph."""
    amend(proto, "encoder", heads=context.sizes.heads * 2)


@mutant("v1.0-qat", "v2", "v2 fp16")
def other_heads_in_record_and_graph(proto, context):
    """Heads assumed wrongly at import: no tensor tells how many there are."""
    sizes = dataclasses.replace(context.sizes, heads=context.sizes.heads * 2)
    for node in heads_apart(proto, context.sizes):
        node.input[1] = constant(proto, [sizes.heads, sizes.head_width], np.int64)
    edit(proto, "head_scale", lambda a: np.full_like(a, sizes.head_width**-0.5))
    amend(proto, "encoder", heads=sizes.heads)


@mutant("v2 with QK-norm")
def no_qk_norm_in_the_record(proto, context):
    """The record of a plain student."""
    amend(proto, "encoder", qk_norm=False)


@mutant("v2", seldom=True)
def no_output_norm_in_the_record(proto, context):
    """The record of an encoder without the last norm."""
    amend(proto, "encoder", output_norm=False)


@mutant("v2 fp16", "v2 int8", unseen=True)
@mutant("v2")
def another_weights_digest(proto, context):
    """The digest of other weights, and the name that goes with it."""
    held = records(proto)
    digest = records(context.other())["weights_sha256"]
    write(proto, weights_sha256=digest, name=held["name"].replace(held["weights_sha256"][:8], digest[:8]))


@mutant("v2", "v1.1-mpc", by=("records",))
def another_name(proto, context):
    """A name that promises other weights: products are told apart by it."""
    write(proto, name="v2-00000000")


@mutant("v1.0-early", "v1.1-mpc", "v2 with QK-norm", "v2", "v2 fp16", "v2 int8", by=("golden outputs",))
def golden_outputs_of_another_model(proto, context):
    """The proof of another file."""
    write(proto, golden=records(context.other())["golden"])


@mutant("v2", "v1.1-mpc", "v2 int8", by=("golden outputs",))
def no_golden_outputs(proto, context):
    """A proof over no cases at all, with an empty digest that fits."""
    amend(proto, "golden", cases=[], inputs_sha256=parity.digest_of([]), codes="", scales="")


@mutant("v2", "v2 fp16", seldom=True)
def one_golden_case(proto, context):
    """A proof cut down to the case that still holds."""
    golden = json.loads(records(proto)["golden"])
    pixels, dims = golden["cases"][0][0], context.base.profile.dims
    short = {
        name: base64.b64encode(base64.b64decode(golden[name])[: pixels * size]).decode()
        for name, size in (("codes", dims), ("scales", 4))
    }
    inputs = parity.digest_of([parity.inputs_of(*golden["cases"][0])])
    amend(proto, "golden", cases=golden["cases"][:1], inputs_sha256=inputs, **short)


@mutant("v2", seldom=True)
def a_golden_code_changed(proto, context):
    """One number of the proof edited."""
    codes = np.frombuffer(base64.b64decode(json.loads(records(proto)["golden"])["codes"]), np.int8).copy()
    codes[codes.argmin()] += 9
    amend(proto, "golden", codes=base64.b64encode(codes.tobytes()).decode())


@mutant("v2", "v1.1-mpc", by=("records",))
def no_parity_report(proto, context):
    """An export that was never measured."""
    write(proto, parity="{}")


@mutant("v2", by=("records",))
def a_parity_report_that_fails(proto, context):
    """An export that was measured, found wrong and shipped."""
    amend(proto, "parity", max_abs_error=0.5, equal_codes_share=0.4, max_code_step=60)


@mutant("v2", "v1.1-mpc")
def a_record_cut_out(proto, context):
    """Metadata cleaned by a tool that does not know them."""
    write(proto, parity=None)


@mutant("v2")
def another_family_in_the_origin(proto, context):
    """An import record of another family than the profile's."""
    amend(proto, "origin", family="v1.1-aws")


@mutant("v2")
def a_version_of_tomorrow(proto, context):
    """A file of a release that this one does not know."""
    amend(proto, "tessera_beam", version=modelfile.VERSION + 1)


@mutant("v2", alike=True)
def a_record_more(proto, context):
    """A remark among the records, by somebody else's tool."""
    write(proto, checked_by="nobody")


@mutant("v1.1-mpc GRU")
def a_version_of_yesterday(proto, context):
    """A file passed off as one of version 1, which said nothing of devices, recurrence and its records' digest."""
    write(proto, tessera_beam=json.dumps({"format": modelfile.FORMAT, "version": 1}), variant=None, records_digest=None)
